"""Splits of a source: row numbers, and the transform to the model's values."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

import torch
from torch import Tensor

from distae.data.augment import Augment
from distae.data.bad_rows import BadRows
from distae.data.runs import Rows, Runs
from distae.data.source import Source, Tensors, checksum
from distae.data.transform import Transform
from distae.errors import UserError
from distae.noise import split_order

Identity = dict[str, str | int | float | None]
"""Properties that identify the data, by name."""
TABLE_ROWS = 10**8
"""Above this number of samples nothing is stored per sample: the order is computed when needed, and whole blocks are held out."""
LABELS = 1 << 20
"""Labels read at once."""
MANY_UNITS, BLOCKS = 1000, 10_000
"""From MANY_UNITS units on, whole units are held out; a split of more than TABLE_ROWS with fewer units is cut into BLOCKS."""


@dataclass(frozen=True)
class Split:
    """Some rows of a source."""

    source: Source
    transform: Transform = field(default_factory=Transform)
    """Transform from stored values to the model's."""
    rows: Rows | None = None
    """`[n]` int64, rows of `source` in this split; None is all of them, in order. Above TABLE_ROWS they are runs."""
    notes: tuple[str, ...] = ()
    """Notes on guesses, printed at the start of a run."""
    augment: Augment | None = None
    """Random changes of the samples in training; evaluation does not apply them."""
    bad: BadRows | None = None
    """Rows that cannot be read, which are substituted; None: reading one raises BadRowsError."""

    @classmethod
    def of(
        cls, x: Tensor, label: Tensor | None = None, transform: Transform | None = None, *, notes: tuple[str, ...] = ()
    ) -> "Split":
        """All samples of a tensor `[N, *stored]` (uint8 or floating point), with labels `[N]` int64."""
        return cls(Tensors(x, label), transform or Transform(), None, notes)

    @property
    def x(self) -> Tensor:
        """A copy of all stored values, `[n, *shape]`, in the model's layout."""
        return self.transform.arrange(self.read(torch.arange(len(self)))[0])

    @property
    def label(self) -> Tensor | None:
        """`[n]` int64."""
        if self.source.label is None or self.rows is None:
            return self.source.label
        return self.source.label[self.rows[:]]

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of a sample as the model sees it."""
        return self.transform.shape(self.source.shape)

    @property
    def device(self) -> torch.device:
        """Where the stored values are, and row numbers must be."""
        return self.source.device

    @cached_property
    def units(self) -> Tensor | None:
        """`[U]` int64, the numbers of these samples in each unit of the source that has any.

        None if the source is read row by row, or the samples are not in the order of its rows.
        """
        if self.source.units is None or self.rows is None:
            return self.source.units
        if isinstance(self.rows, Tensor) and bool((self.rows[1:] < self.rows[:-1]).any()):
            return None
        ends = self.source.units.cumsum(0)
        below = self.rows.below(ends) if isinstance(self.rows, Runs) else torch.searchsorted(self.rows, ends)
        sizes = below.diff(prepend=torch.zeros(1, dtype=torch.int64))
        return sizes[sizes > 0]

    @property
    def nbytes(self) -> int:
        """Bytes of the stored values."""
        return self.source.nbytes(self.rows)

    def read(self, positions: Tensor) -> tuple[Tensor, Tensor | None]:
        """Copies of the stored samples `[B, *stored]` and labels `[B]` at these positions `[B]` (int64)."""
        at = self.rows_at(positions)
        if self.bad is None:
            stored = self.source.read(at)
        else:
            stored, at = self.bad.read(self.source, at, lambda number: int(self.rows_at(torch.tensor([number % len(self)]))))
        return stored, None if self.source.label is None else self.source.label.index_select(0, at)

    def rows_at(self, positions: Tensor) -> Tensor:
        """Rows of the source `[B]` at these positions `[B]` (int64)."""
        return positions if self.rows is None else self.rows.index_select(0, positions)

    def blocks(self) -> Iterator[Tensor]:
        """The stored values `[b, *stored]` in order, block by block, to scan them in little memory."""
        return self.source.blocks(self.rows)

    def _label_blocks(self) -> Iterator[Tensor]:
        """The labels in order, block by block."""
        label, n = self.source.label, len(self)
        assert label is not None
        for start in range(0, n, LABELS):
            part = slice(start, min(start + LABELS, n))
            yield label[part if self.rows is None else self.rows[part]]

    def bounds(self) -> tuple[float, float]:
        """The smallest and the largest stored value; both NaN if one is NaN. The split must not be empty.

        If the source knows bounds without reading, it is these, which may be wider.
        """
        if self.source.limits:
            return self.source.limits
        found = torch.stack([torch.stack(values.aminmax()) for values in self.source.values(self.rows)]).aminmax()
        return float(found.min), float(found.max)

    def model_values(self) -> Iterator[Tensor]:
        """Tensors of any shape that together hold every distinct value that the model sees; see `Source.values`."""
        if self.transform.columns:
            return (self.transform.apply(block, torch.float64) for block in self.blocks())
        return (values if self.transform.scale == 1 else values / self.transform.scale for values in self.source.values(self.rows))

    def model_bounds(self) -> tuple[float, float]:
        """The smallest and the largest value that the model sees; of a table, of those not missing. Must not be empty."""
        if not self.transform.columns:
            low, high = self.bounds()
            return low / self.transform.scale, high / self.transform.scale
        ends = [(float(x.nan_to_num(torch.inf).min()), float(x.nan_to_num(-torch.inf).max())) for x in self.model_values()]
        return min(low for low, _ in ends), max(high for _, high in ends)

    @cached_property
    def identity(self) -> Identity:
        """Number, shape, type and transform of the samples, and checksums of the values and the labels."""
        return {
            "samples": len(self),
            "shape": "x".join(map(str, self.source.shape)),
            "dtype": str(self.source.dtype).removeprefix("torch."),
            **self.transform.identity(),
            "values": self.source.checksum(self.rows),
            "labels": None if self.source.label is None else checksum(self._label_blocks()),
        }

    def take(self, rows: Tensor | slice) -> "Split":
        """A split of the samples at these positions; the source is shared, not copied."""
        mine = self.rows
        if mine is None:
            mine = torch.arange(len(self)) if len(self) <= TABLE_ROWS else Runs.of(len(self))
        if isinstance(mine, Runs) and isinstance(rows, slice) and rows.step in (None, 1):
            start, stop, _ = rows.indices(len(self))
            return replace(self, rows=mine[rows] if stop - start <= TABLE_ROWS else mine.cut(start, stop))
        return replace(self, rows=mine[rows])

    def of_classes(self, names: Sequence[str]) -> "Split":
        """The samples of some classes, by name, or by number where they have no names. Raises UserError on unknown ones."""
        label = self.label
        if label is None or self.source.label is None:
            raise UserError("--data.train-classes: the data have no labels")
        classes = self.source.classes
        number = {name: i for i, name in enumerate(classes)} or {str(i): i for i in torch.unique(self.source.label).tolist()}
        if odd := next((name for name in names if name not in number), None):
            raise UserError(f"--data.train-classes: there is no class {odd!r}; valid: {', '.join([*number][:20])}")
        return self.take(torch.isin(label, torch.tensor([number[name] for name in names])).nonzero()[:, 0])

    def to(self, device: torch.device) -> "Split":
        """Only these samples in the memory of `device`, without a copy of all of them on the host."""
        return replace(self, source=self.source.to(device, self.rows), rows=None)

    def __len__(self) -> int:
        return len(self.source if self.rows is None else self.rows)


def identity(splits: dict[str, Split]) -> Identity:
    """Identity of all splits, by names such as `train.samples`. A copy in a different place with a different date is the same."""
    return {f"{name}.{key}": value for name, split in splits.items() for key, value in split.identity.items()}


SPLIT_SEED = 0
"""Hold-outs do not depend on --seed, so runs with different seeds are compared on the same samples."""


def hold_out(split: Split, fraction: float) -> tuple[Split, Split]:
    """The rest, and a random `fraction` of the samples, both in the original order.

    If the source has many units, whole units are held out, so that an evaluation does not read all of them; in splits of more than
    TABLE_ROWS, blocks of rows.
    """
    blocks = split.units
    if blocks is None or len(blocks) < MANY_UNITS:
        blocks = _even(len(split), BLOCKS) if len(split) > TABLE_ROWS else None
    if blocks is not None:
        return _hold_out_blocks(split, fraction, blocks)
    rest, held = held_out(len(split), fraction)
    return split.take(rest), split.take(held)


def held_out(n: int, fraction: float) -> tuple[Tensor, Tensor]:
    """The rest of `n` rows, and a random `fraction` of them, both ascending; always the same ones."""
    order, size = split_order(n, SPLIT_SEED), round(n * fraction)
    return order[size:].sort().values, order[:size].sort().values


def _hold_out_blocks(split: Split, fraction: float, sizes: Tensor) -> tuple[Split, Split]:
    """`hold_out` of whole blocks of consecutive samples, of `sizes` `[K]`."""
    held = torch.zeros(len(sizes), dtype=torch.bool)
    held[split_order(len(sizes), SPLIT_SEED)[: round(len(sizes) * fraction)]] = True
    if len(split) <= TABLE_ROWS:
        of_row = held.repeat_interleave(sizes)
        return split.take((~of_row).nonzero()[:, 0]), split.take(of_row.nonzero()[:, 0])
    mine, starts = split.rows if isinstance(split.rows, Runs) else Runs.of(len(split)), sizes.cumsum(0) - sizes
    rest, chosen = (mine.blocks(starts[which], sizes[which]) for which in (~held, held))
    return replace(split, rows=rest), replace(split, rows=chosen)


def _even(n: int, parts: int) -> Tensor:
    """`n` as `[parts]` sizes that differ by at most 1."""
    return torch.full((parts,), n // parts) + (torch.arange(parts) < n % parts)
