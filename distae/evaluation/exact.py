"""Exact evaluation: every sample once, weighted alike, the same numbers at every world size."""

from collections.abc import Callable

import torch
from torch import Tensor

from distae import dist
from distae.data import Loader
from distae.models import Autoencoder, Batch, Output
from distae.noise import Noise, Rows


@torch.no_grad()
def evaluate(
    model: Autoencoder, loader: Loader, chunk: int, seed: int, interrupted: Callable[[], bool] = lambda: False
) -> dict[str, float] | None:
    """Means over all samples of `loader`: the model's terms in nats per sample, and `mse`, the squared error per value.

    Runs over fixed global chunks with noise keyed by chunk. All ranks make the same number of forward calls; rows that a rank lacks
    weigh 0. Returns None where `interrupted()` (asked between chunks, by all ranks together) says so.
    """
    world = dist.world()
    was_training = model.training
    model.eval()
    sums: dict[str, Tensor] = {}
    try:
        for number, start in enumerate(range(0, len(loader), chunk)):
            if interrupted():
                return None
            for name, value in _chunk(model, loader, number, start, chunk, seed, world).items():
                sums[name] = sums[name] + value if name in sums else value
    finally:
        model.train(was_training)
    total = dist.sum_(torch.stack(list(sums.values())))
    return dict(zip(sums, (total / len(loader)).tolist(), strict=True))


def _chunk(
    model: Autoencoder, loader: Loader, number: int, start: int, chunk: int, seed: int, world: dist.World
) -> dict[str, Tensor]:
    """Sums over this rank's rows of one chunk, in float64, of the terms of all turns."""
    local = -(-chunk // world.world_size)
    rows = Rows.strided(chunk, world.rank, world.rank + local * world.world_size, world.world_size, world.device)
    place = torch.arange(local, device=loader.home) * world.world_size + world.rank
    mine = (place < chunk) & (start + place < len(loader))
    held = mine.to(world.device)
    weight = held.double()
    sums: dict[str, Tensor] = {}
    for turn in model.turns():
        noise = Noise(seed, ("eval", number, turn.name), rows, world.device)
        x, label = loader.batch(torch.where(mine, start + place, 0), noise)
        out: Output = model(Batch(x, label, None, held, len(loader)), turn.name, noise)
        per_sample = out.per_sample | {"mse": (x - model.likelihood.mean(out.recon)).square().flatten(1).mean(1)}
        terms = {name: (value.double() * weight).sum() for name, value in per_sample.items()}
        terms |= {name: value.double() * weight.sum() for name, value in out.per_batch.items()}
        sums |= {name: value for name, value in terms.items() if name not in sums}
    return sums
