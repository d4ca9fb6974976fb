"""Counts and interactions: a sparse matrix in memory (CSR), whose batches are made dense."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from distae.config.data.sparse import SparseConfig
from distae.config.sparse import Matrix
from distae.data import runs
from distae.data.datasets.base import register_dataset
from distae.data.source import BLOCK_BYTES, WHOLE_BYTES, Source, checksum
from distae.data.splits import Split, hold_out


@dataclass(frozen=True)
class Compressed:
    """A sparse matrix of compressed rows (CSR), as tensors on one device."""

    values: Tensor
    """`[nnz]` float32 or float64."""
    indices: Tensor
    """`[nnz]`, the column of each value."""
    indptr: Tensor
    """`[N + 1]` int64: where each row begins in `values`, and the end of the last."""
    longest: int
    """Number of values of the fullest row."""

    @classmethod
    def of(cls, values: Tensor, indices: Tensor, indptr: Tensor) -> "Compressed":
        return cls(values, indices, indptr, int(indptr.diff().max()) if len(indptr) > 1 else 0)

    def places(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Positions in `values` of the values of these rows, row by row, `[n]`, and their number in each row, `[B]`."""
        start = self.indptr[rows]
        count = self.indptr[rows + 1] - start
        before = count.cumsum(0) - count
        return torch.arange(int(count.sum()), device=rows.device) + (start - before).repeat_interleave(count), count

    def take(self, rows: Tensor) -> "Compressed":
        """Only these rows."""
        places, count = self.places(rows)
        return Compressed.of(self.values[places], self.indices[places], torch.cat([count.new_zeros(1), count.cumsum(0)]))

    def to(self, device: torch.device) -> "Compressed":
        return Compressed(self.values.to(device), self.indices.to(device), self.indptr.to(device), self.longest)

    def dense(self, rows: Tensor, width: int) -> Tensor:
        """These rows as a dense `[B, width]`."""
        made = torch.zeros((len(rows), width), dtype=self.values.dtype, device=rows.device)
        return self._put(made, rows) if rows.device.type == "cpu" else self._scattered(made, rows)

    def _put(self, made: Tensor, rows: Tensor) -> Tensor:
        """The values into `made` `[B, width]` of zeros, by numpy, which takes a third less time than torch."""
        values, indices, indptr, of_batch = (t.numpy() for t in (self.values, self.indices, self.indptr, rows))
        start = indptr[of_batch]
        count = indptr[of_batch + 1] - start
        end = count.cumsum()
        places = np.arange(count.sum()) + np.repeat(start - (end - count), count)
        at = indices.take(places) + np.repeat(np.arange(0, made.numel(), made.shape[1]), count)
        made.view(-1).numpy()[at] = values.take(places)
        return made

    def _scattered(self, made: Tensor, rows: Tensor) -> Tensor:
        """As `dense`, with padded rows: it does not need the number of values, for which the host would wait for the device."""
        start = self.indptr[rows].unsqueeze(1)
        places = start + torch.arange(self.longest, device=rows.device)
        inside = places < self.indptr[rows + 1].unsqueeze(1)
        places = places.clamp_(max=max(0, len(self.values) - 1))
        # Each cell gets one value, and padding adds 0: the order of additions does not matter.
        return made.scatter_add_(1, self.indices[places].long(), torch.where(inside, self.values[places], 0))


class Rows(Source):
    """The rows of a sparse matrix."""

    def __init__(
        self, csr: Compressed, width: int, label: Tensor | None = None, name: str = "", columns: Mapping[str, Any] | None = None
    ) -> None:
        self.csr, self.label, self.name, self.columns = csr, label, name, columns or {}
        self.shape, self.dtype, self.device = (width,), csr.values.dtype, csr.values.device

    @classmethod
    def of(cls, matrix: Matrix) -> "Rows":
        values, indices, indptr = (torch.from_numpy(a) for a in (matrix.data, matrix.indices, matrix.indptr))
        label = None if matrix.label is None else torch.from_numpy(matrix.label)
        return cls(Compressed.of(values, indices, indptr), matrix.width, label, matrix.name, matrix.aside)

    def __len__(self) -> int:
        return len(self.csr.indptr) - 1

    def read(self, rows: Tensor) -> Tensor:
        return self.csr.dense(rows, self.shape[0])

    def name_of(self, row: int) -> str:
        return f"{self.name} row {row + 1}"

    def to(self, device: torch.device, rows: runs.Rows | None) -> Source:
        csr = self.csr if rows is None else self.csr.take(rows[:])
        label = self.label if self.label is None or rows is None else self.label[rows[:]]
        return Rows(csr.to(device), self.shape[0], None if label is None else label.to(device), self.name)

    def nbytes(self, rows: runs.Rows | None) -> int:
        nnz = len(self.csr.values) if rows is None else int(self.csr.indptr.diff()[rows[:]].sum())
        return nnz * (self.csr.values.itemsize + self.csr.indices.itemsize) + 8 * (len(self) if rows is None else len(rows))

    def values(self, rows: runs.Rows | None) -> Iterator[Tensor]:
        """All stored values, and a single 0 if the matrix has zeros."""
        total = (len(self) if rows is None else len(rows)) * self.shape[0]
        found = 0
        for part in self._some(rows):
            found += len(part.values)
            yield part.values
        if found < total:
            yield self.csr.values.new_zeros(1)

    def checksum(self, rows: runs.Rows | None) -> str:
        every = max(1, self.nbytes(rows) // WHOLE_BYTES)
        return checksum(t for part in self._some(rows, every) for t in (part.indptr, part.indices, part.values))

    def _some(self, rows: runs.Rows | None, every: int = 1) -> Iterator[Compressed]:
        """Consecutive rows, some at a time; with `every` n, only every nth part."""
        chosen = torch.arange(len(self)) if rows is None else rows[:]
        per_row = max(1, self.nbytes(None) // max(1, len(self)))
        parts = torch.split(chosen, max(1, BLOCK_BYTES // per_row))
        yield from (self.csr.take(part) for part in parts[::every])


@register_dataset(SparseConfig)
def load(cfg: SparseConfig) -> tuple[Split, Split]:
    matrix = cfg.matrix()
    return hold_out(Split(Rows.of(matrix), notes=matrix.notes), cfg.test_fraction)
