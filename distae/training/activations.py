"""Activation checkpointing: blocks keep their inputs alone, and their backward pass computes the rest again."""

import contextlib
import functools
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from distae import distributed as dist
from distae.models import Autoencoder
from distae.noise import Noise


def checkpoint_activations(model: Autoencoder) -> None:
    """Make the blocks of `model` checkpoint their activations (Chen et al. 2016, arXiv 1604.06174), in place."""
    for block in dist.blocks_of(model):
        block.forward = functools.partial(_checkpointed, block, block.forward)


def _checkpointed(block: nn.Module, forward: Callable[..., Tensor], *args: Any) -> Tensor:
    if not torch.is_grad_enabled() or not block.training:
        return forward(*args)
    noise = next((arg for arg in args if isinstance(arg, Noise)), None)
    again = functools.partial(_again, block, noise, noise.calls if noise else 0)
    how: dict[str, Any] = {"use_reentrant": False, "preserve_rng_state": False}
    return checkpoint(forward, *args, context_fn=lambda: (contextlib.nullcontext(), again()), **how)


@contextlib.contextmanager
def _again(block: nn.Module, noise: Noise | None, calls: int) -> Iterator[None]:
    """The second forward pass draws the noise of the first, and its statistics do not count."""
    after, buffers = noise.calls if noise else 0, [b.clone() for b in block.buffers()]
    if noise:
        noise.calls = calls
    try:
        yield
    finally:
        if noise:
            noise.calls = after
        for buffer, before in zip(block.buffers(), buffers, strict=True):
            buffer.copy_(before)
