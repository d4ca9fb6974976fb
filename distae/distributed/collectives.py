"""Reductions and gathers over the ranks of the current `World`, with and without gradients."""

from collections.abc import Callable
from typing import Any, TypeVar

import torch
import torch.distributed as td
from torch import Tensor

from distae.distributed.world import World, world

T = TypeVar("T")


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
    """Rows of all ranks, concatenated in rank order; the gradient of a rank's rows is the sum over ranks."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, here: World) -> Tensor:
        ctx.here = here
        assert here.group is not None
        return rows_of(x, here.group)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return _part(_AllReduce.apply(grads[0], ctx.here.group), ctx.here), None


def gather_rows(x: Tensor) -> Tensor:
    """`[B, ...]` of every rank as `[world_size * B, ...]` in global order (rank r's begin at r * B), with gradients."""
    return x if world().group is None else _GatherRows.apply(x, world())


def rows_of(x: Tensor, group: td.ProcessGroup) -> Tensor:
    """`[B, ...]` of every rank of a group as `[size * B, ...]`, in rank order, without gradients."""
    everyone = x.new_empty(len(x) * group.size(), *x.shape[1:])
    td.all_gather_into_tensor(everyone, x.contiguous(), group=group)
    return everyone


class _SumRows(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, group: td.ProcessGroup) -> Tensor:
        ctx.group = group
        own = x.new_empty(len(x) // group.size(), *x.shape[1:])
        td.reduce_scatter_tensor(own, x.contiguous(), group=group)
        return own

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return rows_of(grads[0], ctx.group), None


def sum_rows(x: Tensor, group: td.ProcessGroup) -> Tensor:
    """Sum over a group's ranks of `[size * B, ...]`, of which each rank gets its own `[B, ...]`; gradients go to all ranks."""
    result: Tensor = _SumRows.apply(x, group)
    return result


def local_rows(x: Tensor) -> Tensor:
    """This rank's rows of a global batch: the inverse of `gather_rows`."""
    return _part(x, world())


def _part(x: Tensor, here: World) -> Tensor:
    rows = len(x) // here.world_size
    return x[here.rank * rows : (here.rank + 1) * rows]


def all_reduce_(x: Tensor) -> Tensor:
    """Sum of `x` over ranks, in place, without gradients."""
    if world().group is not None:
        td.all_reduce(x, group=world().group)
    return x


def broadcast(value: Any) -> Any:
    """Rank 0's `value` on every rank, so that decisions are taken once."""
    if world().control is None:
        return value
    box = [value]
    td.broadcast_object_list(box, group=world().control, group_src=0)
    return box[0]


def on_main(work: Callable[[], T]) -> T:
    """What `work` returns on rank 0, on every rank; what it raises there is raised on every rank."""
    result, error = None, None
    if world().is_main:
        try:
            result = work()
        except Exception as raised:
            error = raised
    if world().control is not None:
        result, error = broadcast((result, error))
    if error:
        raise error
    return result  # type: ignore[return-value]


def broadcast_in_node(tensors: list[Tensor]) -> None:
    """Fill the tensors, on every rank of this machine, with those of the rank that `reads_for_node`."""
    node = world().node
    if node is None:
        return
    for t in (t.detach() for t in tensors if t.numel()):
        host = t.cpu().contiguous()
        td.broadcast(host.reshape(-1).view(torch.uint8), group=node, group_src=0)
        if host is not t and not world().reads_for_node:
            t.copy_(host)


def gather(value: Any, group: td.ProcessGroup | None = None) -> list[Any]:
    """Every rank's `value`, in rank order, on every rank."""
    group = group or world().control
    if group is None:
        return [value]
    boxes = [None] * group.size()
    td.all_gather_object(boxes, value, group=group)
    return boxes
