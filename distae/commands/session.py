"""The set-up that the commands share: folder, process group, trainer, and how a run ended."""

import contextlib
import errno
import os
import platform
import sys
import traceback
from collections.abc import Callable, Iterable
from pathlib import Path
from signal import Signals
from typing import TYPE_CHECKING, Any

from distae.config import TrainConfig
from distae.config.check import shared_settings
from distae.config.data import DataConfig
from distae.errors import DistaeError, TrainingError, UserError
from distae.runtime.environment import Environment
from distae.runtime.files import in_words
from distae.runtime.lock import RunLock
from distae.runtime.outcome import FILE, Outcome, read
from distae.runtime.run_dir import check_run_dir, make_run_dir, open_run_dir
from distae.runtime.signals import StopRequest, listening

if TYPE_CHECKING:
    import torch

    from distae.data import Split
    from distae.training.trainer import Trainer


TELL_SECONDS = 30.0
"""Timeout to meet the others if the settings, and with them --timeout, are unknown."""
FAILURE_SECONDS = 60.0
"""Seconds for a failed rank to report; then the process is ended."""
DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO)


Load = Callable[[DataConfig], "dict[str, Split]"]


def run_in_turn(
    cfg: TrainConfig, env: Environment, runs: Iterable[TrainConfig], load: Load | None = None, stop: StopRequest | None = None
) -> Outcome:
    """One run after the other in one process group; they share the device, threads and data of `cfg`, which is checked first.

    `runs` is iterated inside the process group: a generator may broadcast. `load` gives the splits, by default those of the files.
    `stop` is of a caller that handles signals, and whose process this is: a single process then raises TrainingError where it
    would report a failure.
    """
    run_dir = Path(str(cfg.run_dir))
    check_run_dir(cfg)
    end = read(run_dir)
    if end and end.outcome == "stopped" and not cfg.fresh:
        if env.restarts:
            return end  # torchrun restarts a run that stopped on purpose, as if it had crashed
        if env.rank == 0:
            (run_dir / FILE).unlink(missing_ok=True)  # else a restart would read the old one
    with contextlib.nullcontext(stop) if stop else listening() as request:
        os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # one line for a lost rank, not 30 lines of C++ per rank
        from distae import distributed as dist

        with dist.rendezvous(env, cfg.timeout) as meeting:
            device, threads, splits = meeting.prepare(lambda: _prepared(cfg, env, load))
            with dist.session(meeting, device):
                return [train_run(c, splits, request, threads, raises=stop is not None) for c in runs][-1]


def _prepared(
    cfg: TrainConfig, env: Environment, load: Load | None
) -> "tuple[tuple[torch.device, int, dict[str, Split]], dict[str, Any]]":
    """Device, threads and data of this rank, and what must be equal on all ranks. Raises UserError."""
    from distae import data
    from distae import distributed as dist
    from distae.data.checks import check_data
    from distae.models.size import check_size

    device = dist.pick_device(cfg.device, env)
    threads = dist.set_threads(cfg.threads, env)
    dist.set_tf32(cfg.tf32)
    splits = (load or data.load)(cfg.data)
    check_data(cfg, splits)
    check_size(cfg, cfg.data.shape(), dist.memory_of(device))
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
        _tell_others(error, env)
    return 2 if isinstance(error, UserError) else 1


def _tell_others(error: DistaeError, env: Environment) -> None:
    """Meet the others only to report the error: it may be on this rank's node alone, and they would wait for --timeout."""
    from distae import distributed as dist

    with contextlib.suppress(DistaeError), dist.rendezvous(env, TELL_SECONDS) as meeting:
        meeting.refuse(error)


def train_run(cfg: TrainConfig, splits: "dict[str, Split]", stop: StopRequest, threads: int, raises: bool = False) -> Outcome:
    """Train in the current world, and write how the run ended. Raises UserError; with `raises`, a single process TrainingError."""
    from distae import distributed as dist
    from distae.training.trainer import Trainer

    run_dir, main, alone = Path(str(cfg.run_dir)), dist.world().is_main, raises and dist.world().world_size == 1
    lock, trainer = None, None
    try:
        lock = _open_folder(cfg)
        trainer = Trainer(cfg, splits, stop, threads, lock)
        todo = trainer.resume()
        if not todo and main and cfg.progress == "auto":
            more = "--steps" if cfg.steps else "--epochs"
            sys.stderr.write(f"{run_dir} is complete at step {trainer.state.step}: give more {more} to continue, or --fresh\n")
        done = not todo or trainer.fit()
        trainer.close()
        signal = "" if done else Signals(trainer.stop.signal).name
        end = Outcome("done" if done else "stopped", trainer.state.step, str(run_dir), trainer.why_early if done else "", signal)
    except (UserError, KeyboardInterrupt):
        if trainer:
            trainer.tracker.close()  # a callback of a plugin may raise it when they are open
            trainer.checkpoints.abandon()
        if lock:
            lock.release()
        raise
    except Exception as error:
        late = f"rank {dist.world().rank} could not shut down cleanly"
        with contextlib.nullcontext() if alone else dist.ends_within(FAILURE_SECONDS, late):
            if trainer:
                trainer.checkpoints.abandon()  # waits for a commit under way, on a disk that may not answer
            end = _failed(error, trainer, run_dir, quiet=alone)
        if alone:
            if lock:
                _leave_folder(lock, end)
            raise TrainingError(end.reason.removeprefix("rank 0: ")) from error
    if lock:
        _leave_folder(lock, end)
    if end.outcome == "failed" and dist.world().world_size > 1:
        # Other ranks, and threads of this one, may wait for a collective that never comes.
        os._exit(end.exit_code)
    return end


def _open_folder(cfg: TrainConfig) -> RunLock | None:
    """Rank 0 locks the run folder; all ranks raise UserError if it is in use."""
    from distae import distributed as dist

    lock, refusal = None, None
    if dist.world().is_main:
        try:
            lock = open_run_dir(cfg)
        except UserError as error:
            refusal = str(error)
    if refusal := dist.broadcast(refusal):
        raise UserError(refusal)
    make_run_dir(cfg)  # by all: nodes may not share it, or see rank 0's late
    return lock


def _leave_folder(lock: RunLock, end: Outcome) -> None:
    """Rank 0 writes how the run ended, and releases the folder."""
    try:
        lock.check()
        end.write()
    except (OSError, TrainingError) as error:
        sys.stderr.write(f"distae: {FILE} could not be written ({in_words(error)})\n")
    lock.release()


def _failed(error: Exception, trainer: "Trainer | None", run_dir: Path, quiet: bool) -> Outcome:
    """Report an error on the rank where it happened, and on rank 0. Only a possible bug gets a traceback.

    If all that is known is lost contact, rank 0 may be the lost one: the rank that noticed first reports it too.
    """
    from distae import distributed as dist

    disk = isinstance(error, OSError) and error.errno in DISK_ERRORS
    expected = disk or isinstance(error, TrainingError)
    own = str(error) if expected else f"{type(error).__name__}: {error}"
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
