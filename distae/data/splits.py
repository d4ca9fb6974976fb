"""Splits of a source: row numbers, and the transform to the model's values."""

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import cached_property

import torch
from torch import Tensor

from distae.data.source import Source, Tensors, checksum
from distae.data.transform import Transform
from distae.noise import split_order

Identity = dict[str, str | int | float | None]
"""What identifies the data, by name."""


@dataclass(frozen=True)
class Split:
    """Some rows of a source."""

    source: Source
    transform: Transform = field(default_factory=Transform)
    """Transform from stored values to the model's."""
    rows: Tensor | None = None
    """`[n]` int64, rows of `source` in this split; None is all of them, in order."""
    notes: tuple[str, ...] = ()
    """Notes on guesses, printed at the start of a run."""

    @classmethod
    def of(
        cls, x: Tensor, label: Tensor | None = None, transform: Transform | None = None, *, notes: tuple[str, ...] = ()
    ) -> "Split":
        """All samples of a tensor `[N, *stored]` (uint8 or floating point), with labels `[N]` int64."""
        return cls(Tensors(x, label), transform or Transform(), None, notes)

    @property
    def x(self) -> Tensor:
        """The stored values `[n, *shape]` in the model's layout: a copy of all."""
        return self.transform.arrange(self.read(torch.arange(len(self)))[0])

    @property
    def label(self) -> Tensor | None:
        """`[n]` int64."""
        return self.source.label if self.source.label is None or self.rows is None else self.source.label[self.rows]

    @property
    def shape(self) -> tuple[int, ...]:
        """Of one sample, as the model sees it."""
        return self.transform.shape(self.source.shape)

    @property
    def device(self) -> torch.device:
        """Where the stored values are, and row numbers must be."""
        return self.source.device

    @property
    def nbytes(self) -> int:
        """Of the stored values."""
        return self.source.nbytes(self.rows)

    def read(self, positions: Tensor) -> tuple[Tensor, Tensor | None]:
        """Copies of the stored samples `[B, *stored]` and labels `[B]` at these positions `[B]` (int64)."""
        at = positions if self.rows is None else self.rows.index_select(0, positions)
        label = None if self.source.label is None else self.source.label.index_select(0, at)
        return self.source.read(at), label

    def blocks(self) -> Iterator[Tensor]:
        """The stored values `[b, *stored]` in order, block by block: to scan all of them without a copy."""
        return self.source.blocks(self.rows)

    def bounds(self) -> tuple[float, float]:
        """The smallest and the largest stored value; both NaN if one is NaN. There must be samples."""
        found = torch.stack([torch.stack(values.aminmax()) for values in self.source.values(self.rows)]).aminmax()
        return float(found.min), float(found.max)

    def model_values(self) -> Iterator[Tensor]:
        """Tensors of any shape with every value that the model sees; of a sparse matrix, of zeros at most one."""
        if self.transform.columns:
            return (self.transform.apply(block, torch.float64) for block in self.blocks())
        return (values if self.transform.scale == 1 else values / self.transform.scale for values in self.source.values(self.rows))

    def model_bounds(self) -> tuple[float, float]:
        """The smallest and the largest value that the model sees; of a table, missing values aside. There must be samples."""
        if not self.transform.columns:
            low, high = self.bounds()
            return low / self.transform.scale, high / self.transform.scale
        seen = list(self.model_values())
        return min(float(x.nan_to_num(torch.inf).min()) for x in seen), max(float(x.nan_to_num(-torch.inf).max()) for x in seen)

    @cached_property
    def identity(self) -> Identity:
        """Number, shape, type and transform of the samples, and checksums of the values and the labels."""
        return {
            "samples": len(self),
            "shape": "x".join(map(str, self.source.shape)),
            "dtype": str(self.source.dtype).removeprefix("torch."),
            **self.transform.identity(),
            "values": self.source.checksum(self.rows),
            "labels": None if self.label is None else checksum([self.label]),
        }

    def take(self, rows: Tensor | slice) -> "Split":
        """Some of these samples: other row numbers, the same source."""
        mine = torch.arange(len(self)) if self.rows is None else self.rows
        return replace(self, rows=mine[rows])

    def to(self, device: torch.device) -> "Split":
        """These samples alone in the memory of `device`, without a copy of all on the host."""
        return replace(self, source=self.source.to(device, self.rows), rows=None)

    def __len__(self) -> int:
        return len(self.source if self.rows is None else self.rows)


def identity(splits: dict[str, Split]) -> Identity:
    """Identity of all splits, by names such as `train.samples`. A copy elsewhere, with another date, is the same data."""
    return {f"{name}.{key}": value for name, split in splits.items() for key, value in split.identity.items()}


SPLIT_SEED = 0
"""Hold-outs do not change with --seed, so runs with other seeds are compared on the same samples."""


def hold_out(split: Split, fraction: float) -> tuple[Split, Split]:
    """The rest, and a random `fraction` of the samples, both in their order."""
    size = round(len(split) * fraction)
    order = split_order(len(split), SPLIT_SEED)
    return split.take(order[size:].sort().values), split.take(order[:size].sort().values)
