"""Rank and world size of this process, from environment variables, without torch."""

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace

from distae.errors import UserError


@dataclass(frozen=True)
class Environment:
    """Which rank of the job this process is, and how the launcher started it."""

    rank: int = 0
    world_size: int = 1
    local_rank: int = 0
    local_world_size: int = 1
    launcher: str = "python"
    rendezvous: str = "env://"
    """Where the ranks meet: torch's `init_method`."""
    cpus: int | None = None
    """CPUs that the launcher gave to this process alone; None if the node's processes share them."""
    restarts: int = 0
    """How often the launcher has restarted this job after a crash."""
    restarts_left: int = 0
    """How often it would restart it again."""
    requeues: int = 0
    """How often Slurm has requeued this job."""

    @property
    def first_start(self) -> bool:
        """Whether this is the first start, not a launcher's restart."""
        return not self.restarts and not self.requeues


def environment(env: Mapping[str, str] = os.environ) -> Environment:
    """torchrun's variables first, then those of a Slurm job step (srun, submitit), else a single process.

    SLURM_STEP_NUM_TASKS and not SLURM_NTASKS: a batch script that calls plain `python` has the latter, but is alone.
    Raises UserError that names the missing or invalid variable.
    """
    requeues = _number(env, "SLURM_RESTART_COUNT", 0)
    if "RANK" in env and "WORLD_SIZE" in env:
        return _torchrun(env, requeues)
    if "SLURM_PROCID" in env and "SLURM_STEP_NUM_TASKS" in env:
        return _slurm(env, requeues)
    return Environment(requeues=requeues)


def _torchrun(env: Mapping[str, str], requeues: int) -> Environment:
    world_size = _number(env, "WORLD_SIZE", least=1)
    rank = _number(env, "RANK", below=world_size)
    local_world_size = _number(env, "LOCAL_WORLD_SIZE", 1, least=1)
    local_rank = _number(env, "LOCAL_RANK", rank % local_world_size, below=local_world_size)
    if world_size > 1:
        _text(env, "MASTER_ADDR")
        _number(env, "MASTER_PORT", below=65536)
    restarts, most = (_number(env, f"TORCHELASTIC_{name}", 0) for name in ("RESTART_COUNT", "MAX_RESTARTS"))
    found = Environment(rank, world_size, local_rank, local_world_size, "torchrun", requeues=requeues)
    return replace(found, restarts=restarts, restarts_left=max(0, most - restarts))


def _slurm(env: Mapping[str, str], requeues: int) -> Environment:
    world_size = _number(env, "SLURM_STEP_NUM_TASKS", least=1)
    per_node = -(-world_size // _number(env, "SLURM_STEP_NUM_NODES", least=1))
    cpus = _number(env, "SLURM_CPUS_PER_TASK", least=1) if "SLURM_CPUS_PER_TASK" in env else None
    rank, local_rank = _number(env, "SLURM_PROCID", below=world_size), _number(env, "SLURM_LOCALID")
    return Environment(rank, world_size, local_rank, per_node, "slurm", _slurm_rendezvous(env), cpus, requeues=requeues)


def _text(env: Mapping[str, str], name: str) -> str:
    if name not in env:
        raise UserError(f"{name} is missing, but other variables of a launcher are set: start with torchrun, srun or plain python")
    return env[name]


def _number(env: Mapping[str, str], name: str, default: int | None = None, least: int = 0, below: int | None = None) -> int:
    """The whole number in a launcher's variable. Raises UserError that names the variable."""
    text = _text(env, name) if default is None else env.get(name, str(default))
    if not re.fullmatch(r"[0-9]{1,18}", text) or int(text) < least or (below is not None and int(text) >= below):
        valid = f"from {least} to {below - 1}" if below is not None else f">= {least}"
        raise UserError(f"{name}={text!r} in the environment: a whole number {valid} is expected, as torchrun and srun set it")
    return int(text)


def _slurm_rendezvous(env: Mapping[str, str]) -> str:
    """The step's first node, where rank 0 is, and a port below the ephemeral ones.

    Each of 2,500 jobs in a row has eight ports of its own, one for each start: neighbours often share a node.
    """
    first = re.sub(r"\[(\w+)[^]]*]", r"\1", _text(env, "SLURM_STEP_NODELIST")).split(",")[0]
    start = _number(env, "SLURM_STEP_ID", default=0) + _number(env, "SLURM_RESTART_COUNT", default=0)
    return f"tcp://{first}:{12000 + (_number(env, 'SLURM_JOB_ID') * 8 + start % 8) % 20000}"
