"""Row numbers of a very large split, in memory that does not grow with their number."""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


class Runs:
    """Sorted row numbers as runs of consecutive ones. Indexing and `len` are those of the tensor `[n]` that it represents."""

    def __init__(self, starts: Tensor, sizes: Tensor) -> None:
        """`[K]` int64 each: the first row of each run, and its number of rows, at least 1."""
        self.starts, self.sizes = starts, sizes
        self.ends = sizes.cumsum(0)
        """Positions after the last row of each run."""

    @classmethod
    def of(cls, n: int) -> "Runs":
        """All of `n` rows, at least 1."""
        return cls(torch.tensor([0]), torch.tensor([n]))

    def __len__(self) -> int:
        return int(self.ends[-1]) if len(self.ends) else 0

    def __getitem__(self, at: Tensor | slice) -> Tensor:
        """Row numbers at these positions; memory grows with the number of positions only."""
        if isinstance(at, slice):
            at = torch.arange(*at.indices(len(self)))
        run = torch.searchsorted(self.ends, at, right=True)
        return at - (self.ends[run] - self.sizes[run]) + self.starts[run]

    def index_select(self, dim: int, at: Tensor) -> Tensor:
        return self[at]

    def below(self, rows: Tensor) -> Tensor:
        """How many of the row numbers are below each of `rows` `[B]`."""
        before = torch.cat([torch.zeros(1, dtype=torch.int64), self.ends])
        run = torch.searchsorted(self.starts, rows)  # runs that start below
        last = (run - 1).clamp_min(0)
        return torch.where(run > 0, before[last] + torch.minimum(rows - self.starts[last], self.sizes[last]), 0)

    def cut(self, first: int, end: int) -> "Runs":
        """Those from position `first` to before position `end`."""
        befores = self.ends - self.sizes
        low, high = befores.clamp_min(first), self.ends.clamp_max(end)
        kept = high > low
        return Runs((self.starts + low - befores)[kept], (high - low)[kept])

    def numpy(self) -> NDArray[np.int64]:
        """The starts and the sizes, `[2, K]`, for a checksum."""
        return torch.stack([self.starts, self.sizes]).numpy()

    def blocks(self, starts: Tensor, sizes: Tensor) -> "Runs":
        """Those at the positions of these blocks `[K]`, which must be in ascending order."""
        first = torch.searchsorted(self.ends, starts, right=True)
        parts = torch.searchsorted(self.ends, starts + sizes) - first + 1  # runs that each block touches
        block = torch.arange(len(starts)).repeat_interleave(parts)
        run = torch.arange(len(block)) - (parts.cumsum(0) - parts)[block] + first[block]
        begins = self.ends[run] - self.sizes[run]
        low, high = torch.maximum(begins, starts[block]), torch.minimum(self.ends[run], (starts + sizes)[block])
        return Runs(self.starts[run] + low - begins, high - low)


Rows = Tensor | Runs
"""Row numbers `[n]`, as a tensor or as runs."""
