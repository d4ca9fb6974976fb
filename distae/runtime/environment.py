"""Who am I among the processes of this job? Answered from environment variables, without torch."""

import os
import re
import zlib
from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Environment:
    """One process's place in the job."""

    rank: int = 0
    world_size: int = 1
    local_rank: int = 0
    local_world_size: int = 1
    launcher: str = "python"
    rendezvous: str = "env://"
    """Where the ranks meet: torch's `init_method`."""
    cpus: int | None = None
    """CPUs that the launcher gave to this process alone; None where the node's processes share them."""
    restarts: int = 0
    """How often the launcher has restarted this job after a crash."""


def environment(env: Mapping[str, str] = os.environ) -> Environment:
    """torchrun's variables first, then those of a Slurm job step (srun, submitit), else a single process.

    SLURM_STEP_NUM_TASKS and not SLURM_NTASKS: a batch script that calls plain `python` has the latter, but is alone.
    """
    if "RANK" in env and "WORLD_SIZE" in env:
        rank, world_size = int(env["RANK"]), int(env["WORLD_SIZE"])
        local_world_size = int(env.get("LOCAL_WORLD_SIZE", 1))
        local_rank = int(env.get("LOCAL_RANK", rank % local_world_size))
        restarts = int(env.get("TORCHELASTIC_RESTART_COUNT", 0))
        return Environment(rank, world_size, local_rank, local_world_size, "torchrun", restarts=restarts)
    if "SLURM_PROCID" in env and "SLURM_STEP_NUM_TASKS" in env:
        return _slurm(env)
    return Environment()


def _slurm(env: Mapping[str, str]) -> Environment:
    world_size = int(env["SLURM_STEP_NUM_TASKS"])
    per_node = -(-world_size // int(env["SLURM_STEP_NUM_NODES"]))
    cpus = int(env["SLURM_CPUS_PER_TASK"]) if "SLURM_CPUS_PER_TASK" in env else None
    rank, local_rank = int(env["SLURM_PROCID"]), int(env["SLURM_LOCALID"])
    return Environment(rank, world_size, local_rank, per_node, "slurm", _slurm_rendezvous(env), cpus)


def _slurm_rendezvous(env: Mapping[str, str]) -> str:
    """The step's first node, where rank 0 is, and a port below the ephemeral ones that no other start of the job has used."""
    first = re.sub(r"\[(\w+)[^]]*]", r"\1", env["SLURM_STEP_NODELIST"]).split(",")[0]
    start = f"{env['SLURM_JOB_ID']}.{env.get('SLURM_STEP_ID', 0)}.{env.get('SLURM_RESTART_COUNT', 0)}"
    return f"tcp://{first}:{12000 + zlib.crc32(start.encode()) % 20000}"
