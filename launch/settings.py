"""Settings of a Slurm job: flags, and the keys of the files in slurm/clusters/."""

import re
from dataclasses import dataclass, replace

from distae.config.fields import Count, Index
from distae.errors import UserError


@dataclass(frozen=True, kw_only=True)
class SlurmConfig:
    """Where a job runs, on how much, and for how long. The training options follow after --"""

    partition: str | None = None
    """Partition; by default Slurm's own default."""
    account: str | None = None
    """Account to charge."""
    qos: str | None = None
    """Quality of service."""
    constraint: str | None = None
    """Features the nodes must have, as in a100|h100."""
    nodes: Count = 1
    """Number of nodes."""
    gpus_per_node: Index | None = None
    """GPUs on each node; by default all that a node of the partition has. 0 trains on CPUs, over gloo."""
    tasks_per_node: Count | None = None
    """Processes on each node; by default one for each GPU, or one without GPUs."""
    cpus_per_task: Count | None = None
    """CPUs for each process; by default --cpus-per-gpu if given, else its share of the node's."""
    cpus_per_gpu: Count | None = None
    """CPUs for each GPU, shared by the processes that use it."""
    mem: str | None = None
    """Memory on each node as Slurm writes it (64G); by default Slurm's own default."""
    time: str | None = None
    """Time limit, MINUTES or HH:MM:SS or D-HH:MM:SS; by default the partition's, or a day."""
    signal_before: str = "3"
    """How long before the time limit the job saves and requeues itself, written like --time."""
    max_requeues: Index = 50
    """Restarts after which the job no longer requeues itself."""
    sbatch: tuple[str, ...] = ()
    """More arguments of sbatch, as in --sbatch=--exclusive, or sbatch = ["--exclusive"] in a file."""
    srun: tuple[str, ...] = ()
    """More arguments of srun."""
    setup: tuple[str, ...] = ()
    """Shell lines that run on the first node before srun, as in "module load cuda"."""
    env: tuple[str, ...] = ()
    """Environment of the job, NAME=VALUE each, as in NCCL_DEBUG=WARN WANDB_MODE=offline."""
    snapshot_include: tuple[str, ...] = ()
    """Untracked files or folders to add to the snapshot of the code."""

    @property
    def world_size(self) -> int:
        return self.nodes * (self.tasks_per_node or self.gpus_per_node or 1)


def seconds(text: str, option: str) -> int:
    """Seconds of a time in one of Slurm's forms: M, M:S, H:M:S, D-H, D-H:M, D-H:M:S. Raises UserError."""
    if not re.fullmatch(r"(\d+-)?\d+(:\d+){0,2}", text):
        raise UserError(f"--{option}: {text!r} is not a time; valid: MINUTES, HH:MM:SS or D-HH:MM:SS")
    days, dash, clock = text.rpartition("-")
    parts = [int(p) for p in clock.split(":")]
    units = (3600, 60, 1) if dash or len(parts) == 3 else (60, 1)
    return 86400 * int(days or 0) + sum(n * unit for n, unit in zip(parts, units, strict=False))


def clock(total: int) -> str:
    """Seconds as D-HH:MM:SS."""
    days, rest = divmod(total, 86400)
    text = f"{rest // 3600:02}:{rest // 60 % 60:02}:{rest % 60:02}"
    return f"{days}-{text}" if days else text


def one_line(text: str, option: str) -> str:
    """`text` for an `#SBATCH` line, where a line break would start a command. Raises UserError."""
    if re.search(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]", text):
        raise UserError(
            f"--{option}: {text!r} contains a line break or another control character, which an sbatch script cannot take"
        )
    return text


def check(job: SlurmConfig) -> SlurmConfig:
    """Raises UserError if values are invalid or contradict each other."""
    assert job.time
    limit, before = seconds(job.time, "time"), seconds(job.signal_before, "signal-before")
    if before >= limit:
        raise UserError(f"--signal-before {job.signal_before}: not shorter than --time {job.time}")
    for name in ("partition", "account", "qos", "constraint", "mem", "sbatch"):
        value = getattr(job, name) or ()
        for text in (value,) if isinstance(value, str) else value:
            one_line(text, name)
    for name in ("sbatch", "srun"):
        if wrong := [a for a in getattr(job, name) if not a.startswith("-")]:
            raise UserError(f"--{name}: {wrong[0]!r} is not an option; write each as --name or --name=value")
    if wrong := [e for e in job.env if not re.fullmatch(r"[A-Za-z_]\w*=.*", e, re.DOTALL)]:
        raise UserError(f"--env: {wrong[0]!r} is not NAME=VALUE")
    return job


def fill(job: SlurmConfig, gpus: int, cpus: int, limit: int) -> SlurmConfig:
    """`job` with open settings filled in from a node's GPUs and CPUs (0: unknown) and a time limit in seconds."""
    gpus = gpus if job.gpus_per_node is None else job.gpus_per_node
    tasks = job.tasks_per_node or gpus or 1
    share = job.cpus_per_gpu * gpus // tasks if job.cpus_per_gpu else cpus // tasks
    return replace(
        job,
        gpus_per_node=gpus,
        tasks_per_node=tasks,
        cpus_per_task=job.cpus_per_task or max(1, share),
        time=job.time or clock(limit),
    )
