"""The cluster's partitions from `sinfo`, and whether a job fits."""

import re
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass

from distae.errors import UserError

from .settings import SlurmConfig, check, clock, fill, seconds

DAY = 86400


@dataclass(frozen=True)
class Partition:
    """A partition; if its nodes differ, its largest node."""

    name: str
    is_default: bool
    limit: int | None
    """Seconds; None without limit."""
    nodes: int
    cpus: int
    gpus: int

    def refusal(self, job: SlurmConfig) -> str | None:
        """Why the job cannot run here."""
        gpus, tasks, cpus = job.gpus_per_node or 0, job.tasks_per_node or 1, job.cpus_per_task or 1
        here = f"partition {self.name} has"
        if job.nodes > self.nodes:
            return f"--nodes {job.nodes}: {here} {self.nodes}"
        if gpus > self.gpus:
            return f"--gpus-per-node {gpus}: {here} {self.gpus} on a node"
        if tasks * cpus > self.cpus:
            return f"{tasks} tasks with --cpus-per-task {cpus}: {here} {self.cpus} CPUs on a node"
        if self.limit is not None and seconds(job.time or "0", "time") > self.limit:
            return f"--time {job.time}: {here} a limit of {clock(self.limit)}"
        return None


def call(*command: str, stdin: str | None = None) -> str:
    """The output of a Slurm command. Raises UserError with Slurm's own message if it fails."""
    try:
        done = subprocess.run(command, input=stdin, capture_output=True, text=True, timeout=60, check=False)
    except FileNotFoundError as error:
        raise UserError(f"no Slurm here: {command[0]} is not found; python -m launch.local starts a job on this machine") from error
    except subprocess.TimeoutExpired as error:
        raise UserError(
            f"{command[0]} did not answer within 60 s; check that the Slurm controller is up (scontrol ping)"
        ) from error
    if done.returncode:
        raise UserError(f"Slurm rejects this ({command[0]}): {(done.stderr or done.stdout).strip()}")
    return done.stdout


def partitions() -> list[Partition]:
    """All partitions, hidden ones included; none without Slurm."""
    return parse(call("sinfo", "-a", "-h", "-o", "%P|%l|%D|%c|%G")) if shutil.which("sinfo") else []


def parse(text: str) -> list[Partition]:
    """Partitions from lines of `sinfo -o "%P|%l|%D|%c|%G"`: one for each kind of node in each of them."""
    found: dict[str, Partition] = {}
    for line in text.splitlines():
        name, limit, nodes, cpus, gres = line.split("|", 4)
        most = found.get(name, Partition(name.rstrip("*"), name.endswith("*"), None, 0, 0, 0))
        gpus = sum(int(n) for n in re.findall(r"\bgpu(?::[^:,()]+)?:(\d+)", gres))
        found[name] = Partition(
            most.name,
            most.is_default,
            None if limit == "infinite" else seconds(limit, "time"),
            most.nodes + int(nodes),
            max(most.cpus, int(cpus.rstrip("+"))),
            max(most.gpus, gpus),
        )
    return list(found.values())


def resolve(job: SlurmConfig, known: Sequence[Partition]) -> SlurmConfig:
    """The job with open settings filled in. Raises UserError if it cannot run on the known partitions."""
    named = set((job.partition or "").split(","))
    chosen = [p for p in known if p.name in named] if job.partition else [p for p in known if p.is_default]
    if known and not chosen:
        what = f"unknown {job.partition!r}" if job.partition else "this Slurm has no default"
        raise UserError(f"--partition: {what}; valid: {', '.join(p.name for p in known)}")
    if not chosen:
        if job.gpus_per_node is None:
            raise UserError("--gpus-per-node: required without Slurm on this machine")
        return check(fill(job, 0, 0, DAY))
    jobs = [check(fill(job, p.gpus, p.cpus, p.limit or DAY)) for p in chosen]
    fits = [j for p, j in zip(chosen, jobs, strict=True) if not p.refusal(j)]
    if not fits:
        raise UserError(str(chosen[0].refusal(jobs[0])))
    return fits[0]
