"""Signals become a request to stop; the trainer agrees on it with all ranks at a step boundary."""

import contextlib
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from types import FrameType
from typing import NoReturn

SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2, signal.SIGINT, signal.SIGHUP)


class StopRequest:
    """Which signal has asked this process to stop; 0 is none. A second Ctrl-C exits at once, or raises KeyboardInterrupt."""

    def __init__(self, exits: bool = True) -> None:
        """`exits`: whether the process is ours to end."""
        self.signum, self.exits = 0, exits
        self.since = 0.0

    def __call__(self, signum: int, frame: FrameType | None) -> None:
        # One Ctrl-C under torchrun arrives twice, from the terminal and from the agent.
        if self.signum == signal.SIGINT == signum and time.monotonic() - self.since > 1:
            if not self.exits:
                raise KeyboardInterrupt
            os._exit(130)
        if not self.signum:
            self.signum, self.since = signum, time.monotonic()


def heard() -> tuple[signal.Signals, ...]:
    """SIGNALS, without SIGHUP if `nohup` has it ignored."""
    return tuple(s for s in SIGNALS if s != signal.SIGHUP or signal.getsignal(s) != signal.SIG_IGN)


@contextlib.contextmanager
def default_actions() -> Iterator[bool]:
    """Let signals end the process while ranks wait for each other inside torch, where no handler runs; there is nothing to save.

    Yields whether a stop was already requested.
    """
    signums = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP) if _may_handle() else ()
    ours = {s: h for s in signums if isinstance(h := signal.getsignal(s), StopRequest)}
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


def _may_handle() -> bool:
    """Python handles signals in the main thread alone."""
    return threading.current_thread() is threading.main_thread()


@contextlib.contextmanager
def listening(exits: bool = True) -> Iterator[StopRequest]:
    """Record the signals in SIGNALS instead of dying from them; restore the old handlers at the end.

    Does nothing outside the main thread. If the process is not ours to end (`exits` is false), a signal other than Ctrl-C is raised
    again at the end, for the program's own handler. If a StopRequest is already installed (`launch.job`), it is used: no signal is
    lost between the two.
    """
    if not _may_handle():
        yield StopRequest(exits)
        return
    there = signal.getsignal(signal.SIGTERM)
    request = there if isinstance(there, StopRequest) else StopRequest(exits)
    before = {s: signal.signal(s, request) for s in heard()}
    try:
        yield request
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)
    if request is not there and not exits and request.signum not in (0, signal.SIGINT):
        signal.raise_signal(request.signum)
