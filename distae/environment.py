"""Who am I among the processes of this job? Answered from environment variables, without torch."""

import os
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


def environment(env: Mapping[str, str] = os.environ) -> Environment:
    """torchrun's variables first, then those of a Slurm job step (srun, submitit), else a single process.

    SLURM_STEP_NUM_TASKS and not SLURM_NTASKS: a batch script that calls plain `python` has the latter, but is alone.
    """
    if "RANK" in env and "WORLD_SIZE" in env:
        rank, world_size = int(env["RANK"]), int(env["WORLD_SIZE"])
        local_world_size = int(env.get("LOCAL_WORLD_SIZE", 1))
        local_rank = int(env.get("LOCAL_RANK", rank % local_world_size))
        return Environment(rank, world_size, local_rank, local_world_size, "torchrun")
    if "SLURM_PROCID" in env and "SLURM_STEP_NUM_TASKS" in env:
        world_size = int(env["SLURM_STEP_NUM_TASKS"])
        nodes = int(env.get("SLURM_STEP_NUM_NODES", 1))
        return Environment(int(env["SLURM_PROCID"]), world_size, int(env["SLURM_LOCALID"]), -(-world_size // nodes), "slurm")
    return Environment()
