"""Train an autoencoder.

    python -m distae.train --model vae --data mnist --epochs 10
    torchrun --standalone --nproc_per_node=4 -m distae.train --config recipes/vae_mnist.toml

`run` neither parses nor exits; `main` maps its outcome to an exit code:
0 done, 1 failed, 2 a user's mistake, 75 stopped after a save.
"""

import errno
import os
import platform
import shutil
import sys
import traceback
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from signal import Signals
from typing import TYPE_CHECKING

from distae import console, runfolder
from distae.config import TrainConfig, check, parse, write_toml
from distae.environment import Environment, environment
from distae.errors import TrainingError, UserError
from distae.outcome import FILE, Outcome, read
from distae.runlock import RunLock
from distae.stop import StopRequest, leave, listening

if TYPE_CHECKING:
    from distae.data import Arrays
    from distae.trainer import Trainer

DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO)
SWITCHES = {
    "smoke": "Every phase once, in a temporary folder: steps, evaluation, pictures, save, resume.",
    "print-config": "Print the resolved settings as TOML and exit.",
}


def main(argv: Sequence[str] | None = None) -> int:
    env = Environment()
    try:
        env = environment()
        command = parse(TrainConfig, sys.argv[1:] if argv is None else argv, SWITCHES, "python -m distae.train")
        cfg = check(command.settings, env.world_size)
        if "print-config" in command.flags:
            if env.rank == 0:
                sys.stdout.write(write_toml(replace(cfg, run_dir=command.settings.run_dir)))
            return 0
        return (smoke if "smoke" in command.flags else run)(cfg, env).exit_code
    except (UserError, TrainingError) as error:  # each rank says it: it may be the only one that has seen it
        sys.stderr.write(f"distae: {f'rank {env.rank} ({platform.node()}): ' if env.rank else ''}{error}\n")
        return 2 if isinstance(error, UserError) else 1


def run(cfg: TrainConfig, env: Environment) -> Outcome:
    """Train as `cfg` (checked) says, resuming what is in its run folder. Raises UserError before any training starts.

    `--fresh` is for the first start: a launcher that repeats the command means the run which that began.
    """
    end = _run_in_turn([replace(cfg, fresh=cfg.fresh and env.first_start)], env)
    if end.outcome == "done" and env.rank == 0:
        why = f" ({end.reason})" if end.reason else ""
        sys.stderr.write(
            f"done at step {end.step}{why}: {end.run_dir}, pictures in {end.run_dir}/images; distae.load({end.run_dir!r})\n"
        )
    return end


def smoke(cfg: TrainConfig, env: Environment) -> Outcome:
    """Four steps of `cfg` beside its run folder, in two runs of which the second resumes the first."""
    short = replace(
        cfg, epochs=None, steps=4, run_dir=f"{cfg.run_dir}.smoke", tracking="none", log_every=1, eval_every=2, save_every=1,
        data=replace(cfg.data, limit=max(2 * cfg.global_batch_size, cfg.eval_batch_size)),
    )  # fmt: skip
    try:
        outcome = _run_in_turn([replace(short, steps=2, fresh=True), replace(short, fresh=False)], env)
    finally:
        if env.rank == 0:
            for folder in Path(f"{cfg.run_dir}.smoke").parent.glob(f"{Path(f'{cfg.run_dir}').name}.smoke*"):
                shutil.rmtree(folder)
    if env.rank == 0:
        sys.stderr.write(f"smoke: {outcome.outcome} at step {outcome.step} of 4\n")
    return outcome


def _run_in_turn(runs: list[TrainConfig], env: Environment) -> Outcome:
    """One run after the other in one process group; they share device, threads and data."""
    cfg = runs[0]
    run_dir = Path(str(cfg.run_dir))
    runfolder.check(cfg)
    end = read(run_dir)
    if end and end.outcome == "stopped":
        if env.restarts:
            return end  # torchrun takes the exit code of a run that stopped on purpose for a crash
        if env.rank == 0:
            (run_dir / FILE).unlink(missing_ok=True)  # or a restart would take it for this start's
    with listening() as stop:
        from distae import data, dist
        from distae.data.checks import check_data

        device = dist.pick_device(cfg.device, env)
        threads = dist.set_threads(cfg.threads, env)
        dist.set_tf32(cfg.tf32)
        splits = data.load(cfg.data)
        check_data(cfg, splits)
        with dist.session(env, device, cfg.timeout):
            return [_train(c, splits, stop, threads) for c in runs][-1]


def _train(cfg: TrainConfig, splits: "dict[str, Arrays]", stop: StopRequest, threads: int) -> Outcome:
    from distae import dist
    from distae.trainer import Trainer

    run_dir, main = Path(str(cfg.run_dir)), dist.world().is_main
    lock = _open_folder(cfg)
    trainer = None
    try:
        trainer = Trainer(cfg, splits, stop, threads, lock)
        todo = trainer.resume()
        if not todo and main:
            more = "--steps" if cfg.steps else "--epochs"
            sys.stderr.write(f"{run_dir} is complete at step {trainer.state.step}: give more {more} to go on, or --fresh\n")
        done = not todo or trainer.fit()
        trainer.close()
        signal = "" if done else Signals(trainer.agreed_signal).name
        end = Outcome("done" if done else "stopped", trainer.state.step, str(run_dir), _why_early(trainer) if done else "", signal)
    except UserError:
        if lock:
            lock.release()
        raise
    except Exception as error:
        end = _failed(error, trainer, run_dir)
    if lock:
        _leave_folder(lock, end)
    if end.outcome == "failed" and dist.world().world_size > 1:
        # Other ranks, and threads of this one, may wait for a collective that never comes.
        os._exit(end.exit_code)
    return end


def _why_early(trainer: "Trainer") -> str:
    """What ended a run before its last step."""
    if trainer.state.step >= trainer.total:
        return ""
    return f"early stop: no improvement of {trainer.cfg.best_metric} for {trainer.state.bad_evals} evaluations"


def _open_folder(cfg: TrainConfig) -> RunLock | None:
    """Rank 0 takes the run folder; all ranks raise UserError where it is in use."""
    from distae import dist

    lock, refusal = None, None
    if dist.world().is_main:
        try:
            lock = runfolder.open(cfg)
        except UserError as error:
            refusal = str(error)
    if refusal := dist.broadcast(refusal):
        raise UserError(refusal)
    runfolder.make(cfg)  # by all: nodes may not share it, or see rank 0's late
    return lock


def _leave_folder(lock: RunLock, end: Outcome) -> None:
    """Rank 0 keeps how the run ended, and lets the folder go."""
    try:
        end.write()
    except OSError as error:
        sys.stderr.write(f"distae: {FILE} could not be written ({error.strerror})\n")
    lock.release()


def _failed(error: Exception, trainer: "Trainer | None", run_dir: Path) -> Outcome:
    """Report an error once: by the rank where it happened, and on rank 0. Only what may be a bug gets a traceback."""
    from distae import dist

    disk = isinstance(error, OSError) and error.errno in DISK_ERRORS
    expected = disk or isinstance(error, TrainingError)
    own = str(error) if expected else f"{type(error).__name__}: {error}"
    reason = dist.first_failure(own)
    if reason.endswith(own):
        reason = own if expected else reason
        if not expected:
            traceback.print_exc()
    if dist.world().is_main:
        text = f"failed: {reason.removeprefix('rank 0: ')}"
        if trainer and trainer.tracker.sinks:
            trainer.tracker.line(text)
            trainer.tracker.close()
        else:
            sys.stderr.write(f"distae: {text}\n")
    return Outcome("failed", trainer.state.step if trainer else 0, str(run_dir), reason)


if __name__ == "__main__":
    console.outlast()
    leave(main())
