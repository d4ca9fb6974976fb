"""What runs inside the allocation: submitit starts one TrainJob per task.

On USR2 (the time limit is near, or the partition preempts) all ranks save together; then rank 0 requeues the job through
submitit's own handler, and the others wait to be ended: a rank that returned would be stored as a success, and one that exited
would make srun kill the job before it is requeued. On TERM (scancel, scontrol requeue) all save and exit.
"""

import os
import signal
import subprocess
import sys
import time
import tomllib
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any, NoReturn

from submitit.core.utils import DelayedSubmission

from distae.commands.train import run
from distae.config import TrainConfig, build, check, plugin
from distae.errors import TrainingError, UserError
from distae.runtime import console
from distae.runtime.environment import Environment, environment
from distae.runtime.outcome import EXIT_CODES, Outcome
from distae.runtime.signals import StopRequest, leave

Handler = Callable[[int, Any], Any]
STOPPED = EXIT_CODES["stopped"]
WAIT = 60.0
ANSWER_SECONDS = 15.0
"""A busy controller may take longer, but the job's time is nearly over."""
REQUEUE_TRIES, REQUEUE_PAUSE = 4, 5.0


@dataclass(frozen=True)
class TrainJob:
    """Trains with `settings` (TOML). It holds no progress: a submission that Slurm replays finds the newest checkpoint itself."""

    settings: str
    max_requeues: int
    plugin: str | None = None
    """The user's own plugin, as given to `--plugin`."""

    def __call__(self) -> dict[str, Any]:
        """How the run ended, if it is done; else exits with the outcome's code."""
        console.ignore_closed_streams()
        request = StopRequest()
        requeue = signal.signal(signal.SIGUSR2, request)  # submitit's; ours stays, so that a run that is done is not requeued
        signal.signal(signal.SIGTERM, request)
        env, outcome = self._train()
        if outcome.signal == "SIGUSR2" and callable(requeue):
            self._requeue(env, requeue)
        if outcome.outcome != "done":
            leave(outcome.exit_code)
        return asdict(outcome)

    def checkpoint(self) -> DelayedSubmission:
        """What submitit stores when it requeues: the same job."""
        return DelayedSubmission(self)

    def _train(self) -> tuple[Environment, Outcome]:
        try:
            env = environment()
            if self.plugin:
                plugin.load(self.plugin)
            return env, run(check(build(TrainConfig, tomllib.loads(self.settings)), env.world_size), env)
        except (
            UserError,
            TrainingError,
        ) as error:  # by every rank: each has a log of its own, and the first to exit ends the others
            sys.stderr.write(f"distae: {error}\n")
            leave(2 if isinstance(error, UserError) else 1)

    def _requeue(self, env: Environment, requeue: Handler) -> None:
        restarts = int(os.environ.get("SLURM_RESTART_COUNT", "0"))
        if restarts >= self.max_requeues:
            sys.stderr.write(f"distae: not requeued after {restarts} restarts (--max-requeues); rerun to resume\n")
        elif env.rank:
            wait_to_be_ended()
        elif not cancelled():
            try_to_requeue(requeue)


def cancelled() -> bool:
    """Whether somebody cancelled this job while it saved: requeueing would undo that. False if Slurm does not answer."""
    command = ["scontrol", "show", "job", os.environ["SLURM_JOB_ID"]]
    try:
        shown = subprocess.run(command, capture_output=True, text=True, timeout=ANSWER_SECONDS, check=False)
    except (OSError, subprocess.SubprocessError):
        return False
    return "JobState=CANCELLED" in shown.stdout


def try_to_requeue(requeue: Handler) -> None:
    """Ask Slurm, and retry if it is busy: a job that is not requeued needs a person to notice."""
    for left in reversed(range(REQUEUE_TRIES)):
        try:
            requeue(signal.SIGUSR2, None)
            return
        except (OSError, subprocess.SubprocessError) as error:
            if not left or isinstance(error, OSError):
                sys.stderr.write(f"distae: not requeued, rerun to resume: {error}\n")
                return
            time.sleep(REQUEUE_PAUSE)


def wait_to_be_ended() -> NoReturn:
    """Wait until Slurm ends this process: at once on TERM, else after a minute."""
    signal.signal(signal.SIGTERM, lambda *_: os._exit(STOPPED))
    time.sleep(WAIT)
    sys.exit(STOPPED)
