"""metrics.jsonl."""

import contextlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import xxhash

from distae.runtime.files import open_append
from distae.tracking.sink import Row

LONGEST_ROW = 1 << 20
"""Maximum bytes of a row."""


class Extent(NamedTuple):
    """metrics.jsonl as recorded in a checkpoint."""

    size: int = 0
    """Bytes."""
    xxh3: str | None = None
    """Checksum of these bytes; None in older checkpoints."""


class Jsonl:
    """metrics.jsonl: one object per line, unbuffered. Rows that cannot be written are kept and written with the next."""

    def __init__(self, path: Path, size: int | None, may_write: Callable[[], None] = lambda: None) -> None:
        """Continue the file after its first `size` bytes: rows after the checkpoint are cut. None keeps all.

        `may_write` is called before each row; it raises TrainingError if the run folder is no longer ours.
        Raises OSError if the file cannot be written to, or is not a regular file in its folder.
        """
        self.may_write = may_write
        self.file = os.fdopen(open_append(path), "r+b", buffering=0)
        there = os.fstat(self.file.fileno()).st_size
        expected = there if size is None else size
        self.size = self._end_of_rows(min(expected, there))
        self.lost = expected - self.size
        """Bytes of rows that are in the checkpoint's record but missing from the file."""
        self.file.truncate(self.size)
        self.digest = xxhash.xxh3_128()
        """Checksum of the whole file: a checkpoint keeps it, so that a resume notices changed rows."""
        for start in range(0, self.size, LONGEST_ROW):
            self.digest.update(os.pread(self.file.fileno(), min(LONGEST_ROW, self.size - start), start))
        self.unwritten: list[bytes] = []

    def _end_of_rows(self, size: int) -> int:
        """`size` without a torn last row, which the next row would be appended to."""
        start = max(0, size - LONGEST_ROW)
        return start + os.pread(self.file.fileno(), size - start, start).rfind(b"\n") + 1

    def row(self, row: Row) -> None:
        self.may_write()
        self.unwritten.append(json.dumps(dict(row)).encode() + b"\n")
        with contextlib.suppress(OSError):
            self._flush()

    def sync(self) -> Extent:
        """Make all rows durable; returns the file's size and checksum. Raises OSError if they cannot be written."""
        self.may_write()
        self._flush()
        os.fsync(self.file.fileno())
        return Extent(self.size, self.digest.hexdigest())

    def _flush(self) -> None:
        """Write all rows or none, so that a full disk leaves no torn line."""
        lines = memoryview(b"".join(self.unwritten))
        try:
            while lines:
                lines = lines[self.file.write(lines) :]
        except OSError:
            self.file.truncate(self.size)
            raise
        self.size += sum(map(len, self.unwritten))
        self.digest.update(b"".join(self.unwritten))
        self.unwritten.clear()

    def image(self, name: str, path: Path, step: int) -> None:
        pass

    def close(self) -> None:
        self.file.close()
