"""How a model is parallelized over the ranks of the current `World`."""

import inspect
from typing import Any

from torch import nn
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import bf16_compress_hook, fp16_compress_hook
from torch.nn.parallel import DistributedDataParallel

from distae.config.train import DDPConfig
from distae.distributed.world import world

COMPRESSION = {"bf16": bf16_compress_hook, "fp16": fp16_compress_hook}


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
