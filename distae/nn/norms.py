"""Normalisation layers with the same results at every world size."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from distae import distributed as dist
from distae.config.nets import NetConfig
from distae.losses import upcast


class BatchNorm(nn.Module):
    """Batch normalisation (Ioffe & Szegedy 2015) over the global batch: statistics are over the rows of all ranks.

    `x` is `[B, C]` or `[B, C, H, W]`, B equal on all ranks. torch's SyncBatchNorm needs a GPU and has no second derivative.
    """

    running_mean: Tensor
    running_var: Tensor

    def __init__(self, channels: int, momentum: float = 0.1, eps: float = 1e-5) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))
        self.register_buffer("running_mean", torch.zeros(channels))
        self.register_buffer("running_var", torch.ones(channels))
        self.momentum, self.eps = momentum, eps

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or dist.world().world_size == 1:
            return F.batch_norm(
                x, self.running_mean, self.running_var, self.weight, self.bias, self.training, self.momentum, self.eps
            )
        with torch.no_grad():
            mean, var = moments(upcast(x))
            count = x.numel() // x.shape[1] * dist.world().world_size
            self.running_mean.lerp_(mean, self.momentum)
            self.running_var.lerp_(var * (count / (count - 1)), self.momentum)
        out: Tensor = _Normalise.apply(x, self.weight, self.bias, mean, var, self.eps)
        return out


def moments(x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and biased variance `[C]` of `x` `[B, C, ...]` over the rows of all ranks, by one collective, with gradients.

    The ranks' moments are combined as in Chan et al. 1979, eq. 2.1: no cancellation between squares of a large mean.
    """
    dims, channel = _dims(x)
    mean = x.mean(dims)
    var = (x - channel(mean)).square().mean(dims)
    means, variances = dist.gather_rows(torch.stack([mean, var])[None]).unbind(1)
    mean = means.mean(0)
    return mean, variances.mean(0) + (means - mean).square().mean(0)


class _Normalise(torch.autograd.Function):
    """weight * (x - mean) / sqrt(var + eps) + bias, where mean and var are the `moments` of x.

    Forward and backward take a few passes over memory and one collective each; with plain autograd it is tens of each.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, mean: Tensor, var: Tensor, eps: float) -> Tensor:
        ctx.save_for_backward(x, weight, mean, var)
        ctx.eps = eps
        return F.batch_norm(x, mean, var, weight, bias, training=False, eps=eps)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        """Ioffe & Szegedy 2015, sec. 3, with the sums over the rows of all ranks."""
        x, weight, mean, var = ctx.saved_tensors
        x, g = upcast(x), upcast(grads[0])
        if torch.is_grad_enabled():  # for a second derivative, the moments must depend on x
            mean, var = moments(x)
        dims, channel = _dims(x)
        inverse = torch.rsqrt(var + ctx.eps)
        d_bias = g.sum(dims)
        d_weight = ((g * x).sum(dims) - mean * d_bias) * inverse
        count = x.numel() // x.shape[1] * dist.world().world_size
        mean_g, mean_gx = (dist.all_reduce(torch.stack([d_bias, d_weight])) / count).unbind()
        by_g, by_x = weight * inverse, -weight * inverse.square() * mean_gx
        constant = -by_g * mean_g - by_x * mean
        d_x = torch.addcmul(torch.addcmul(channel(constant), x, channel(by_x)), g, channel(by_g))
        return d_x.to(grads[0].dtype), d_weight, d_bias, None, None, None


def _dims(x: Tensor) -> tuple[list[int], Any]:
    """All dimensions of `x` `[B, C, ...]` but the channels, and a function that reshapes `[C]` to broadcast over x."""
    return [0, *range(2, x.ndim)], lambda values: values.view(-1, *[1] * (x.ndim - 2))


def make_norm(cfg: NetConfig, channels: int, images: bool) -> nn.Module | None:
    """The normalisation of the settings, for `[B, C]` or, with `images`, `[B, C, H, W]`; None with `--net.norm none`."""
    if cfg.norm == "batch":
        return BatchNorm(channels)
    if cfg.norm == "group":
        return nn.GroupNorm(cfg.groups_of(channels), channels, cfg.norm_eps)
    if cfg.norm == "layer":
        return nn.GroupNorm(1, channels, cfg.norm_eps) if images else nn.LayerNorm(channels)
    return None
