"""Where stored samples come from: the contract of every kind of source, and the one for tensors."""

import copy
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol, Self

import torch
import xxhash
from torch import Tensor

from distae.data.runs import Rows
from distae.errors import TrainingError

BLOCK_BYTES = 16 << 20
"""Bytes of a block: beyond `WHOLE_BYTES`, blocks evenly spaced are scanned."""
READ_BYTES = 1 << 20
"""Bytes read at once of a block, so that a scan takes little memory."""
WHOLE_BYTES = 4 << 30
"""Up to this size in bytes the checksum of a split is of all values, above of sampled blocks."""
SHOWN = 5
"""Maximum number of reasons in a message."""


class BadRowsError(TrainingError):
    """Rows that cannot be read, and why."""

    def __init__(self, reasons: Mapping[int, str]) -> None:
        different = [*dict.fromkeys(reasons.values())]  # a file that is gone is the reason of many rows
        more = f"; and {len(different) - SHOWN} more" if len(different) > SHOWN else ""
        super().__init__("; ".join(different[:SHOWN]) + more)
        self.reasons = dict(reasons)


class KnownFeatures(Protocol):
    """What samples were made of: sums of vectors."""

    vectors: Tensor
    """`[F, values]`."""

    def activations(self, rows: Tensor) -> Tensor:
        """How much of each vector the samples `rows` `[n]` int64, rising, have: `[n, F]`."""


class Source(ABC):
    """Stored samples, read by row. Splits are row numbers over one source: nothing is copied per split or per rank."""

    shape: tuple[int, ...]
    """Shape of a stored sample."""
    dtype: torch.dtype
    """Type of the values that `read` returns: uint8 or floating point."""
    label: Tensor | None = None
    """`[N]` int64."""
    device: torch.device = torch.device("cpu")
    """Where the values are, and row numbers must be."""
    units: Tensor | None = None
    """`[U]` int64, sizes of units of consecutive rows that are read together, such as row groups; None: read row by row."""
    units_kept: int = 0
    """Set by the trainer: number of recently read units to keep, because the order needs them again soon."""
    decodes: bool = False
    """Whether reading takes CPU time, so that worker threads should read ahead."""
    origin: str = ""
    """The file that the values are memory-mapped from, as shown to users: `x.npy`; empty if they are not mapped."""
    left_out: Mapping[str, str] = {}
    """Files that the source could not use, and why."""
    classes: tuple[str, ...] = ()
    """Names of the classes, by label; empty if they have none."""
    limits: tuple[float, float] | None = None
    """Bounds of the stored values, if they are known without reading them."""
    columns: Mapping[str, Any] = {}
    """Arrays `[N]` by name that are not trained on: ids, file names, covariates."""
    features: KnownFeatures | None = None
    """What the samples were made of, if it is known."""

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def read(self, rows: Tensor) -> Tensor:
        """Copies of the stored samples `[B, *shape]` at the rows `[B]` (int64), on the CPU; from any thread.

        Raises BadRowsError on rows that cannot be read.
        """

    def read_good(self, rows: Tensor) -> tuple[Tensor, Tensor, dict[int, str]]:
        """The samples of those rows `[B]` that can be read, these rows, and why each other row cannot be read."""
        bad: dict[int, str] = {}
        while True:
            good = torch.tensor([row for row in rows.tolist() if row not in bad], dtype=torch.int64)
            try:
                return self.read(good), good, bad
            except BadRowsError as error:
                if not error.reasons.keys() - bad.keys():
                    raise
                bad |= error.reasons

    def name_of(self, row: int) -> str:
        """Name of a row in messages: a file, or a file and a row."""
        return f"row {row}"

    def names(self, rows: Tensor) -> Any:
        """What to call rows `[n]` in results: an array `[n]` of their numbers, or of files."""
        return rows.numpy()

    def remember(self, run_dir: Path) -> None:  # noqa: B027
        """Write what `datasets.load` needs to find the same rows after files have vanished; for --data.on-error skip."""

    @property
    def version(self) -> str:
        """Version of the files, such as their times: a decoded copy of a different version is not used."""
        return ""

    def checksum(self, rows: Rows | None) -> str:
        """Of the stored values of these rows, or of all rows: of all values up to `WHOLE_BYTES`, of sampled blocks above."""
        size = (len(self) if rows is None else len(rows)) * self.row_bytes
        return checksum(self.blocks(rows, max(1, size // WHOLE_BYTES)))

    def blocks(self, rows: Rows | None, every: int = 1) -> Iterator[Tensor]:
        """The stored values `[b, *shape]` of these rows, or of all rows, in order, block by block, to scan them in little memory.

        With `every` n, only every nth block.
        """
        step = max(1, READ_BYTES // max(1, self.row_bytes))
        for block in self.ranges(len(self) if rows is None else len(rows), every):
            for start in range(block.start, block.stop, step):
                part = slice(start, min(start + step, block.stop))
                yield self.read(torch.arange(part.start, part.stop) if rows is None else rows[part])

    def ranges(self, n: int, every: int = 1) -> Iterator[slice]:
        """Consecutive rows of `n`, BLOCK_BYTES of them at a time; with `every` n, only every nth part."""
        step = max(1, BLOCK_BYTES // max(1, self.row_bytes))
        return (slice(start, min(start + step, n)) for start in range(0, n, step * every))

    def values(self, rows: Rows | None) -> Iterator[Tensor]:
        """Tensors of any shape that together hold every distinct value of these rows, or of all rows: to find bounds."""
        return self.blocks(rows)

    def nbytes(self, rows: Rows | None) -> int:
        """Bytes of memory that these rows, or all rows, take."""
        return (len(self) if rows is None else len(rows)) * self.row_bytes

    def to(self, device: torch.device, rows: Rows | None) -> "Source":
        """Only these rows, or all rows, in the memory of `device`, without a copy of all of them on the host."""
        n = len(self) if rows is None else len(rows)
        copy, start = torch.empty((n, *self.shape), dtype=self.dtype, device=device), 0
        for block in self.blocks(rows):
            copy[start : start + len(block)] = block
            start += len(block)
        label = self.label if self.label is None or rows is None else self.label[rows[:]]
        return Tensors(copy, None if label is None else label.to(device))

    @property
    def row_type(self) -> str:
        """Type and shape of a stored sample, as shown to users: `uint8 [3, 32, 32]`."""
        return f"{str(self.dtype).removeprefix('torch.')} {list(self.shape)}"

    @property
    def row_bytes(self) -> int:
        """Bytes of a stored sample as it is read."""
        return torch.Size(self.shape).numel() * self.dtype.itemsize


class Tensors(Source):
    """Samples in memory or in a memory-mapped file, read-only."""

    def __init__(self, x: Tensor, label: Tensor | None = None, origin: str = "") -> None:
        """`x` is `[N, *stored]` uint8 or floating point, `label` `[N]` int64; `origin` says what `x` is mapped from."""
        self.x, self.label, self.origin = x, label, origin
        self.shape, self.dtype, self.device = tuple(x.shape[1:]), x.dtype, x.device

    def __len__(self) -> int:
        return len(self.x)

    def with_values(self, x: Tensor) -> Self:
        """The same rows, with other values `[N, *stored]`."""
        other = copy.copy(self)
        other.x, other.shape, other.dtype = x, tuple(x.shape[1:]), x.dtype
        return other

    def read(self, rows: Tensor) -> Tensor:
        return self.x.index_select(0, rows)

    def blocks(self, rows: Rows | None, every: int = 1) -> Iterator[Tensor]:
        if rows is not None:
            yield from super().blocks(rows, every)
            return
        yield from (self.x[part] for part in self.ranges(len(self), every))


def put_rows(into: Tensor, at: Tensor, rows: Tensor) -> None:
    """`into[at] = rows` for `[B, *shape]` on the CPU: torch copies value by value, which takes ten times as long."""
    into.view(torch.uint8).numpy()[at.numpy()] = rows.contiguous().view(torch.uint8).numpy()


def checksum(blocks: Iterable[Tensor]) -> str:
    """The xxh3 checksum of all bytes."""
    digest = xxhash.xxh3_128()
    for block in blocks:
        digest.update(block.contiguous().view(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
