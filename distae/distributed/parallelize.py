"""How a model is parallelized over the ranks of the current `World`."""

import contextlib
import copy
import inspect
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, TypeVar, cast

import torch
import torch.distributed as td
from torch import Tensor, nn
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import bf16_compress_hook, fp16_compress_hook
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import (
    CPUOffloadPolicy,
    FSDPModule,
    MixedPrecisionPolicy,
    OffloadPolicy,
    fully_shard,
)
from torch.distributed.tensor import DTensor, Replicate, Shard
from torch.nn.parallel import DistributedDataParallel

from distae.config.parallel import HybridShardConfig, LatentShardConfig, ParallelConfig, ShardConfig
from distae.config.train import DDPConfig
from distae.distributed.collectives import all_reduce_
from distae.distributed.shards import is_sharded, local, spread, sum_copies_, whole
from distae.distributed.world import world
from distae.errors import UserError

COMPRESSION = {"bf16": bf16_compress_hook, "fp16": fp16_compress_hook}
GATHERED = {"bf16": torch.bfloat16, "fp16": torch.float16}
"""Types in which blocks are gathered: autocast would make their weights of these types anyway, of twice the bytes."""


def parallelize(model: nn.Module, cfg: DDPConfig, shares_gradients: bool = False) -> nn.Module:
    """`model`, or with several ranks a wrapper that averages the gradients of those parameters that require one now.

    A variant with several phases gets one wrapper per phase: no phase reduces another's gradients, and each graph is static.
    `shares_gradients` says that another wrapper has some of these parameters too. Gradients cannot then be views of buckets, and
    the graph is not declared static: such a wrapper would count the gradients of the other's backward pass as its own.
    """
    here = world()
    if here.group is None:
        return model
    renamed = "forward_sync_buffers" in inspect.signature(DistributedDataParallel).parameters  # torch 2.15
    buffers: dict[str, Any] = {"forward_sync_buffers" if renamed else "broadcast_buffers": False}
    wrapped = DistributedDataParallel(
        model, device_ids=[here.device] if here.device.type == "cuda" else None, process_group=here.group,
        gradient_as_bucket_view=not shares_gradients, static_graph=not shares_gradients, bucket_cap_mb=cfg.bucket_mb, **buffers,
    )  # fmt: skip
    if cfg.compression != "none":
        wrapped.register_comm_hook(here.group, COMPRESSION[cfg.compression])
    return wrapped


def is_sharding(cfg: ParallelConfig) -> bool:
    """Whether a model is to be sharded: not by one process alone."""
    return cfg.divides and world().group is not None


def mesh_of(cfg: ParallelConfig) -> DeviceMesh:
    """The ranks of the current world as a mesh: `[ranks]`, or `[groups, shard_size]`. Collective."""
    here = world()
    assert here.group is not None
    if not isinstance(cfg, HybridShardConfig | LatentShardConfig) or cfg.shard_size is None:
        return DeviceMesh.from_group(here.group, here.device.type)
    ranks = torch.tensor(td.get_process_group_ranks(here.group)).view(-1, cfg.shard_size)
    row, column = divmod(here.rank, cfg.shard_size)
    # All ranks make all groups: torch 2.11 names one that its members make alone by a count that differs between ranks.
    columns, rows = ([td.new_group(of.tolist()) for of in lines] for lines in (ranks.T, ranks))
    groups: Any = [columns[column], rows[row]]
    return DeviceMesh.from_group(groups, here.device.type, mesh=ranks, mesh_dim_names=("replicate", "shard"))


def shard(model: nn.Module, cfg: ParallelConfig, mesh: DeviceMesh, precision: str) -> None:
    """Replace the parameters of `model`, which is on the CPU, by this rank's parts on its device, in place."""
    if isinstance(cfg, LatentShardConfig):
        _divide_latents(model, mesh)
    else:
        _shard_fully(model, cfg, mesh, precision)


def _divide_latents(model: nn.Module, mesh: DeviceMesh) -> None:
    """Parts are rows of the parameters that the model's `of_latents` names; others stay whole."""
    group, placed = mesh.get_group(mesh.ndim - 1), [*[Replicate()] * (mesh.ndim - 1), Shard(0)]
    for name in cast(Iterable[str], model.of_latents):
        p = model.get_parameter(name)
        mine = p.detach().chunk(group.size())[group.rank()].to(world().device, copy=True)
        part = DTensor.from_local(mine, mesh, placed, run_check=False, shape=p.shape, stride=p.stride())
        model.register_parameter(name, nn.Parameter(part, requires_grad=p.requires_grad))
    model.to(world().device)  # the rest


def _shard_fully(model: nn.Module, cfg: ParallelConfig, mesh: DeviceMesh, precision: str) -> None:
    """Torch's FSDP2.

    Blocks are gathered one at a time, what is outside of them for the whole forward and backward pass. Scalars, and what a
    module's `kept_whole` names, stay whole: `average_gradients` averages theirs.
    """
    assert isinstance(cfg, ShardConfig)
    offload = CPUOffloadPolicy(pin_memory=world().device.type == "cuda") if cfg.cpu_offload else OffloadPolicy()
    undivided = {p for p in model.parameters() if not p.ndim} | _kept_whole(model)
    if undivided and cfg.cpu_offload and world().device.type == "cuda":
        raise UserError("--parallel.cpu-offload: the model has parameters that stay whole, which cannot be offloaded; leave it out")
    for p in undivided:
        p.data = p.data.to(world().device)
    kind = GATHERED.get(precision)
    half = MixedPrecisionPolicy(kind, torch.float32 if kind else None, cast_forward_inputs=False)
    for block in blocks_of(model):
        fully_shard(block, mesh=mesh, reshard_after_forward=True, mp_policy=half, offload_policy=offload, ignored_params=undivided)
    root = MixedPrecisionPolicy(cast_forward_inputs=False)
    fully_shard(model, mesh=mesh, reshard_after_forward=False, mp_policy=root, offload_policy=offload, ignored_params=undivided)


def blocks_of(module: nn.Module) -> list[nn.Module]:
    """The modules that are gathered, or computed again, as one: those that `module` names, or else its children.

    A module names them by a method `sharded_blocks`; they must be used only by calling them, never by their parameters. The
    members of an nn.Sequential are blocks. None has only parameters that the module's method `kept_whole` names.
    """
    named = getattr(module, "sharded_blocks", None)
    if named is None and isinstance(module, nn.Sequential):
        named = module.children
    if named is None:
        found = [block for child in module.children() for block in blocks_of(child)]
    else:
        found = [block for block in named() if next(block.parameters(), None) is not None]
    whole = _kept_whole(module)
    return [block for block in found if not whole.issuperset(block.parameters())]


def _kept_whole(module: nn.Module) -> set[nn.Parameter]:
    """What `module` or one inside of it names."""
    named = (getattr(m, "kept_whole", None) for m in module.modules())
    return {p for names in named if names for p in names()}


def average_gradients(model: nn.Module, parameters: Iterable[nn.Parameter]) -> None:
    """Average over the ranks the gradients of a sharded model that FSDP has not: of parameters that stay whole, and of latents.

    The gradient of a part of the latents is the sum over the ranks that share them: their samples have all been in it.
    """
    grads = [p.grad for p in parameters if p.grad is not None and not (is_sharded(p) and isinstance(model, FSDPModule))]
    undivided = [grad for grad in grads if not is_sharded(grad)]
    if undivided:
        sums = torch.split(all_reduce_(torch.cat([grad.flatten() for grad in undivided])), [grad.numel() for grad in undivided])
        for grad, total in zip(undivided, sums, strict=True):
            grad.copy_(total.view_as(grad))
    for grad in grads:
        (sum_copies_(grad) if is_sharded(grad) else grad).div_(world().world_size)


@contextlib.contextmanager
def accumulating(wrapped: nn.Module) -> Iterator[None]:
    """A backward pass that is not the last of a step. DDP sends nothing; FSDP sends each part to its owner, so that no rank holds
    whole gradients, and only groups of HSDP wait for the last."""
    if isinstance(wrapped, DistributedDataParallel):
        with wrapped.no_sync():
            yield
    elif isinstance(wrapped, FSDPModule):
        wrapped.set_requires_all_reduce(False)
        try:
            yield
        finally:
            wrapped.set_requires_all_reduce(True)
    else:
        yield


def spread_like(model: nn.Module, sharded: nn.Module) -> None:
    """Replace the parameters of `model` by this rank's parts, where those of `sharded`, a model of the same modules, are."""
    for mine, theirs in zip(model.modules(), sharded.modules(), strict=True):
        mine._buffers.update({name: b if b is None else b.to(world().device) for name, b in mine._buffers.items()})
        for name, p in mine._parameters.items():
            if p is not None:
                part = spread(p.detach(), theirs.get_parameter(name))
                mine._parameters[name] = nn.Parameter(part, requires_grad=p.requires_grad)


M = TypeVar("M", bound=nn.Module)


def hollow(model: M) -> M:
    """A copy of `model` without memory for its parameters, for `filled`."""
    copied = copy.deepcopy(model)
    for p in copied.parameters():
        p.data = torch.empty(0, dtype=p.dtype, device=world().device)
    return copied


@contextlib.contextmanager
def filled(
    empty: nn.Module, source: nn.Module, weights: Mapping[str, Tensor] | None = None, changes: bool = False
) -> Iterator[None]:
    """Give `empty`, which `hollow` made, the whole parameters of the sharded `source`, or `weights` instead, and its buffers.

    Every rank then holds all of them, and may use any method alone. Entered by all ranks together. With `changes`, the same on
    every rank, `source` gets what the parameters are at the end.
    """
    taken = dict(source.state_dict() if weights is None else weights)
    for mine, theirs in zip(empty.modules(), source.modules(), strict=True):
        mine._buffers.update(theirs._buffers)
    owned = dict(source.named_parameters())
    for name, buffer in [*empty.named_buffers()] if weights is not None else ():
        owner, _, last = name.rpartition(".")
        empty.get_submodule(owner)._buffers[last] = taken.get(name, buffer)
    for name, p in empty.named_parameters():
        p.data = whole(taken[name]).to(world().device)
    try:
        yield
        for name, p in empty.named_parameters() if changes else ():
            local(owned[name].detach()).copy_(local(spread(p.detach(), owned[name])))
    finally:
        for p in empty.parameters():
            p.data = torch.empty(0, dtype=p.dtype, device=world().device)


def load_whole_state(model: nn.Module, weights: dict[str, Tensor], partial: bool = False) -> None:
    """`model.load_state_dict` of whole tensors, sharded or not; with `partial` of those that the model has. Raises RuntimeError."""
    own = model.state_dict()
    fits = {k: own[k] for k, v in weights.items() if k in own and own[k].shape == v.shape}
    model.load_state_dict({k: spread(v, fits[k]) if k in fits else v for k, v in weights.items()}, strict=not partial)
