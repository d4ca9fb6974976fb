"""Train every combination of some settings, on this machine or as one array of jobs on Slurm.

    python -m launch.sweep --jobs 2 --grid model.beta=1,4 seed=0,1,2 -- --config recipes/vae_mnist.toml --run-dir runs/sweep
    python -m launch.sweep --nodes 1 --gpus-per-node 1 --grid model.beta=1,4,10 optim.lr=1e-3,3e-4 --max-parallel 4 \\
        -- --config recipes/vae_mnist.toml --run-dir runs/sweep

Each run has its own folder, runs/sweep/model.beta=1,optim.lr=1e-3, and resumes when the same sweep is started again; those that
are done stay as they are. At the end: `distae compare runs/sweep`, with mean and spread over seeds.
"""

import hashlib
import itertools
import os
import sys
from argparse import ArgumentParser
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Literal

from distae import config
from distae.commands import compare, lockstep, runs
from distae.commands.session import refuse
from distae.config import TrainConfig
from distae.config.check import fingerprint
from distae.config.cli import parser_of
from distae.config.fields import Count
from distae.errors import DistaeError, UserError
from distae.runtime import console
from distae.runtime.environment import environment
from distae.runtime.files import with_path
from distae.runtime.run_dir import check_run_dir

from . import here, jobs, partitions
from .settings import SlurmConfig
from .slurm import SWITCHES, show, split, submit, training
from .submit import Submission


@dataclass(frozen=True, kw_only=True)
class SweepConfig(SlurmConfig):
    """Every combination of some settings. Job options are for Slurm. The training options follow after --"""

    grid: tuple[str, ...] = ()
    """Options of distae.train with their values, as in model.beta=1,4,10 "net.hidden=512 256,128"."""
    together: bool = False
    """Train all runs in one process, or in those of torchrun, a step of each after the other: what is streamed is read once for
    runs with the same order of samples (--seed, --global-batch-size). Each run is what it would be alone."""
    backend: Literal["auto", "local", "slurm"] = "auto"
    """local: on this machine, each run one process; slurm: as one array of jobs. auto: slurm if an option of jobs is given or a
    cluster answers, and --jobs is not given."""
    jobs: Count | None = None
    """Runs on this machine at once, each with its share of the CPU cores and, where there are several, a GPU; by default 1."""
    max_parallel: Count = 256
    """Jobs of the array that may run at once."""


OF_JOBS = ("--cluster", *(f"--{f.name.replace('_', '-')}" for f in fields(SlurmConfig)), "--max-parallel")
"""Options that mean a sweep on Slurm."""


def is_local(sweep: SweepConfig, words: Sequence[str]) -> bool:
    """Whether it runs on this machine. `words` is the command line. Raises UserError if options contradict each other."""
    names = [word.partition("=")[0] for word in words]
    of_jobs = [flag for flag in OF_JOBS if flag in names]
    if sweep.jobs and sweep.backend == "slurm":
        raise UserError("--jobs is for sweeps on this machine; on Slurm --max-parallel limits the jobs at once")
    if of_jobs and (sweep.jobs or sweep.backend == "local"):
        local = "--jobs" if sweep.jobs else "--backend local"
        raise UserError(f"{of_jobs[0]} is for Slurm jobs, and {local} for this machine: give one")
    if (sweep.jobs or of_jobs) and sweep.together:
        raise UserError(f"--together is one process: {'--jobs' if sweep.jobs else of_jobs[0]} cannot be given with it")
    if sweep.together and sweep.backend == "slurm":
        raise UserError("--together trains in this process: --backend slurm cannot be given with it")
    if sweep.together:
        return True
    return sweep.backend == "local" or (sweep.backend == "auto" and not of_jobs and (bool(sweep.jobs) or not _a_cluster_answers()))


def _a_cluster_answers() -> bool:
    try:
        return bool(partitions.partitions())
    except UserError:  # Slurm's commands without a cluster
        return False


def main(argv: Sequence[str] | None = None, prog: str = "python -m launch.sweep") -> int:
    mine, train = split(sys.argv[1:] if argv is None else argv)
    switches = {k: v for k, v in SWITCHES.items() if k != "follow"}
    try:
        command = config.parse(SweepConfig, mine, switches, prog, "cluster")
        if is_local(command.settings, mine):
            return _here(command.settings, train, "dry-run" in command.flags)
        return _on_slurm(command.settings, train, command.flags)
    except UserError as error:
        sys.stderr.write(f"distae: {error}\n")
        return 2
    except OSError as error:
        sys.stderr.write(f"distae: {with_path(error)}\n")
        return 1


def arguments(prog: str, words: Sequence[str] = ()) -> ArgumentParser:
    """What may follow `words`. Raises UserError."""
    return parser_of(SweepConfig, words, SWITCHES, "cluster")


def _here(sweep: SweepConfig, train: Sequence[str], dry: bool) -> int:
    """Train on this machine, then compare. Raises UserError, before the first run, if one of them is invalid."""
    base, cfgs, plugin = expand(sweep.grid, train, SlurmConfig(gpus_per_node=1))  # 1: --device cuda is checked by the run
    if sweep.together and not dry:
        return _together(base, cfgs)
    at_once = min(sweep.jobs or 1, len(cfgs))
    share = max(1, len(os.sched_getaffinity(0)) // at_once)
    tasks = [here.Task(Path(c.run_dir or ".").name, c if c.threads != "auto" else replace(c, threads=share)) for c in cfgs]
    for task in tasks:
        check_run_dir(task.cfg)
    if dry:
        sys.stdout.write("".join(f"{task.run_dir}{' (done)' * task.is_done}\n" for task in tasks))
        return 0
    sys.stdout.write(f"on this machine, {at_once} of {len(tasks)} runs at once (--backend slurm: as Slurm jobs)\n")
    code = here.Workers(tasks, at_once, plugin).run()
    if code == here.STOPPED:
        sys.stderr.write("distae: stopped; rerun the command to resume\n")
        return code
    _compare(base)
    return code


def _together(base: Path, cfgs: Sequence[TrainConfig]) -> int:
    """Train in this process, then compare. Raises UserError."""
    env = environment()
    try:
        end = lockstep.run_in_lockstep([config.check(cfg, env.world_size) for cfg in cfgs], env)
    except DistaeError as error:
        return refuse(error, env)
    if env.rank == 0 and end.outcome == "done":
        _compare(base)
    return end.exit_code


def _on_slurm(sweep: SweepConfig, train: Sequence[str], flags: frozenset[str]) -> int:
    job = partitions.resolve(sweep, partitions.partitions())
    base, cfgs, plugin = expand(sweep.grid, train, job)
    plan = Submission(job, base / "slurm", base.name, plugin, sweep.max_parallel)
    with_snapshot = "no-snapshot" not in flags
    if "dry-run" in flags:
        show(plan, cfgs, with_snapshot)
        return 0
    ids = submit(plan, cfgs, with_snapshot)
    for job_id, cfg in zip(ids, cfgs, strict=True):
        _link_logs(base / "slurm" / job_id, Path(cfg.run_dir or "."))
        sys.stdout.write(f"job {job_id}: {cfg.run_dir}\n")
    sys.stdout.write(f"python -m distae status {base}\npython -m distae compare {base}\n")
    if "wait" not in flags:
        return 0
    code = max(jobs.follow(job_id, []) for job_id in ids)
    _compare(base)
    return code


def _compare(base: Path) -> None:
    """Print the table of the sweep's runs, and write it to compare.csv in its folder."""
    try:
        found = runs.find([base])
        sys.stdout.write(f"\n{compare.report(found)}")
        compare.write_csv(base / "compare.csv", compare.rows_of(found, None), force=True)
        sys.stdout.write(f"wrote {base / 'compare.csv'}\n")
    except UserError as error:  # no run has a row
        sys.stderr.write(f"distae: no table: {error}\n")


def expand(grid: Sequence[str], train: Sequence[str], job: SlurmConfig) -> tuple[Path, list[TrainConfig], str | None]:
    """The sweep's folder, the settings of each run in a folder of its own below it, and their plugin. Raises UserError."""
    combinations = [(",".join(f"{k}={v}" for k, v in c), c) for c in product(grid)]
    argvs = [[*train, *(a for k, v in c for a in (f"--{k}", *v.split()))] for _, c in combinations]
    cfgs, plugins = zip(*(training(argv, job) for argv in argvs), strict=True)
    base = Path(cfgs[0].run_dir or ".")
    if len({cfg.run_dir for cfg in cfgs}) > 1:  # no --run-dir: each has the default, which its settings name
        digest = hashlib.sha256("".join(map(fingerprint, cfgs)).encode()).hexdigest()[:8]
        base = base.with_name(f"sweep_{cfgs[0].model.name}_{cfgs[0].data.name}_{digest}")
    return base, [replace(cfg, run_dir=str(base / name)) for (name, _), cfg in zip(combinations, cfgs, strict=True)], plugins[0]


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
