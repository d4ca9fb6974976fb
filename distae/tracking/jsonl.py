"""metrics.jsonl."""

import contextlib
import json
import os
from pathlib import Path

from distae.tracking.sink import Row


class Jsonl:
    """metrics.jsonl: one object per line, handed to the operating system line by line. Rows that cannot be written are kept."""

    def __init__(self, path: Path, size: int | None) -> None:
        """Continue the file after its first `size` bytes: what a checkpoint does not know of is cut. None keeps all."""
        self.file = path.open("ab", buffering=0)
        self.size = path.stat().st_size if size is None else min(size, path.stat().st_size)
        self.file.truncate(self.size)
        self.late: list[bytes] = []

    def row(self, row: Row) -> None:
        self.late.append(json.dumps(dict(row)).encode() + b"\n")
        with contextlib.suppress(OSError):
            self._flush()

    def sync(self) -> int:
        """Make all rows durable; the size of the file in bytes. Raises OSError where they cannot be written."""
        self._flush()
        os.fsync(self.file.fileno())
        return self.size

    def _flush(self) -> None:
        """Write all rows or none, so that no torn line stays on a full disk."""
        lines = memoryview(b"".join(self.late))
        try:
            while lines:
                lines = lines[self.file.write(lines) :]
        except OSError:
            self.file.truncate(self.size)
            raise
        self.size += sum(map(len, self.late))
        self.late.clear()

    def image(self, name: str, path: Path, step: int) -> None:
        pass

    def close(self) -> None:
        self.file.close()
