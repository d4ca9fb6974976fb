"""stdout and stderr that may be closed (`| head`, a lost terminal). Training does not depend on either."""

import contextlib
import signal
import sys
from collections.abc import Callable
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


def exit_code(main: Callable[[], int]) -> int:
    """What `main` returns; 130 and a line where Ctrl-C ends it, as it does before a run listens to signals."""
    try:
        return main()
    except KeyboardInterrupt:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # a second one would be a traceback of the exit
        sys.stderr.write("distae: interrupted by Ctrl-C\n")
        return 130
