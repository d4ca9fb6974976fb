"""The processes of a run: device, process groups, reductions with and without gradients.

One `World` is current at a time. Everything that couples samples over ranks (batch norm, gathered estimators, evaluation,
decisions) goes through it, so the same code runs on one process, on all of them, or on a subgroup of them.
"""

import contextlib
import os
import re
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, cast

import torch
import torch.distributed as td
from torch import Tensor
from torch.distributed.rendezvous import rendezvous

from distae import stop
from distae.environment import Environment
from distae.errors import TrainingError, UserError

LAST_WAIT = timedelta(seconds=10)
"""For the other ranks, where this one was asked to stop before it met them: they may have ended already."""


@dataclass(frozen=True)
class World:
    """The ranks that train together. At world size 1 there is no group and no collective is called."""

    rank: int
    world_size: int
    device: torch.device
    group: td.ProcessGroup | None = None
    """Gradients and reductions: NCCL on GPUs, else gloo."""
    control: td.ProcessGroup | None = None
    """gloo, for decisions on the host."""
    background: td.ProcessGroup | None = None
    """gloo, for the thread that writes checkpoints: two threads must not share a group."""

    @property
    def is_main(self) -> bool:
        return self.rank == 0


_current: World | None = None


def world() -> World:
    """The current world."""
    return _current or World(0, 1, torch.device("cpu"))


@contextlib.contextmanager
def use(world: World) -> Iterator[World]:
    """Make `world` the current one."""
    global _current  # noqa: PLW0603 - one world per process is the point
    before, _current = _current, world
    try:
        yield world
    finally:
        _current = before


def pick_device(name: str, env: Environment) -> torch.device:
    """The device of this process. Raises UserError where `cuda` is asked for and there is none, or not one for each process.

    A launcher may show a task all GPUs of the node or only its own.
    """
    if name == "cpu" or (name == "auto" and not torch.cuda.is_available()):
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise UserError("--device cuda: torch finds no GPU here; valid: auto, cpu")
    visible = torch.cuda.device_count()
    if visible > 1 and env.local_world_size > visible:  # not local_rank: then the first would not know, and wait for the others
        raise UserError(f"{env.local_world_size} processes on this node see {visible} GPUs: start one process per GPU")
    return torch.device("cuda", env.local_rank if visible > 1 else 0)


def synchronize() -> None:
    """Wait for what is queued on the device."""
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
def session(env: Environment, device: torch.device, timeout: float) -> Iterator[World]:
    """The world of this job: joins the process group where there are several ranks, and leaves it at the end."""
    if device.type == "cuda":
        torch.cuda.set_device(device)
    if env.world_size == 1:
        with use(World(0, 1, device)) as alone:
            yield alone
        return
    limit = timedelta(seconds=timeout)
    backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
    with stop.meeting() as asked:
        store = _meet(env, min(limit, LAST_WAIT) if asked else limit)
    # torchrun's agent keeps one store over its restarts, with addresses of dead ranks in it (seen on 2.15): they meet elsewhere.
    # Agents of several nodes count restarts differently and must not share it (slurm/torchrun.sbatch): then it is fresh by itself.
    start = env.restarts if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True" else 0
    store = td.PrefixStore(f"start_{start}", store)  # type: ignore[attr-defined]
    bound = device if device.type == "cuda" else None
    td.init_process_group(backend, timeout=limit, world_size=env.world_size, rank=env.rank, store=store, device_id=bound)
    try:
        everyone, control, background = (cast(td.ProcessGroup, g) for g in (td.group.WORLD, _host_group(limit), _host_group(limit)))
        with use(World(env.rank, env.world_size, device, everyone, control, background)) as joined:
            yield joined
    finally:
        td.destroy_process_group()


def _meet(env: Environment, limit: timedelta) -> "td.distributed_c10d.Store":
    """The store where the ranks find each other. Raises UserError where its port is taken, TrainingError where they do not meet."""
    where = env.rendezvous
    if where == "env://":
        where = f"MASTER_ADDR {os.environ.get('MASTER_ADDR')}, MASTER_PORT {os.environ.get('MASTER_PORT')}"
    try:
        store, *_ = next(rendezvous(env.rendezvous, env.rank, env.world_size, timeout=limit))
    except td.DistError as error:
        if "EADDRINUSE" in str(error):
            raise UserError(f"{where}: the port is in use by another program; choose another, or start again") from error
        raise TrainingError(f"{where}: the other ranks were not met within {limit.total_seconds():g} s (--timeout)") from error
    return cast("td.distributed_c10d.Store", store)


def _host_group(limit: timedelta) -> object:
    return td.new_group(backend="gloo", timeout=limit)


class _AllReduce(torch.autograd.Function):
    """Sum over ranks; the gradient is the sum of the ranks' gradients."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, group: td.ProcessGroup) -> Tensor:
        ctx.group = group
        x = x.clone(memory_format=torch.contiguous_format)
        td.all_reduce(x, group=group)
        return x

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return _AllReduce.apply(grads[0], ctx.group), None  # itself differentiable: gradient penalties need it


def all_reduce(x: Tensor) -> Tensor:
    """Sum of `x` over ranks, with gradients."""
    group = world().group
    return x if group is None else _AllReduce.apply(x, group)


class _GatherRows(torch.autograd.Function):
    """Rows of all ranks, interleaved into global order; the gradient is the sum of the ranks' gradients, each taking its rows'."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, here: World) -> Tensor:
        ctx.here = here
        parts = [torch.empty_like(x, memory_format=torch.contiguous_format) for _ in range(here.world_size)]
        td.all_gather(parts, x.contiguous(), group=here.group)
        return torch.stack(parts, dim=1).flatten(0, 1)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return _AllReduce.apply(grads[0], ctx.here.group)[ctx.here.rank :: ctx.here.world_size], None


def gather_rows(x: Tensor) -> Tensor:
    """`[B, ...]` of every rank as `[world_size * B, ...]` in global order (rank r holds rows r::world_size), with gradients."""
    return x if world().group is None else _GatherRows.apply(x, world())


def my_rows(x: Tensor) -> Tensor:
    """This rank's rows of a global batch: the inverse of `gather_rows`."""
    return x[world().rank :: world().world_size]


def sum_(x: Tensor) -> Tensor:
    """Sum of `x` over ranks, in place, without gradients."""
    if world().group is not None:
        td.all_reduce(x, group=world().group)
    return x


def broadcast(value: Any) -> Any:
    """Rank 0's `value` on every rank: how a decision is taken once."""
    if world().control is None:
        return value
    box = [value]
    td.broadcast_object_list(box, group=world().control, group_src=0)
    return box[0]


def gather(value: Any, group: td.ProcessGroup | None = None) -> list[Any]:
    """Every rank's `value`, in rank order, on every rank."""
    group = group or world().control
    if group is None:
        return [value]
    boxes = [None] * group.size()
    td.all_gather_object(boxes, value, group=group)
    return boxes


def first_failure(text: str) -> str:
    """Announce that this rank failed; returns the first announcement of all ranks, the cause of the others.

    Ranks that only lost contact give the culprit a moment to speak. Where the store is gone too, their own text is all there is.
    """
    lost = world().group is not None and _LOST_CONTACT.search(text) is not None
    text = f"rank {world().rank}: " + (f"lost contact with another rank ({text})" if lost else text)
    if world().group is None:
        return text
    with contextlib.suppress(RuntimeError):
        store = td.distributed_c10d._get_default_store()
        if lost:
            with contextlib.suppress(td.DistStoreError):
                store.wait(["distae/failure"], timedelta(seconds=2))
        return bytes(store.compare_set("distae/failure", "", text)).decode()
    return text


_LOST_CONTACT = re.compile(r"gloo|nccl|Connection (closed|reset)|Broken pipe|timed out", re.IGNORECASE)


class Vote:
    """A number on which all ranks agree, and nobody waits: cast in one round, read in the next.

    A round costs a tiny step a tenth of its time. Rounds are about PERIOD seconds apart, counted in calls (at most MOST_CALLS), of
    which all ranks make the same number.
    """

    PERIOD = 0.1
    MOST_CALLS = 16

    def __init__(self) -> None:
        self.box = torch.zeros(2, dtype=torch.int32)
        """The number, and minus the calls until the round after next: the ranks agree on the largest of each."""
        self.work: td.Work | None = None
        self.calls, self.apart = 0, 1
        self.began, self.seconds = time.perf_counter(), 0.0

    def cast(self, value: int, at_once: bool = False) -> int:
        """The largest value that any rank gave in the round before, 0 between rounds; give `value` to the next.

        Called by all ranks alike. `at_once` makes this call a round: for calls that take longer than those before.
        """
        if world().control is None:
            return value
        self.calls += 1
        if self.calls < self.apart and not at_once:
            return 0
        now = time.perf_counter()
        # The host of a GPU runs ahead until it looks at a number: what a call took then is remembered for some rounds.
        self.seconds = max((now - self.began) / self.calls, 0.8 * self.seconds, 1e-6)
        result = self.settle()
        self.began, self.calls, self.apart = now, 0, max(1, -int(self.box[1]))
        self.box[0], self.box[1] = value, -max(1, min(int(self.PERIOD / self.seconds), self.MOST_CALLS))
        self.work = td.all_reduce(self.box, td.ReduceOp.MAX, group=world().control, async_op=True)
        return result

    def settle(self) -> int:
        """The result of the round under way, 0 where there is none."""
        if self.work is None:
            return 0
        self.work.wait()
        self.work = None
        return int(self.box[0])
