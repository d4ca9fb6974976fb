"""stdout and stderr may be closed (`| head`, a lost terminal): that must not end training."""

import contextlib
import sys
from typing import Any, TextIO


class SafeStream:
    """A text stream that ignores errors of writing; everything else is passed to the wrapped stream."""

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


def ignore_closed_streams() -> None:
    """Wrap stdout and stderr until the process exits: Python flushes them last, and exits with code 120 if that fails."""
    sys.stdout, sys.stderr = SafeStream(sys.stdout), SafeStream(sys.stderr)
