"""Stored samples and their splits: row numbers of one source, which is never copied."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from functools import cached_property

import torch
import xxhash
from torch import Tensor

from distae.data.transform import Transform
from distae.noise import split_order

BLOCK_BYTES = 16 << 20
"""Bytes read at once when all values are scanned."""
WHOLE_BYTES = 4 << 30
"""A split up to this size in bytes is compared by all values, a larger one by sampled blocks."""
Identity = dict[str, str | int | float | None]
"""What identifies the data, by name."""


@dataclass(frozen=True)
class Arrays:
    """Samples in memory or in a memory-mapped file."""

    source: Tensor
    """`[N, *stored]` uint8 or floating point, read-only: it may be a file."""
    source_label: Tensor | None = None
    """`[N]` int64."""
    transform: Transform = field(default_factory=Transform)
    """Transform from stored values to the model's."""
    rows: Tensor | None = None
    """`[n]` int64, rows of `source` in this split; None is all of them, in order."""
    notes: tuple[str, ...] = ()
    """Notes on guesses, printed at the start of a run."""

    @property
    def x(self) -> Tensor:
        """The stored values `[n, *shape]` in the model's layout: a copy if `rows` are chosen."""
        return self.transform.arrange(self.source if self.rows is None else self.source.index_select(0, self.rows))

    @property
    def label(self) -> Tensor | None:
        """`[n]` int64."""
        return self.source_label if self.source_label is None or self.rows is None else self.source_label[self.rows]

    @property
    def shape(self) -> tuple[int, ...]:
        """Of one sample, as the model sees it."""
        return tuple(self.transform.arrange(self.source[:1]).shape[1:])

    @property
    def nbytes(self) -> int:
        """Of the stored values."""
        return len(self) * self._row_bytes

    @property
    def _row_bytes(self) -> int:
        return self.source[:1].nbytes

    def read(self, rows: Tensor) -> tuple[Tensor, Tensor | None]:
        """Copies of the stored samples `[B, *stored]` and labels `[B]` at these positions `[B]` (int64)."""
        at = rows if self.rows is None else self.rows.index_select(0, rows)
        label = None if self.source_label is None else self.source_label.index_select(0, at)
        return self.source.index_select(0, at), label

    def blocks(self, every: int = 1) -> Iterator[Tensor]:
        """The stored values `[b, *stored]` in order, block by block: to scan all of them without a copy.

        With `every` n, only every nth block.
        """
        step = max(1, BLOCK_BYTES // max(1, self._row_bytes))
        for start in range(0, len(self), step * every):
            part = slice(start, start + step)
            yield self.source[part] if self.rows is None else self.source.index_select(0, self.rows[part])

    def bounds(self) -> tuple[float, float]:
        """The smallest and the largest stored value; both NaN if one is NaN. There must be samples."""
        found = torch.stack([torch.stack(block.aminmax()) for block in self.blocks()]).aminmax()
        return float(found.min), float(found.max)

    @cached_property
    def identity(self) -> Identity:
        """Number, shape, type and transform of the samples, and checksums of the values (`WHOLE_BYTES`) and the labels."""
        return {
            "samples": len(self),
            "shape": "x".join(map(str, self.source.shape[1:])),
            "dtype": str(self.source.dtype).removeprefix("torch."),
            **self.transform.to_json(),
            "values": _checksum(self.blocks(max(1, self.nbytes // WHOLE_BYTES))),
            "labels": None if self.label is None else _checksum([self.label]),
        }

    def take(self, rows: Tensor | slice) -> "Arrays":
        """Some of these samples: other row numbers, the same source."""
        mine = torch.arange(len(self)) if self.rows is None else self.rows
        return replace(self, rows=mine[rows])

    def to(self, device: torch.device) -> "Arrays":
        """These samples alone in the memory of `device`, without a copy of all on the host."""
        copy = torch.empty((len(self), *self.source.shape[1:]), dtype=self.source.dtype, device=device)
        start = 0
        for block in self.blocks():
            copy[start : start + len(block)] = block
            start += len(block)
        label = self.label
        return replace(self, source=copy, source_label=None if label is None else label.to(device), rows=None)

    def __len__(self) -> int:
        return len(self.source if self.rows is None else self.rows)


def identity(splits: dict[str, Arrays]) -> Identity:
    """Identity of all splits, by names such as `train.samples`. A copy elsewhere, with another date, is the same data."""
    return {f"{name}.{key}": value for name, split in splits.items() for key, value in split.identity.items()}


def _checksum(blocks: Iterable[Tensor]) -> str:
    """The xxh3 checksum of all bytes."""
    digest = xxhash.xxh3_128()
    for block in blocks:
        digest.update(block.contiguous().view(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


SPLIT_SEED = 0
"""Hold-outs do not change with --seed, so runs with other seeds are compared on the same samples."""


def hold_out(arrays: Arrays, fraction: float) -> tuple[Arrays, Arrays]:
    size = round(len(arrays) * fraction)
    order = split_order(len(arrays), SPLIT_SEED)
    return arrays.take(order[size:].sort().values), arrays.take(order[:size].sort().values)
