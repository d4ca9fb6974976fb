"""The set-up that the commands share: folder, process group, trainer, and how a run ended."""

import contextlib
import errno
import os
import platform
import sys
import traceback
from collections.abc import Callable, Generator, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from signal import Signals
from typing import TYPE_CHECKING, Any

from distae.config import TrainConfig
from distae.config.check import shared_settings
from distae.config.data import DataConfig
from distae.errors import DistaeError, TrainingError, UserError
from distae.runtime import outcome
from distae.runtime.environment import Environment
from distae.runtime.files import in_words, with_path
from distae.runtime.lock import RunLock
from distae.runtime.outcome import Outcome
from distae.runtime.run_dir import OpenRunDir, check_run_dir, make_run_dir, open_run_dir
from distae.runtime.signals import StopRequest, listening

if TYPE_CHECKING:
    import torch

    from distae.data import Split
    from distae.training.trainer import Trainer


TELL_SECONDS = 30.0
"""Timeout of the rendezvous if the settings, and so --timeout, are unknown."""
FAILURE_SECONDS = 60.0
"""Seconds for a failed rank to report; then the process is ended."""
DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO)


@dataclass(frozen=True)
class Host:
    """Who owns the process: a command of distae, or a program that calls `distae.fit`."""

    load: "Callable[[DataConfig], dict[str, Split]] | None" = None
    """Returns the splits; by default they are read from files."""
    after: "Callable[[Outcome], None] | None" = None
    """Called by all ranks together at the end of a run that has not failed."""
    train: "Callable[[list[TrainConfig], dict[str, Split], StopRequest, int], Outcome] | None" = None
    """Trains the runs, on a number of threads; by default one after the other, until one does not finish."""
    is_ours: bool = True
    """Whether failures are printed, and a second Ctrl-C ends the process; otherwise a single process raises TrainingError."""


def run_in_turn(
    cfg: TrainConfig, env: Environment, runs: AbstractContextManager[list[TrainConfig]], host: Host | None = None
) -> Outcome:
    """One run after the other in one process group; they share the device, threads and data of `cfg`, which is checked first.

    `runs` is entered inside the process group, so it may broadcast. Stops after the first run that does not finish.
    """
    with as_before(cfg, env) as end:
        return end or _run_together(cfg, env, runs, host or Host())


@contextlib.contextmanager
def as_before(cfg: TrainConfig, env: Environment) -> Iterator[Outcome | None]:
    """Check the run folder, and set its outcome aside for a new one; it is put back if the run is invalid.

    Yields an outcome that is final: torchrun restarts a run that stopped on purpose, as if it had crashed.
    """
    run_dir, main = Path(str(cfg.run_dir)), env.rank == 0 and not cfg.fresh
    if main and not env.restarts:
        outcome.put_back(run_dir)
    check_run_dir(cfg)
    end = outcome.read(run_dir)
    stopped = end is not None and end.outcome == "stopped" and not cfg.fresh
    if stopped and not env.restarts and main:
        outcome.set_aside(run_dir)
    try:
        yield end if stopped and env.restarts else None
    except DistaeError:
        if main and not env.restarts_left:
            outcome.put_back(run_dir)
        raise


def _run_together(cfg: TrainConfig, env: Environment, runs: AbstractContextManager[list[TrainConfig]], host: Host) -> Outcome:
    with listening(exits=host.is_ours) as stop:
        os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # one line for a lost rank, not 30 lines of C++ per rank
        from distae import distributed as dist

        with dist.rendezvous(env, cfg.timeout) as meeting:
            device, threads, splits = meeting.prepare(lambda: _prepared(cfg, env, host))
            with dist.session(meeting, device):
                with runs as todo:
                    if host.train:
                        end = host.train(todo, splits, stop, threads)
                    else:
                        end = _one_by_one(todo, splits, stop, threads, host.is_ours)
                    if host.after and end.outcome != "failed":
                        host.after(end)
                if end.outcome == "failed" and env.world_size > 1:
                    # Other ranks, and threads of this one, may wait for a collective that never comes.
                    os._exit(end.exit_code)
                return end


def _one_by_one(todo: list[TrainConfig], splits: "dict[str, Split]", stop: StopRequest, threads: int, is_ours: bool) -> Outcome:
    for cfg in todo:
        end = train_run(cfg, splits, stop, threads, is_ours)
        if end.outcome != "done":
            break
    return end


def _prepared(
    cfg: TrainConfig, env: Environment, host: Host
) -> "tuple[tuple[torch.device, int, dict[str, Split]], dict[str, Any]]":
    """Device, threads and data of this rank, and what must be equal on all ranks. Raises UserError."""
    from distae import data
    from distae import distributed as dist
    from distae.data.checks import check_data
    from distae.models.size import check_size

    device = dist.pick_device(cfg.device, env)
    threads = dist.set_threads(cfg.threads, env)
    dist.set_tf32(cfg.tf32)
    here = None if cfg.fresh else Path(str(cfg.run_dir))
    splits = host.load(cfg.data) if host.load else data.load(cfg.data, here)
    check_data(cfg, splits)
    splits = data.place(cfg.data, splits, threads)
    check_size(cfg, cfg.data.shape(), dist.memory_of(device), env.world_size)
    if env.world_size == 1:
        return (device, threads, splits), {}
    same = {f"data: {key}": value for key, value in data.identity(splits).items()}
    return (device, threads, splits), shared_settings(cfg) | {"the type of device": device.type} | same


def refuse(error: DistaeError, env: Environment) -> int:
    """Print why this rank does not train, and inform the others unless they know. Returns the exit code."""
    if env.rank == 0 or not error.remote:
        who = f"rank {env.rank} ({platform.node()}): " if env.rank else ""
        sys.stderr.write(f"distae: {who}{error}\n")
    if env.world_size > 1 and not error.heard:
        tell_others(error, env)
    return 2 if isinstance(error, UserError) else 1


def tell_others(error: DistaeError, env: Environment) -> None:
    """Join the other ranks only to report the error: if it is on this node alone, they would wait until --timeout."""
    from distae import distributed as dist

    with contextlib.suppress(DistaeError), dist.rendezvous(env, TELL_SECONDS) as meeting:
        meeting.report(error)


def train_run(cfg: TrainConfig, splits: "dict[str, Split]", stop: StopRequest, threads: int, is_ours: bool = True) -> Outcome:
    """Train in the current world and record the outcome. Raises UserError; TrainingError as `Host` says."""
    from distae.training.trainer import result_of

    return result_of(run_steps(cfg, splits, stop, threads, is_ours))


def run_steps(
    cfg: TrainConfig, splits: "dict[str, Split]", stop: StopRequest, threads: int, is_ours: bool = True
) -> Generator[None, None, Outcome]:
    """`train_run`, which pauses after each step. A generator that is closed leaves its folder as after invalid input."""
    from distae import distributed as dist
    from distae.training.trainer import Trainer

    run_dir, main, raises = Path(str(cfg.run_dir)), dist.world().is_main, not is_ours and dist.world().world_size == 1
    folder, trainer, todo = None, None, False
    try:
        folder = _open_folder(cfg)
        if main and cfg.data.on_error == "skip":
            splits["train"].source.remember(run_dir)
        trainer = Trainer(cfg, splits, stop, threads, folder.lock)
        todo = trainer.resume()
        if not todo and main and is_ours:
            more = "--steps" if cfg.steps else "--epochs"
            sys.stderr.write(f"{run_dir} is complete at step {trainer.state.step}: raise {more} to continue, or give --fresh\n")
        done = not todo or (yield from trainer.steps())
        trainer.close()
        signal = "" if done else Signals(trainer.stop.signal).name
        end = Outcome("done" if done else "stopped", trainer.state.step, str(run_dir), trainer.why_early if done else "", signal)
    except (UserError, KeyboardInterrupt, GeneratorExit):
        if trainer:
            trainer.tracker.close()  # a plugin's callback may raise it while the sinks are open
            trainer.checkpoints.abandon()
        if folder:
            folder.withdraw()
        raise
    except Exception as error:
        late = f"rank {dist.world().rank} could not shut down cleanly"
        with contextlib.nullcontext() if raises else dist.ends_within(FAILURE_SECONDS, late):
            if trainer:
                trainer.checkpoints.abandon()  # waits for a commit under way, on a disk that may not answer
            end = _failed(error, trainer, run_dir, quiet=raises)
        if raises:
            if folder and folder.lock:
                _leave_folder(folder.lock, end)
            raise TrainingError(end.reason.removeprefix("rank 0: ")) from error
    if folder and folder.lock:
        is_new = todo and end.outcome == "done"
        _leave_folder(folder.lock, end, lambda: _report(cfg, splits) if is_new and cfg.report else None)
    return end


def _open_folder(cfg: TrainConfig) -> OpenRunDir:
    """Rank 0 locks the run folder; all ranks raise UserError if it is in use."""
    from distae import distributed as dist

    folder, refusal = None, None
    if dist.world().is_main:
        try:
            folder = open_run_dir(cfg)
        except UserError as error:
            refusal = str(error)
    if refusal := dist.broadcast(refusal):
        raise UserError(refusal)
    return folder or make_run_dir(cfg)  # on all ranks: nodes may not share it, or see rank 0's late


def _report(cfg: TrainConfig, splits: "dict[str, Split]") -> None:
    """Write report.html."""
    from distae.commands.report import at_the_end

    if why := at_the_end(cfg, splits):
        sys.stderr.write(f"distae: {why}\n")


def _leave_folder(lock: RunLock, end: Outcome, then: Callable[[], None] = lambda: None) -> None:
    """Rank 0 writes the outcome, does what is left to do in the folder, and releases it."""
    try:
        lock.check()
        end.write()
        then()
    except (OSError, TrainingError) as error:
        sys.stderr.write(f"distae: {outcome.FILE} could not be written ({in_words(error)})\n")
    lock.release()


def _failed(error: Exception, trainer: "Trainer | None", run_dir: Path, quiet: bool) -> Outcome:
    """Report an error on the rank where it happened, and on rank 0. Only a possible bug gets a traceback.

    If only lost contact is known, rank 0 may be the lost rank: the rank that noticed first reports it too.
    """
    from distae import distributed as dist

    disk = isinstance(error, OSError) and error.errno in DISK_ERRORS
    expected = disk or isinstance(error, TrainingError)
    own = with_path(error) if expected else f"{type(error).__name__}: {error}"
    reason = dist.first_failure(error, own)
    if reason.endswith(own):
        reason = own if expected else reason
        if not expected and not quiet:
            traceback.print_exc()
    rank = dist.world().rank
    if rank and reason.startswith(f"rank {rank}: {dist.LOST}"):
        sys.stderr.write(f"distae: rank {rank} ({platform.node()}): {reason.partition(': ')[2]}\n")
    if rank == 0:
        text = f"failed: {reason.removeprefix('rank 0: ')}"
        if trainer and trainer.tracker.sinks:
            trainer.tracker.line(text)
            trainer.tracker.close()
        elif not quiet:
            sys.stderr.write(f"distae: {text}\n")
    return Outcome("failed", trainer.state.step if trainer else 0, str(run_dir), reason)
