"""Exact evaluation: every sample once, weighted alike, the same numbers at every world size."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from distae import distributed as dist
from distae.data import Loader
from distae.models import Autoencoder, Batch, Output
from distae.noise import Noise, Rows


class Place(NamedTuple):
    """This rank's rows of one chunk."""

    rows: Rows
    samples: Tensor
    """`[B]` int64 on the loader's home; a row that this rank lacks is sample 0."""
    held: Tensor
    """`[B]` bool on the device: the rows that count."""


def place(loader: Loader, start: int, chunk: int) -> Place:
    """Where the `chunk` samples from `start` on are, or as many as are left; every rank has as many rows."""
    world = dist.world()
    local = -(-min(chunk, len(loader) - start) // world.world_size)
    rows = Rows.strided(chunk, world.rank, world.rank + local * world.world_size, world.world_size, world.device)
    number = torch.arange(local, device=loader.home) * world.world_size + world.rank
    held = (number < chunk) & (start + number < len(loader))
    return Place(rows, torch.where(held, start + number, 0), held.to(world.device))


@torch.no_grad()
def evaluate(
    model: Autoencoder, loader: Loader, chunk: int, seed: int, interrupted: Callable[[], bool] = lambda: False
) -> dict[str, float] | None:
    """Means over all samples of `loader`: the model's terms in nats per sample, and `mse`, the squared error per value.

    Runs over fixed global chunks with noise keyed by chunk. All ranks make the same number of forward calls; rows that a rank lacks
    weigh 0. Returns None where `interrupted()` (asked between chunks, by all ranks together) says so.
    """
    was_training = model.training
    model.eval()
    sums: dict[str, Tensor] = {}
    try:
        for number, start in enumerate(range(0, len(loader), chunk)):
            if interrupted():
                return None
            for name, value in _chunk(model, loader, number, start, chunk, seed).items():
                sums[name] = sums[name] + value if name in sums else value
    finally:
        model.train(was_training)
    total = dist.sum_(torch.stack(list(sums.values())))
    return dict(zip(sums, (total / len(loader)).tolist(), strict=True))


def _chunk(model: Autoencoder, loader: Loader, number: int, start: int, chunk: int, seed: int) -> dict[str, Tensor]:
    """Sums over this rank's rows of one chunk, in float64, of the terms of all turns."""
    here = place(loader, start, chunk)
    weight = here.held.double()
    sums: dict[str, Tensor] = {}
    for turn in model.turns():
        noise = Noise(seed, ("eval", number, turn.name), here.rows, weight.device)
        x, label = loader.batch(here.samples, noise)
        out: Output = model(Batch(x, label, None, here.held, len(loader)), turn.name, noise)
        per_sample = out.per_sample | {"mse": (x - model.likelihood.mean(out.recon)).square().flatten(1).mean(1)}
        terms = {name: (value.double() * weight).sum() for name, value in per_sample.items()}
        terms |= {name: value.double() * weight.sum() for name, value in out.per_batch.items()}
        sums |= {name: value for name, value in terms.items() if name not in sums}
    return sums
