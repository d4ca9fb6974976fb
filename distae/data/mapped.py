"""Arrays in files as one source: files that are memory-mapped, and files that had to be read."""

import math
import os
import time
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from mmap import ACCESS_READ, mmap
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from distae.config.data.stored import Stored
from distae.data.runs import Rows
from distae.data.source import BadRowsError, Source, put_rows
from distae.data.stamps import Stamp, stamp_of, why_changed

SEEN_FOR = 0.01
"""Seconds after which the date of a file is looked at again by a read, which takes as long as a tenth of a small batch."""


@dataclass(frozen=True)
class Part:
    """The samples of one file."""

    path: Path
    rows: Tensor
    """`[n, *shape]` of the values, or, where these are not aligned in the file, `[n, bytes]`."""
    stamp: Stamp | None
    """Size and time of change of the file that is mapped; None if the values were read."""
    file: mmap | None = None
    """The mapped file."""

    def has_its_size(self) -> bool:
        """Whether there is a file behind all of the map: reading behind its end kills the process."""
        return self.stamp is None or self.file is None or self.file.size() == self.stamp[0]

    def why_bad(self) -> str | None:
        """Why the mapped values can no longer be read, if so: reading behind the end of a file kills the process."""
        return None if self.stamp is None else why_changed(self.path, self.stamp)


def mapped(stored: Stored) -> Part:
    """The values of an array, mapped from its file without reading them."""
    n, bytes_per_row = stored.shape[0], stored.row_bytes
    stamp = stamp_of(stored.path)
    if not n:
        return Part(stored.path, torch.empty(stored.shape, dtype=dtype_of(stored)), stamp)
    with stored.path.open("rb") as opened:
        file = mmap(opened.fileno(), 0, access=ACCESS_READ)
    raw = np.frombuffer(file, np.uint8, n * bytes_per_row, stored.offset or 0).reshape(n, bytes_per_row)
    rows = tensor_of(raw)
    aligned = raw.ctypes.data % stored.itemsize == 0
    return Part(stored.path, rows.view(dtype_of(stored)).view(stored.shape) if aligned else rows, stamp, file)


def dtype_of(stored: Stored) -> torch.dtype:
    return getattr(torch, stored.dtype)  # type: ignore[no-any-return]


def tensor_of(x: np.ndarray) -> Tensor:
    """The array's own memory as a tensor; a copy only if torch, or reading by rows, needs another byte order or layout."""
    x = np.require(x, x.dtype.newbyteorder("="), "C")
    with warnings.catch_warnings():
        # Nothing writes to it; a writable private map fails if the file is larger than the memory.
        warnings.filterwarnings("ignore", "The given NumPy array is not writable")
        return torch.from_numpy(x)


class Mapped(Source):
    """Samples in one or more files of arrays, read-only."""

    def __init__(self, parts: Sequence[Part], shape: tuple[int, ...], dtype: torch.dtype, label: Tensor | None = None) -> None:
        """Parts whose samples all have this shape and type; `label` is `[N]` int64."""
        self.parts, self.shape, self.dtype, self.label = parts, shape, dtype, label
        self.origin = str(parts[0].path if len(parts) == 1 else parts[0].path.parent) if all(p.stamp for p in parts) else ""
        self.ends = torch.tensor([len(p.rows) for p in parts]).cumsum(0)
        self.starts = [0, *self.ends.tolist()]
        self.seen = [-math.inf] * len(parts)
        """When a read last found the date of each file as it was."""

    def __len__(self) -> int:
        return int(self.ends[-1])

    def read(self, rows: Tensor) -> Tensor:
        if len(self.parts) == 1:
            return self._read(0, rows, rows)
        part = torch.searchsorted(self.ends, rows, right=True)
        order = part.argsort(stable=True)
        counts = torch.bincount(part, minlength=len(self.parts)).cumsum(0).tolist()
        out = torch.empty((len(rows), *self.shape), dtype=self.dtype)
        bad: dict[int, str] = {}
        for i, (start, end) in enumerate(pairwise([0, *counts])):
            if start < end:
                at = order[start:end]
                try:
                    put_rows(out, at, self._read(i, rows[at] - self.starts[i], rows[at]))
                except BadRowsError as error:
                    bad |= error.reasons
        if bad:
            raise BadRowsError(bad)
        return out

    def _read(self, i: int, rows: Tensor, of_source: Tensor) -> Tensor:
        """Rows of part `i`. Raises BadRowsError with their numbers in the source if its file has changed."""
        part, now = self.parts[i], time.monotonic()
        if now - self.seen[i] > SEEN_FOR or not part.has_its_size():
            if why := part.why_bad():
                raise BadRowsError(dict.fromkeys(of_source.tolist(), why))
            self.seen[i] = now
        return self._typed(part.rows.index_select(0, rows))

    def _typed(self, rows: Tensor) -> Tensor:
        return rows if rows.dtype == self.dtype else rows.view(self.dtype).view(-1, *self.shape)

    def blocks(self, rows: Rows | None, every: int = 1) -> Iterator[Tensor]:
        """All rows as they are in the files, without a copy."""
        if rows is not None:
            yield from super().blocks(rows, every)
            return
        for block in self.ranges(len(self), every):
            for part, start in zip(self.parts, self.starts, strict=False):
                first, end = max(block.start - start, 0), min(block.stop - start, len(part.rows))
                if first >= end:
                    continue
                if why := part.why_bad():
                    raise BadRowsError(dict.fromkeys(range(start + first, start + end), why))
                found = part.rows[first:end]
                yield found if found.dtype == self.dtype else self._typed(found.clone())

    def name_of(self, row: int) -> str:
        i = int(torch.searchsorted(self.ends, row, right=True))
        return f"{os.fspath(self.parts[i].path)} row {row - self.starts[i]}"
