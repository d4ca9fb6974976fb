"""Signals become a request to stop; the trainer agrees on it with all ranks at a step boundary."""

import contextlib
import os
import signal
import sys
import time
from collections.abc import Iterator
from types import FrameType
from typing import NoReturn

SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2, signal.SIGINT, signal.SIGHUP)


class StopRequest:
    """Which signal has asked this process to stop; 0 is none. A second Ctrl-C exits at once."""

    def __init__(self) -> None:
        self.signum = 0
        self.since = 0.0

    def __call__(self, signum: int, frame: FrameType | None) -> None:
        # One Ctrl-C under torchrun arrives twice, from the terminal and from the agent.
        if self.signum == signal.SIGINT == signum and time.monotonic() - self.since > 1:
            os._exit(130)
        if not self.signum:
            self.signum, self.since = signum, time.monotonic()


def heard() -> tuple[signal.Signals, ...]:
    """SIGNALS, without SIGHUP where `nohup` had it ignored."""
    return tuple(s for s in SIGNALS if s != signal.SIGHUP or signal.getsignal(s) != signal.SIG_IGN)


@contextlib.contextmanager
def meeting() -> Iterator[bool]:
    """While ranks wait for each other inside torch, where no handler runs: signals end the process, as there is nothing to save.

    Yields whether a stop was requested before.
    """
    ours = {s: h for s in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP) if isinstance(h := signal.getsignal(s), StopRequest)}
    for signum in ours:
        signal.signal(signum, signal.SIG_DFL)
    try:
        yield any(request.signum for request in ours.values())
    finally:
        for signum, request in ours.items():
            signal.signal(signum, request)


def leave(code: int) -> NoReturn:
    """Exit with `code` and ignore signals: once the first rank has exited, srun ends the others with TERM."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    sys.exit(code)


@contextlib.contextmanager
def listening() -> Iterator[StopRequest]:
    """Record the signals in SIGNALS instead of dying from them; restore the old handlers at the end.

    A StopRequest that is already in place (`launch.job`) is used: no signal is lost between the two.
    """
    there = signal.getsignal(signal.SIGTERM)
    request = there if isinstance(there, StopRequest) else StopRequest()
    before = {s: signal.signal(s, request) for s in heard()}
    try:
        yield request
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)
