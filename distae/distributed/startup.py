"""Before the process group: the ranks meet at a store, report errors to each other, and compare settings and data."""

import contextlib
import itertools
import json
import os
import platform
import resource
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from datetime import timedelta
from typing import Any, TypeVar

import torch.distributed as td
from torch.distributed.distributed_c10d import Store
from torch.distributed.rendezvous import rendezvous as connect

from distae.errors import DistaeError, TrainingError, UserError
from distae.runtime import signals
from distae.runtime.environment import Environment
from distae.runtime.run_dir import differences

T = TypeVar("T")
GRACE_SECONDS = 5.0
"""After --timeout: lets torch's own errors come first, and the rank that hosts the store report."""
LAST_WAIT = 10.0
"""Seconds to wait for the other ranks if this one was asked to stop before it met them: they may have ended."""


class Rendezvous:
    """The store where the ranks of a job meet; None for a single process."""

    def __init__(self, env: Environment, store: Store | None, timeout: float) -> None:
        self.env, self.store, self.timeout, self.firsts = env, store, timeout, 0

    def prepare(self, work: Callable[[], tuple[T, dict[str, Any]]]) -> T:
        """Run `work` on every rank. It returns a result, and values by name that must be the same on all ranks.

        Raises UserError on every rank if one raises it, or if a value differs from rank 0's; TrainingError if a rank is lost or
        fails in another way.
        """
        if self.store is None:
            return work()[0]
        entered = _PREPARING.set(self)
        try:
            result, identity = work()
            with self._limited():
                if self.env.local_rank == 0:
                    self.store.set(f"prepared/{platform.node()}", "")
                self._compare(identity)
                self._wait_for_all()
        except Exception as error:
            with contextlib.suppress(TrainingError):
                self.report(error)
            raise
        finally:
            _PREPARING.reset(entered)
        return result

    @contextlib.contextmanager
    def first_in_node(self) -> Iterator[bool]:
        """See `first_in_node`."""
        if self.store is None or self.env.local_world_size == 1:
            yield True
            return
        self.firsts += 1
        node = platform.node()
        mine, all_done = f"first {self.firsts}/{node}", f"prepared/{node}"
        if self.env.local_rank:
            with self._limited():
                self._await(mine, all_done, who=f"local rank 0 of {node}")
            yield not self.store.check([mine])
            return
        yield True
        with self._limited():
            self.store.set(mine, "")

    def report(self, error: Exception) -> None:
        """Tell the other ranks why this one does not start, and keep the store until they have read it."""
        assert self.store is not None
        with self._limited():
            if not (isinstance(error, DistaeError) and error.remote):
                kind = 2 if isinstance(error, UserError) else 1
                text = str(error) if isinstance(error, DistaeError) else f"{type(error).__name__}: {error}"
                self.store.compare_set("error", "", f"{kind}rank {self.env.rank} ({platform.node()}): {text}")
            left, end = self.store.add("left", 1), time.monotonic() + GRACE_SECONDS
            while self.env.rank == 0 and left < self.env.world_size and time.monotonic() < end:
                time.sleep(0.05)
                left = self.store.add("left", 0)

    def _compare(self, identity: dict[str, Any]) -> None:
        assert self.store is not None
        text = json.dumps(identity)
        if self.env.rank == 0:
            self.store.set("identity", text)
            return
        self._await("identity")
        if differ := differences(json.loads(self.store.get("identity")), json.loads(text), "on rank 0"):
            raise UserError(f"settings and data must be the same on all ranks: {differ}")

    def _wait_for_all(self) -> None:
        assert self.store is not None
        self.store.set(f"ready/{self.env.rank}", "")
        if self.store.add("ready", 1) == self.env.world_size:
            self.store.set("go", "")
        self._await("go")

    def _await(self, *keys: str, who: str = "") -> None:
        """Return once a rank has set one of the keys. Raises a UserError that a rank posted, TrainingError if `who` is lost.

        By default that is every rank that is not ready.
        """
        assert self.store is not None
        end, pause = time.monotonic() + self.timeout, 0.01
        while not any(self.store.check([key]) for key in keys):
            if self.store.check(["error"]):
                raise _remote(self.store.get("error").decode())
            if time.monotonic() > end:
                raise TrainingError(f"lost contact with {who or self._missing()}: not ready {self._waited}")
            time.sleep(pause)
            pause = min(2 * pause, 0.25)

    def _missing(self) -> str:
        assert self.store is not None
        missing = [r for r in range(self.env.world_size) if not self.store.check([f"ready/{r}"]) and r != self.env.rank]
        return f"rank {', '.join(map(str, missing))}"

    @property
    def _waited(self) -> str:
        return f"within {self.timeout:g} s (--timeout)"

    @contextlib.contextmanager
    def _limited(self) -> Iterator[None]:
        late = f"lost contact with rank 0: no answer {self._waited}"
        with (
            signals.default_actions() as stop_requested,
            explaining_lost_ranks(),
            ends_within(self.timeout + 2 * GRACE_SECONDS, late),
        ):
            self.timeout = min(self.timeout, LAST_WAIT) if stop_requested else self.timeout
            yield


_PREPARING: ContextVar[Rendezvous | None] = ContextVar("PREPARING", default=None)
"""Whose `prepare` this thread is in."""


def first_in_node() -> contextlib.AbstractContextManager[bool]:
    """A block that local rank 0 of each node leaves before its other ranks enter it, while all `prepare`; True for the first.

    For what one process of a node finds out and leaves on its disk. Raises what `prepare` does where another rank fails meanwhile.
    Outside of `prepare` every process is first.
    """
    meeting = _PREPARING.get()
    return meeting.first_in_node() if meeting else contextlib.nullcontext(True)


def _remote(reported: str) -> DistaeError:
    """Another rank's error, from its exit code and message."""
    error = (UserError if reported[0] == "2" else TrainingError)(reported[1:])
    error.remote = True
    return error


@contextlib.contextmanager
def rendezvous(env: Environment, timeout: float) -> Iterator[Rendezvous]:
    """Meet the other ranks. Raises UserError if the port is taken, TrainingError if they do not arrive within `timeout` seconds."""
    if env.world_size == 1:
        yield Rendezvous(env, None, timeout)
        return
    _raise_file_limit()
    try:
        yield Rendezvous(env, _connect(env, timeout), timeout)
    except DistaeError as error:
        error.heard = True  # there is no store to report it through
        raise


def _connect(env: Environment, timeout: float) -> Store:
    where = env.rendezvous
    if where == "env://":
        where = f"MASTER_ADDR {os.environ.get('MASTER_ADDR')}, MASTER_PORT {os.environ.get('MASTER_PORT')}"
    late = f"{where}: the other ranks did not connect within {timeout:g} s (--timeout)"
    try:
        with signals.default_actions() as stop_requested, ends_within(timeout + 2 * GRACE_SECONDS, late):
            limit = timedelta(seconds=min(timeout, LAST_WAIT) if stop_requested else timeout)
            store, *_ = next(connect(env.rendezvous, env.rank, env.world_size, timeout=limit))
    except ValueError as error:  # a variable of torchrun's is missing
        raise UserError(str(error)) from error
    except td.DistError as error:
        if "EADDRINUSE" in str(error):
            raise UserError(f"{where}: the port is in use by another program; choose another, or start again") from error
        raise TrainingError(late) from error
    # torchrun's agent keeps its store over restarts, with addresses of dead ranks in it (seen on torch 2.15): use a new prefix.
    # Agents of several nodes count restarts differently, so they must not share it (slurm/torchrun.sbatch).
    start = env.restarts if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True" else 0
    return td.PrefixStore(f"start_{start}/{next(_meetings)}", store)


_meetings = itertools.count()
"""Numbers the starts within a process: ranks that train several models meet once for each, perhaps in the same store."""


@contextlib.contextmanager
def explaining_lost_ranks() -> Iterator[None]:
    """Raises TrainingError if torch loses another rank before training."""
    try:
        yield
    except RuntimeError as error:
        raise TrainingError(f"lost contact with another rank at the start ({str(error).splitlines()[0]})") from error


@contextlib.contextmanager
def ends_within(seconds: float, message: str) -> Iterator[None]:
    """End the process with code 1 if the block takes longer: a frozen store server never answers."""
    timer = threading.Timer(seconds, _end, (message,))
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def _end(message: str) -> None:
    sys.stderr.write(f"distae: {message}\n")
    sys.stderr.flush()
    os._exit(1)


def _raise_file_limit() -> None:
    """Two gloo meshes open 2 (N - 1) sockets on each of N ranks, and 1,024 is a common soft limit."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
