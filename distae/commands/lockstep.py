"""Several runs in one process, a step of each after the other: what they read of the data is read once."""

import contextlib
import copy
import io
import signal
import sys
import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from concurrent.futures import Future, wait
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

from distae.commands.session import Host, as_before, run_in_turn, run_steps
from distae.config import TrainConfig
from distae.errors import UserError
from distae.runtime.environment import Environment
from distae.runtime.outcome import Outcome
from distae.runtime.signals import StopRequest

if TYPE_CHECKING:
    from torch import Tensor

    from distae.data import Source, Split

SHARED = ("data", "device", "threads", "timeout", "tf32", "fresh")
"""Settings of the process."""
KEPT_BYTES = 1 << 30
"""Of samples that not all runs have taken yet, about."""


def run_in_lockstep(cfgs: Sequence[TrainConfig], env: Environment) -> Outcome:
    """Train these settings (checked), each in its run folder, which ends as it would alone. Raises UserError.

    Returns the outcome of the first run that is not done, or of the last.
    """
    for name in SHARED:
        if len({repr(getattr(cfg, name)) for cfg in cfgs}) > 1:
            raise UserError(f"--together: all runs must have the same --{name}")
    if any(cfg.profile for cfg in cfgs):
        raise UserError("--profile is for one run: leave it out with --together")
    with contextlib.ExitStack() as stack:
        ends = [stack.enter_context(as_before(cfg, env)) for cfg in cfgs[1:]]
        if end := next(filter(None, ends), None):
            return end
        return run_in_turn(cfgs[0], env, contextlib.nullcontext([*cfgs]), Host(train=train))


def train(cfgs: Sequence[TrainConfig], splits: "dict[str, Split]", stop: StopRequest, threads: int) -> Outcome:
    """Train in the current world. After a run that fails the others stop: on one process after a save, as if they had been asked
    to; on several at once, to be resumed from their last checkpoint."""
    from distae import distributed as dist
    from distae.checkpoint.store import CheckpointStore
    from distae.data.checks import check_data

    for cfg in cfgs:
        check_data(cfg, splits)
    shared = with_shared_reads(splits, len(cfgs))
    runs = {run_steps(cfg, shared, stop, threads): Path(str(cfg.run_dir)).name for cfg in cfgs}
    ends = list[Outcome]()
    try:
        while runs:
            for run, name in [*runs.items()]:
                try:
                    with _labelled(name):
                        next(run)
                    if CheckpointStore.last and dist.world().world_size > 1:  # it shares its process group with those of other runs
                        wait([CheckpointStore.last])
                except StopIteration as end:
                    del runs[run]
                    ends.append(end.value)
                    if end.value.outcome == "failed":
                        if dist.world().world_size > 1:
                            return ends[-1]  # the other ranks may wait for this one
                        stop(signal.SIGTERM, None)
    finally:
        for run in runs:
            run.close()
    return next((end for end in ends if end.outcome != "done"), ends[-1])


def _labelled(name: str) -> contextlib.AbstractContextManager[object]:
    """Lines on stderr begin with the run's name; on a terminal each run has a progress bar."""
    return contextlib.nullcontext() if sys.stderr.isatty() else contextlib.redirect_stderr(Labelled(sys.stderr, name))


class Labelled(io.TextIOBase):
    """Writes to another stream, each line after a label."""

    def __init__(self, out: TextIO, label: str) -> None:
        self.out, self.label = out, label

    def write(self, text: str) -> int:
        return self.out.write("".join(f"{self.label}: {line}" for line in text.splitlines(keepends=True)))

    def flush(self) -> None:
        self.out.flush()


def with_shared_reads(splits: "dict[str, Split]", users: int) -> "dict[str, Split]":
    """The same splits; samples that take time to read are kept until all users have read them."""
    from distae.data.storage import streams

    twins = {id(s.source): _shared(s.source, users) for s in splits.values() if streams(s.source)}
    return {name: replace(split, source=twins.get(id(split.source), split.source)) for name, split in splits.items()}


def _shared(source: "Source", users: int) -> "Source":
    """A copy of the source that reads through `SharedReads`."""
    twin = copy.copy(source)
    twin.__dict__["read"] = SharedReads(type(source).read.__get__(twin), users, KEPT_BYTES // max(1, source.row_bytes))
    return twin


class SharedReads:
    """A reader of rows whose results are kept until they have been asked for as often as there are users."""

    def __init__(self, read: "Callable[[Tensor], Tensor]", users: int, most: int) -> None:
        """`most`: rows that are kept, at least the last ones that were read; the oldest go first."""
        self.read, self.users, self.most, self.rows, self.reads = read, users, most, 0, 0
        self.lock = threading.Lock()
        self.kept: OrderedDict[bytes, tuple[Future[Tensor], int]] = OrderedDict()
        """By rows: samples, and how often they will still be asked for."""

    def __call__(self, rows: "Tensor") -> "Tensor":
        """`Source.read`. What it raises is not kept."""
        key, mine = rows.numpy().tobytes(), False
        with self.lock:
            future, left = self.kept.pop(key, (Future["Tensor"](), 0))
            if not left:
                mine, left = True, self.users
                self.rows += len(rows)
                self.reads += 1
            if left > 1:
                self.kept[key] = future, left - 1
            else:
                self.rows -= len(rows)
            while self.rows > self.most and len(self.kept) > 1:
                oldest, _ = self.kept.popitem(last=False)
                self.rows -= len(oldest) // rows.element_size()
        if mine:
            try:
                future.set_result(self.read(rows))
            except BaseException as error:
                with self.lock:
                    if self.kept.pop(key, None):
                        self.rows -= len(rows)
                future.set_exception(error)
        return future.result()
