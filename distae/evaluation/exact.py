"""Exact evaluation: every sample once, with equal weights, the same numbers at every world size."""

from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from distae import distributed as dist
from distae.data import Loader
from distae.evaluation.metrics import metrics_of
from distae.models import Autoencoder, Batch, Output
from distae.noise import Noise, Rows


class EvalShard(NamedTuple):
    """This rank's rows of one chunk."""

    rows: Rows
    samples: Tensor
    """`[B]` int64 on the loader's `storage_device`; a missing row is sample 0."""
    valid_mask: Tensor
    """`[B]` bool on the device: the rows that count."""


def eval_shard(loader: Loader, start: int, chunk: int) -> EvalShard:
    """This rank's share of the `chunk` samples from `start` on, or of those left; all ranks have the same number of rows."""
    world = dist.world()
    here = min(chunk, len(loader) - start)
    local = -(-here // world.world_size)
    rows = Rows(local, world.rank * local)
    number = rows.start + torch.arange(local, device=loader.storage_device)
    valid_mask = number < here
    return EvalShard(rows, torch.where(valid_mask, start + number, 0), valid_mask.to(world.device))


def eval_shards(loader: Loader, samples: int, chunk: int) -> Iterator[EvalShard]:
    """This rank's share of each chunk of the first `samples`, in order; later ones are read ahead."""
    shards = (eval_shard(loader, start, chunk) for start in range(0, samples, chunk))
    return loader.ahead(shards, lambda shard: (shard.samples,))


def fetch(loader: Loader, here: EvalShard, noise: Noise) -> tuple[Tensor, Tensor | None, EvalShard]:
    """Samples and labels of a share, and the share without the samples that cannot be read."""
    x, label = loader.batch(here.samples, noise)
    bad = loader.unreadable(here.samples)
    return x, label, here if bad is None else here._replace(valid_mask=here.valid_mask & ~bad)


@torch.no_grad()
def evaluate(
    model: Autoencoder, loader: Loader, chunk: int, seed: int, interrupted: Callable[[], bool] = lambda: False
) -> dict[str, float] | None:
    """Means over all samples of `loader` that can be read: the model's terms in nats per sample, and every registered metric.

    Runs over fixed global chunks with noise keyed by chunk. All ranks make the same number of forward calls; missing and
    unreadable rows have weight 0. Returns None if `interrupted()` (called between chunks, by all ranks together) is true.
    """
    was_training = model.training
    model.eval()
    sums: dict[str, Tensor] = {}
    try:
        for number, here in enumerate(eval_shards(loader, len(loader), chunk)):
            if interrupted():
                return None
            for name, value in _chunk(model, loader, number, here, seed).items():
                sums[name] = sums[name] + value if name in sums else value
    finally:
        model.train(was_training)
    *total, count = dist.all_reduce_(torch.stack(list(sums.values()))).tolist()
    return {name: value / count for name, value in zip(sums, total, strict=False)}


def _chunk(model: Autoencoder, loader: Loader, number: int, here: EvalShard, seed: int) -> dict[str, Tensor]:
    """Sums over this rank's rows of one chunk, in float64, of the terms of all phases, and last the number of samples."""
    x, label, here = fetch(loader, here, Noise(seed, ("eval data", number), here.rows, here.valid_mask.device))
    weight = here.valid_mask.double()
    sums: dict[str, Tensor] = {}
    for phase in model.phases():
        noise = Noise(seed, ("eval", number, phase.name), here.rows, weight.device)
        batch = Batch(x, label, None, here.valid_mask, len(loader))
        out: Output = model(batch, phase.name, noise)
        per_sample = out.per_sample | ({} if sums else metrics_of(model, batch, out))
        terms = {name: (value.double() * weight).sum() for name, value in per_sample.items()}
        terms |= {name: value.double() * weight.sum() for name, value in out.per_batch.items()}
        sums |= {name: value for name, value in terms.items() if name not in sums}
    return sums | {"": weight.sum()}
