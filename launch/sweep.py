"""Submit every combination of some settings as one job array.

    python -m launch.sweep --nodes 1 --gpus-per-node 1 --grid model.beta=1,4,10 optim.lr=1e-3,3e-4 --max-parallel 4 \\
        -- --config recipes/vae_mnist.toml --run-dir runs/sweep

Each run has its own folder, runs/sweep/model.beta=1,optim.lr=1e-3, and resumes when the same sweep is submitted again.
"""

import hashlib
import itertools
import os
import sys
from argparse import ArgumentParser
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from distae import config
from distae.config import TrainConfig
from distae.config.check import fingerprint
from distae.config.cli import parser_of
from distae.config.fields import Count
from distae.errors import UserError
from distae.runtime import console

from . import jobs, partitions
from .settings import SlurmConfig
from .slurm import SWITCHES, show, split, submit, training
from .submit import Submission


@dataclass(frozen=True, kw_only=True)
class SweepConfig(SlurmConfig):
    """Every combination of some settings, as one array of jobs. The training options follow after --"""

    grid: tuple[str, ...] = ()
    """Options of distae.train with their values, as in model.beta=1,4,10 "net.hidden=512 256,128"."""
    max_parallel: Count = 256
    """Jobs of the array that may run at once."""


def main(argv: Sequence[str] | None = None, prog: str = "python -m launch.sweep") -> int:
    mine, train = split(sys.argv[1:] if argv is None else argv)
    switches = {k: v for k, v in SWITCHES.items() if k != "follow"}
    try:
        command = config.parse(SweepConfig, mine, switches, prog, "cluster")
        job = partitions.resolve(command.settings, partitions.partitions())
        base, runs, plugin = expand(command.settings.grid, train, job)
        plan = Submission(job, base / "slurm", base.name, plugin, command.settings.max_parallel)
        with_snapshot = "no-snapshot" not in command.flags
        if "dry-run" in command.flags:
            show(plan, runs, with_snapshot)
            return 0
        ids = submit(plan, runs, with_snapshot)
    except UserError as error:
        sys.stderr.write(f"distae: {error}\n")
        return 2
    for job_id, cfg in zip(ids, runs, strict=True):
        _link_logs(base / "slurm" / job_id, Path(cfg.run_dir or "."))
        sys.stdout.write(f"job {job_id}: {cfg.run_dir}\n")
    sys.stdout.write(f"python -m distae status {base}\n")
    return max(jobs.follow(job_id, []) for job_id in ids) if "wait" in command.flags else 0


def arguments(prog: str, words: Sequence[str] = ()) -> ArgumentParser:
    """What may follow `words`. Raises UserError."""
    return parser_of(SweepConfig, words, SWITCHES, "cluster")


def expand(grid: Sequence[str], train: Sequence[str], job: SlurmConfig) -> tuple[Path, list[TrainConfig], str | None]:
    """The sweep's folder, the settings of each run in a folder of its own below it, and their plugin. Raises UserError."""
    combinations = [(",".join(f"{k}={v}" for k, v in c), c) for c in product(grid)]
    argvs = [[*train, *(a for k, v in c for a in (f"--{k}", *v.split()))] for _, c in combinations]
    runs, plugins = zip(*(training(argv, job) for argv in argvs), strict=True)
    base = Path(runs[0].run_dir or ".")
    if len({cfg.run_dir for cfg in runs}) > 1:  # no --run-dir: each has the default, which its settings name
        digest = hashlib.sha256("".join(map(fingerprint, runs)).encode()).hexdigest()[:8]
        base = base.with_name(f"sweep_{runs[0].model.name}_{runs[0].data.name}_{digest}")
    return base, [replace(cfg, run_dir=str(base / name)) for (name, _), cfg in zip(combinations, runs, strict=True)], plugins[0]


def product(grid: Sequence[str]) -> Iterator[tuple[tuple[str, str], ...]]:
    """Every combination of `name=value,value` items, as (name, value) pairs. Raises UserError."""
    axes = []
    for item in grid:
        name, _, values = item.partition("=")
        if not name or not all(values.split(",")):
            raise UserError(f"--grid: {item!r} is not NAME=VALUE,VALUE,...")
        axes.append([(name.removeprefix("--"), value) for value in values.split(",")])
    if not axes:
        raise UserError("--grid: give at least one NAME=VALUE,VALUE,...")
    yield from itertools.product(*axes)


def _link_logs(logs: Path, run_dir: Path) -> None:
    """Link the array's logs of a run from its own folder."""
    (run_dir / "slurm").mkdir(parents=True, exist_ok=True)
    (run_dir / "slurm" / logs.name).symlink_to(os.path.relpath(logs, run_dir / "slurm"))


if __name__ == "__main__":
    console.ignore_closed_streams()
    sys.exit(console.exit_code(main))
