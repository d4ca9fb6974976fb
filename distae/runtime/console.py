"""stdout and stderr may be closed (`| head`, a lost terminal): that must not end training."""

import contextlib
import signal
import sys
from collections.abc import Callable
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


def exit_code(main: Callable[[], int]) -> int:
    """What `main` returns; 130 and one line if Ctrl-C ends it, as it does before a run handles signals."""
    try:
        return main()
    except KeyboardInterrupt:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # a second one would be a traceback of the exit
        sys.stderr.write("distae: interrupted by Ctrl-C\n")
        return 130
