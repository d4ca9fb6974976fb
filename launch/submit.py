"""From settings to an sbatch script, and to Slurm, with submitit."""

import contextlib
import os
import re
import shlex
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

import submitit
from submitit.core.utils import FailedSubmissionError, UncompletedJobError

from distae.config import TrainConfig, write_toml
from distae.errors import UserError

from . import snapshot
from .job import TrainJob
from .partitions import call
from .settings import SlurmConfig, one_line, seconds

NO_LIMIT = 10**6
"""submitit's limit of time-outs; `TrainJob.max_requeues` counts restarts of any kind."""


class Executor(submitit.SlurmExecutor):
    """submitit's; a dry run needs no Slurm."""

    @classmethod
    def affinity(cls) -> int:
        return 2


@dataclass(frozen=True)
class Submission:
    """One job, or an array of them, to be run from the folder where it is submitted.

    Logs: `folder/JOB/rank_N.{out,err}`, and `folder/batch_JOB.{out,err}` of the script itself.
    """

    job: SlurmConfig
    folder: Path
    """RUN/slurm, or the sweep's."""
    name: str
    plugin: str | None = None
    """The user's own plugin that the runs need."""
    max_parallel: int = NO_LIMIT
    code: Path | None = None
    """The snapshot; None runs the code that is installed."""

    def __post_init__(self) -> None:
        """Raises UserError if the folder's name has another meaning to Slurm or to submitit."""
        name = one_line(str(self.folder.parent), "run-dir")
        if found := re.search(r"%[jtAa]|\\", name):
            raise UserError(f"--run-dir: {name} contains {found[0]}, which Slurm replaces in file names")

    def running(self, code: Path) -> Self:
        """The same with the code, and the plugin, of a snapshot."""
        if ":" in str(code):
            raise UserError(
                f"--run-dir: {code.parents[1]} contains a colon, which PYTHONPATH does not allow: rename it, or use --no-snapshot"
            )
        plugin = self.plugin and str(code / snapshot.home(self.plugin) / Path(self.plugin).name)
        return replace(self, code=code, plugin=plugin)

    def script(self, count: int = 1) -> str:
        """The sbatch script of `count` runs."""
        executor = self._executor(count)
        if count > 1:
            executor.parameters["map_count"] = count
        return str(executor._make_submission_file_text(executor._submitit_command_str, ""))

    def ask(self, count: int) -> None:
        """Raises UserError with Slurm's message if it would reject the job."""
        with outside_any_job():
            call("sbatch", "--test-only", stdin=self.script(count))

    def submit(self, runs: Sequence[TrainConfig]) -> list[str]:
        """Submit, as an array if there are several; returns the job ids. Raises UserError if Slurm rejects it."""
        self.folder.mkdir(parents=True, exist_ok=True)
        try:
            with outside_any_job():
                made = self._executor(len(runs)).submit_array(
                    [TrainJob(write_toml(cfg), self.job.max_requeues, self.plugin) for cfg in runs]
                )
        except (FailedSubmissionError, UncompletedJobError) as error:
            raise UserError(f"Slurm rejects this: {error}") from error
        return [job.job_id for job in made]

    def _executor(self, count: int) -> Executor:
        python = f"{shlex.quote(sys.executable)} -P"  # -P: the snapshot comes before the folder that the job runs in
        executor = Executor(self.folder / "%j", max_num_timeout=NO_LIMIT, python=python)
        executor.update_parameters(**self._parameters("%j" if count == 1 else "%A_%a"))
        return executor

    def _parameters(self, job_id: str) -> dict[str, Any]:
        job = self.job
        assert job.time
        wanted = {
            "job_name": self.name, "partition": job.partition, "account": job.account, "qos": job.qos, "constraint": job.constraint,
            "nodes": job.nodes, "ntasks_per_node": job.tasks_per_node, "cpus_per_task": job.cpus_per_task, "mem": job.mem,
            "gpus_per_node": job.gpus_per_node or None, "time": -(-seconds(job.time, "time") // 60),
            "signal_delay_s": seconds(job.signal_before, "signal-before"), "array_parallelism": self.max_parallel,
        }  # fmt: skip
        logs = str(self.folder).replace("%", "%%")  # Slurm's own sign for a job's number and the like
        batch, rank = f"{logs}/batch_{job_id}", f"{logs}/{job_id}/rank_%t"
        more = {"requeue": True, "output": f"{batch}.out", "error": f"{batch}.err"} | dict(_option(a) for a in job.sbatch)
        # srun does not take --cpus-per-task from sbatch since Slurm 22.05. --wait=0: rank 0 still exports when the others are done,
        # and a site's WaitTime would end it.
        srun = [f"--output={rank}.out", f"--error={rank}.err", "--open-mode=append", "--kill-on-bad-exit=1", "--wait=0"]
        srun += [f"--cpus-per-task={job.cpus_per_task}", *job.srun]
        return {k: v for k, v in wanted.items() if v is not None} | {
            "additional_parameters": more, "srun_args": srun, "setup": self._setup(),
        }  # fmt: skip

    def _setup(self) -> list[str]:
        logs = (
            f"{shlex.quote(str(self.folder))}/${{SLURM_ARRAY_JOB_ID:-$SLURM_JOB_ID}}${{SLURM_ARRAY_TASK_ID:+_$SLURM_ARRAY_TASK_ID}}"
        )
        lines = [f"logs={logs}", 'mkdir -p "$logs"']
        if self.code:
            first = [self.code, *([Path(self.plugin).parent] if self.plugin else [])]
            lines.append(f"export PYTHONPATH={shlex.quote(':'.join(map(str, first)))}${{PYTHONPATH:+:$PYTHONPATH}}")
        # NCCL's flight recorder: a collective that times out leaves its last calls, for torchfrtrace
        lines += ["export TORCH_FR_BUFFER_SIZE=2000 TORCH_NCCL_DUMP_ON_TIMEOUT=1", 'export TORCH_FR_DUMP_TEMP_FILE="$logs/flight_"']
        exports = [f"export {name}={shlex.quote(value)}" for name, _, value in (e.partition("=") for e in self.job.env)]
        return [*lines, *exports, *self.job.setup]


@contextlib.contextmanager
def outside_any_job() -> Iterator[None]:
    """Without the variables of a job that this process may be in: sbatch would pass them on. (submitit's drops SLURM_CONF, too.)"""
    names = [k for k in os.environ if k.startswith(("SLURM_", "SUBMITIT_")) and k != "SLURM_CONF"]
    inside = {k: os.environ.pop(k) for k in names} if "SLURM_JOB_ID" in os.environ else {}
    try:
        yield
    finally:
        os.environ.update(inside)


def _option(argument: str) -> tuple[str, str | bool]:
    name, given, value = argument.lstrip("-").partition("=")
    return name, value if given else True
