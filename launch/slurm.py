"""Submit a training job to Slurm, one task per GPU.

    python -m launch.slurm --nodes 2 --gpus-per-node 4 --time 4:00:00 -- --config recipes/vae_mnist.toml --run-dir runs/a
    python -m launch.slurm --cluster slurm/clusters/example.toml --dry-run -- --config recipes/vae_mnist.toml

The job saves and requeues itself before its time limit and on preemption. `--follow` gives the job's own exit code:
0 done, 1 failed, 2 invalid input, 75 stopped after a save.
"""

import sys
from argparse import ArgumentParser
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from distae import config
from distae.commands.train import SWITCHES as TRAIN_SWITCHES
from distae.config import TrainConfig, write_toml
from distae.config.cli import parser_of
from distae.errors import UserError
from distae.runtime import console
from distae.runtime.run_dir import accept, check_run_dir, open_run_dir

from . import jobs, partitions, snapshot
from .settings import SlurmConfig
from .submit import Submission

SWITCHES = {
    "wait": "Wait until the job has ended, and exit with its code.",
    "follow": "Like --wait, and show rank 0's log.",
    "dry-run": "Print the sbatch script and the resolved settings; submit nothing.",
    "no-snapshot": "Run the code as it is when the job starts, not a copy made now.",
}


def main(argv: Sequence[str] | None = None, prog: str = "python -m launch.slurm") -> int:
    mine, train = split(sys.argv[1:] if argv is None else argv)
    try:
        command = config.parse(SlurmConfig, mine, SWITCHES, prog, "cluster")
        job = partitions.resolve(command.settings, partitions.partitions())
        cfg, plugin = training(train, job)
        folder = Path(cfg.run_dir or ".") / "slurm"
        plan, with_snapshot = Submission(job, folder, folder.parent.name, plugin), "no-snapshot" not in command.flags
        if "dry-run" in command.flags:
            show(plan, [cfg], with_snapshot)
            return 0
        job_id = submit(plan, [cfg], with_snapshot)[0]
        sys.stdout.write(f"job {job_id}, logs in {folder / job_id}; python -m distae status {folder.parent}\n")
        if not command.flags & {"wait", "follow"}:
            return 0
        rank_0 = folder / job_id / "rank_0"
        streams = [(rank_0.with_suffix(".out"), sys.stdout), (rank_0.with_suffix(".err"), sys.stderr)]
        return jobs.follow(job_id, streams if "follow" in command.flags else [])
    except UserError as error:
        sys.stderr.write(f"distae: {error}\n")
        return 2
    except KeyboardInterrupt:
        sys.stderr.write("distae: no longer following; the job continues (scancel ends it)\n")
        return 130


def arguments(prog: str, words: Sequence[str] = ()) -> ArgumentParser:
    """What may follow `words`. Raises UserError."""
    return parser_of(SlurmConfig, words, SWITCHES, "cluster")


def split(argv: Sequence[str]) -> tuple[list[str], list[str]]:
    """The options before `--`, and those of distae.train after it."""
    argv = list(argv)
    at = argv.index("--") if "--" in argv else len(argv)
    return argv[:at], argv[at + 1 :]


def training(argv: Sequence[str], job: SlurmConfig) -> tuple[TrainConfig, str | None]:
    """The run's settings, checked for this job, and the plugin they need. Raises UserError."""
    command = config.parse(TrainConfig, argv, TRAIN_SWITCHES, "distae train")
    if command.flags:
        raise UserError(f"--{min(command.flags)} is for python -m distae.train itself, not for a job")
    cfg = config.check(command.settings, job.world_size)
    if cfg.device == "cuda" and not job.gpus_per_node:
        raise UserError("--device cuda: the job has no GPUs; give --gpus-per-node")
    plugin = str(Path(command.plugin).absolute()) if command.plugin else None
    return replace(cfg, run_dir=str(Path(cfg.run_dir or ".").absolute())), plugin


def submit(plan: Submission, runs: Sequence[TrainConfig], with_snapshot: bool) -> list[str]:
    """Submit the runs, with code and folders in place; returns the job ids.

    Raises UserError with Slurm's message, before anything is written, if Slurm would reject the job.
    """
    plan.ask(len(runs))
    for cfg in runs:
        check_run_dir(cfg)
        if cfg.fresh:  # here: the job would move its own logs, and again at every requeue
            folder = open_run_dir(cfg)
            accept(cfg)
            folder.release()
    if with_snapshot:
        plan = plan.running(snapshot.take(plan.folder.parent / "code", plan.job.snapshot_include, plan.plugin))
    return plan.submit([replace(cfg, fresh=False) for cfg in runs])


def show(plan: Submission, runs: Sequence[TrainConfig], with_snapshot: bool) -> None:
    """Print what would be submitted."""
    if with_snapshot:
        plan = plan.running(plan.folder.parent / "code" / "HASH")
    sys.stdout.write(f"{plan.script(len(runs))}\n# settings of the job\n{write_toml(plan.job)}")
    for cfg in runs:
        sys.stdout.write(f"\n# settings of the run in {cfg.run_dir}\n{write_toml(cfg)}")


if __name__ == "__main__":
    console.ignore_closed_streams()
    sys.exit(console.exit_code(main))
