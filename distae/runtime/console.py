"""stdout and stderr that may be closed (`| head`, a lost terminal). Training does not depend on either."""

import contextlib
import sys
from typing import Any, TextIO


class Lasting:
    """A text stream that drops what it cannot write; all else is the wrapped stream's."""

    def __init__(self, stream: TextIO) -> None:
        self.stream = stream

    def write(self, text: str) -> int:
        with contextlib.suppress(OSError):
            self.stream.write(text)
        return len(text)

    def flush(self) -> None:
        with contextlib.suppress(OSError):
            self.stream.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)


def outlast() -> None:
    """Make this process's stdout and stderr such streams, to its very end: Python flushes them last, and would exit with 120."""
    sys.stdout, sys.stderr = Lasting(sys.stdout), Lasting(sys.stderr)
