"""Tensors of which each rank holds a part (torch's DTensors), as `--parallel fsdp`, `hsdp` and `tp` make them of parameters."""

import torch
import torch.distributed as td
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from distae.distributed.collectives import all_reduce_


def is_sharded(x: Tensor) -> bool:
    """Whether each rank holds a part of `x` only."""
    return isinstance(x, DTensor)


def local(x: Tensor) -> Tensor:
    """This rank's part of `x`, which shares its memory; `x` itself if every rank holds it whole."""
    if not isinstance(x, DTensor):
        return x
    with torch.no_grad():
        return x.to_local()


def part(x: Tensor) -> Tensor:
    """`local` with gradients: the part's is that of the same part of `x`."""
    return x.to_local() if isinstance(x, DTensor) else x


def whole(x: Tensor) -> Tensor:
    """`x` with the parts of all ranks, on every rank. Collective."""
    if not isinstance(x, DTensor):
        return x
    with torch.no_grad():
        return x.full_tensor()


def like(part: Tensor, x: Tensor) -> Tensor:
    """`part`, which has the shape and device of this rank's part of `x`, as a tensor that is spread over the ranks like `x`."""
    if not isinstance(x, DTensor):
        return part
    made = torch.empty_like(x.detach(), dtype=part.dtype)
    local(made).set_(part)  # type: ignore[call-overload]  # DTensor.from_local would move parts that are in host memory to the GPU
    return made


def spread(full: Tensor, x: Tensor) -> Tensor:
    """`full`, which every rank holds whole, as a tensor that is spread over the ranks like `x`. No collective."""
    if not isinstance(x, DTensor):
        return full.to(x.device)
    (chunk,) = x.__create_chunk_list__()  # type: ignore[no-untyped-call]
    mine = full[tuple(slice(start, start + size) for start, size in zip(chunk.offsets, chunk.sizes, strict=True))]
    return like(mine.to(x.device, copy=True).contiguous(), x)


def own_part(p: nn.Parameter) -> nn.Parameter:
    """This rank's part of a parameter as one that an optimizer updates in place; `p` itself if it is whole."""
    return nn.Parameter(local(p), requires_grad=p.requires_grad) if isinstance(p, DTensor) else p


def offsets_of(x: Tensor) -> torch.Size | None:
    """Where this rank's part of a sharded `x` begins; None if it is empty, or if an earlier rank has the same part."""
    assert isinstance(x, DTensor)
    (chunk,) = x.__create_chunk_list__()  # type: ignore[no-untyped-call]
    coordinate = x.device_mesh.get_coordinate()
    if 0 in chunk.sizes or coordinate is None or any(coordinate[:-1]):
        return None
    return torch.Size(chunk.offsets)


def rows_held(x: Tensor) -> tuple[range, td.ProcessGroup | None]:
    """Which rows of `x` this rank holds, and the ranks that hold the others; None if there are none."""
    if not isinstance(x, DTensor):
        return range(len(x)), None
    (chunk,) = x.__create_chunk_list__()  # type: ignore[no-untyped-call]
    mesh, start = x.device_mesh, chunk.offsets[0]
    return range(start, start + chunk.sizes[0]), mesh.get_group(mesh.ndim - 1)


def sum_copies_(x: Tensor) -> Tensor:
    """This rank's part of `x`, summed in place over the ranks that hold the same part, or all if they hold it whole."""
    mine = local(x)
    if not isinstance(x, DTensor):
        return all_reduce_(mine)
    if x.device_mesh.ndim > 1:
        td.all_reduce(mine, group=x.device_mesh.get_group(0))
    return mine


def norm(tensors: list[Tensor]) -> Tensor:
    """L2 norm of all values of the tensors, of those that are sharded over all ranks: a scalar, the same on every rank."""
    parts = [local(x) for x in tensors]
    mesh = next((x.device_mesh for x in tensors if isinstance(x, DTensor)), None)
    if mesh is None:
        return _norm(parts)
    group = mesh.get_group(mesh.ndim - 1)
    if group.rank():  # counts what every rank holds once
        parts = [part for part, x in zip(parts, tensors, strict=True) if isinstance(x, DTensor)]
    mine = _norm(parts)
    norms = mine.new_empty(group.size())
    td.all_gather_into_tensor(norms, mine[None], group=group)
    total: Tensor = torch.linalg.vector_norm(norms)
    return total


def _norm(tensors: list[Tensor]) -> Tensor:
    total: Tensor = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(tensors)))
    return total
