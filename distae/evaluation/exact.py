"""Exact evaluation: every sample once, with equal weights, the same numbers at every world size."""

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from distae import distributed as dist
from distae.data import Loader
from distae.evaluation.metrics import metrics_of
from distae.models import Autoencoder, Batch, Codes, Output
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


def eval_shards(loader: Loader, samples: int, chunk: int, first: int = 0) -> Iterator[EvalShard]:
    """This rank's share of each chunk of the samples from `first` to `samples`, in order; later ones are read ahead."""
    shards = (eval_shard(loader, start, min(chunk, samples - start)) for start in range(first, samples, chunk))
    return loader.ahead(shards, lambda shard: (shard.samples,))


def fetch(loader: Loader, here: EvalShard, noise: Noise) -> tuple[Tensor, Tensor | None, EvalShard]:
    """Samples and labels of a share, and the share without the samples that cannot be read."""
    x, label = loader.batch(here.samples, noise)
    bad = loader.unreadable(here.samples)
    return x, label, here if bad is None else here._replace(valid_mask=here.valid_mask & ~bad)


Terms = Callable[[Batch, int, Rows], dict[str, Tensor]]
"""Of a batch, the number of its chunk and its rows there, which key noise: `[B]` by sample, or a scalar, equal on all ranks."""


def evaluate(
    model: Autoencoder, loader: Loader, chunk: int, seed: int, interrupted: Callable[[], bool] = lambda: False
) -> dict[str, float] | None:
    """Means over all samples of `loader` that can be read: the model's terms in nats per sample, and every registered metric.

    Noise is keyed by chunk. Returns None if `interrupted()` (called between chunks, by all ranks together) is true.
    """
    return means(model, loader, chunk, seed, lambda *batch: _terms(model, seed, *batch), interrupted)


@torch.no_grad()
def means(
    model: Autoencoder,
    loader: Loader,
    chunk: int,
    seed: int,
    terms: Terms,
    interrupted: Callable[[], bool] = lambda: False,
    limit: int | None = None,
) -> dict[str, float] | None:
    """Means of `terms` over all samples of `loader` that can be read, with the model in evaluation mode; as `evaluate`.

    `limit`: of its first samples alone. Runs over fixed global chunks. All ranks make the same number of calls; missing and
    unreadable rows have weight 0.
    """
    was_training = model.training
    model.eval()
    sums: dict[str, Tensor] = {}
    try:
        for number, here in enumerate(eval_shards(loader, min(len(loader), limit or len(loader)), chunk)):
            if interrupted():
                return None
            for name, value in _sums(loader, number, here, seed, terms).items():
                sums[name] = sums[name] + value if name in sums else value
    finally:
        model.train(was_training)
    *total, count = dist.all_reduce_(torch.stack(list(sums.values()))).tolist()
    return {name: value / count for name, value in zip(sums, total, strict=False)}


def _sums(loader: Loader, number: int, here: EvalShard, seed: int, terms: Terms) -> dict[str, Tensor]:
    """Sums of `terms` over this rank's rows of one chunk, in float64, and last the number of samples."""
    x, label, here = fetch(loader, here, Noise(seed, ("eval data", number), here.rows, here.valid_mask.device))
    weight = here.valid_mask.double()
    found = terms(Batch(x, label, None, here.valid_mask, len(loader)), number, here.rows)
    sums = {k: (v.double() * weight).sum() if v.ndim else v.double() * weight.sum() for k, v in found.items()}
    return sums | {"": weight.sum()}


def _terms(model: Autoencoder, seed: int, batch: Batch, number: int, rows: Rows) -> dict[str, Tensor]:
    """The terms of all phases, and the metrics."""
    found: dict[str, Tensor] = {}
    for phase in model.phases():
        out: Output = model(batch, phase.name, Noise(seed, ("eval", number, phase.name), rows, batch.x.device))
        of_phase = out.per_sample | ({} if found else metrics_of(model, batch, out)) | out.per_batch
        found |= {name: value for name, value in of_phase.items() if name not in found}
    return found


def in_shares(parts: int, work: Callable[[int], Tensor]) -> Tensor:
    """`work(i)` `[b, ...]` of parts 0, 1, …, each computed by one rank; all rows in order, on the CPU of every rank."""
    here = dist.world()
    mine = {i: work(i).cpu() for i in range(here.rank, parts, here.world_size)}
    found = {i: part for of_rank in dist.gather(mine) for i, part in of_rank.items()}
    return torch.cat([found[i] for i in range(parts)])


def codes_of(model: Autoencoder, loader: Loader, n: int, chunk: int, seed: int) -> Codes:
    """Of the first `n` samples that can be read, in float64 on the CPU of every rank."""
    _, found = gathered(loader, range(n), chunk, seed, model.encode)
    return Codes(*(x.double() if x is not None and x.is_floating_point() else x for x in found))  # type: ignore[arg-type]


@torch.no_grad()
def gathered(
    loader: Loader, samples: range, chunk: int, seed: int, of: Callable[[Tensor, Tensor | None], Sequence[Tensor | None]]
) -> tuple[Tensor, list[Tensor | None]]:
    """Positions `[n]` of the samples that can be read, and each `[n, ...]` that `of(x, label)` gives of them, in order.

    On the CPU of every rank; each computes its share of every chunk. `samples` begins at a multiple of `chunk`.
    """
    parts, positions, first = [], [], samples.start // chunk
    for number, here in enumerate(eval_shards(loader, samples.stop, chunk, samples.start), first):
        x, label, here = fetch(loader, here, Noise(seed, ("eval data", number), here.rows, here.valid_mask.device))  # noqa: PLW2901
        batch = Batch(x, label, None, here.valid_mask)
        positions.append(batch.pool(here.samples.to(x.device)).cpu())
        parts.append([None if found is None else batch.pool(found).cpu() for found in of(x, label)])
    columns = [None if column[0] is None else torch.cat(column) for column in zip(*parts, strict=True)]
    return torch.cat(positions), columns
