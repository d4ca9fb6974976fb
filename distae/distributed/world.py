"""The processes of a run: ranks, devices and process groups. One `World` is current at a time."""

import contextlib
import os
import platform
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, cast

import torch
import torch.distributed as td

from distae.distributed.startup import GRACE_SECONDS, Rendezvous, ends_within, explaining_lost_ranks
from distae.errors import UserError
from distae.runtime import signals
from distae.runtime.environment import Environment


@dataclass(frozen=True)
class World:
    """The ranks that train together. At world size 1 there is no group, and no collective is called."""

    rank: int
    world_size: int
    device: torch.device
    group: td.ProcessGroup | None = None
    """Gradients and reductions: NCCL on GPUs, else gloo."""
    control: td.ProcessGroup | None = None
    """For decisions on the host: the gloo side of `group`."""
    background: td.ProcessGroup | None = None
    """gloo, for the thread that writes checkpoints: two threads must not share a group."""
    node: td.ProcessGroup | None = None
    """gloo, the ranks of this machine; None if there is only one."""

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    @property
    def reads_for_node(self) -> bool:
        """Whether this rank reads files for all ranks of its machine."""
        return self.node is None or self.node.rank() == 0


_entered: list[World] = []
"""The worlds in use, the current one last. Not one per thread: autograd's threads compute gradients for the thread that trains."""


def world() -> World:
    """The current world."""
    return _entered[-1] if _entered else World(0, 1, torch.device("cpu"))


@contextlib.contextmanager
def use(world: World) -> Iterator[World]:
    """Make `world` the current one. Threads that train at the same time may leave in any order."""
    _entered.append(world)
    try:
        yield world
    finally:
        del _entered[next(i for i in reversed(range(len(_entered))) if _entered[i] is world)]


def pick_device(name: str, env: Environment) -> torch.device:
    """The device of this process. Raises UserError if `cuda` is requested and there is no GPU, or not one for each process.

    A launcher may show a task all GPUs of the node or only its own.
    """
    if name == "cpu" or (name == "auto" and not torch.cuda.is_available()):
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise UserError("--device cuda: torch finds no GPU here; valid: auto, cpu")
    visible = torch.cuda.device_count()
    if visible > 1 and env.local_world_size > visible:  # on all ranks of the node alike
        raise UserError(f"{env.local_world_size} processes on this node see {visible} GPUs: start one process per GPU")
    return torch.device("cuda", env.local_rank if visible > 1 else 0)


def memory_of(device: torch.device) -> int:
    """Total memory of a device in bytes."""
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).total_memory)
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def synchronize() -> None:
    """Wait for the work that is queued on the device."""
    if world().device.type == "cuda":
        torch.cuda.synchronize()


def set_threads(threads: str | int, env: Environment) -> int:
    """Set and return the CPU threads of this process; before the first parallel operation, or denormals stay slow."""
    torch.set_flush_denormal(True)
    if threads == "auto":
        threads = env.cpus or max(1, len(os.sched_getaffinity(0)) // env.local_world_size)
    torch.set_num_threads(int(threads))
    return int(threads)


def set_tf32(allowed: bool) -> None:
    """Whether GPUs may multiply fp32 matrices and convolve in TF32. torch's own default differs between the two.

    Not by the newer `fp32_precision`: after it torch 2.11 to 2.15 raise where anything, `cudnn.flags()` too, reads `allow_tf32`.
    """
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = allowed


@contextlib.contextmanager
def session(meeting: Rendezvous, device: torch.device) -> Iterator[World]:
    """The world of this job: joins the process group if there are several ranks, and leaves it at the end.

    Raises TrainingError if another rank is lost meanwhile, UserError if this process has another world that excludes this one.
    """
    env = meeting.env
    if _entered and (meeting.store is not None or _entered[-1].group is not None or _entered[-1].device != device):
        raise UserError(
            "another run is under way in this process: runs at the same time must have one rank each, and the same --device"
        )
    if device.type == "cuda":
        torch.cuda.set_device(device)
    if meeting.store is None:
        with use(World(0, 1, device)) as alone:
            yield alone
        return
    limit = timedelta(seconds=meeting.timeout)
    backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
    bound = device if device.type == "cuda" else None
    late = "lost contact with another rank at the start"
    with signals.default_actions(), explaining_lost_ranks(), ends_within(meeting.timeout + 2 * GRACE_SECONDS, late):
        td.init_process_group(
            backend, timeout=limit, world_size=env.world_size, rank=env.rank, store=meeting.store, device_id=bound
        )
        background = cast(td.ProcessGroup, td.new_group(backend="gloo", timeout=limit))
        everyone = cast(td.ProcessGroup, td.group.WORLD)
        node = _node_group(everyone, limit)
    try:
        # `everyone` is gloo on the host, whatever the device, and all ranks call it in one order: decisions need no second mesh.
        with use(World(env.rank, env.world_size, device, everyone, everyone, background, node)) as joined:
            yield joined
    finally:
        td.destroy_process_group()


def _node_group(control: td.ProcessGroup, limit: timedelta) -> td.ProcessGroup | None:
    """Group of the ranks with this rank's host name; None for one alone. Only they create it."""
    hosts: list[Any] = [None] * control.size()
    td.all_gather_object(hosts, platform.node(), group=control)
    ranks = [rank for rank, host in enumerate(hosts) if host == platform.node()]
    if len(ranks) in (1, control.size()):
        return None if len(ranks) == 1 else control
    return cast(td.ProcessGroup, td.new_group(ranks, limit, "gloo", use_local_synchronization=True))
