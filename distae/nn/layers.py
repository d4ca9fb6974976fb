"""Layers that hold over several ranks and draw no randomness of their own."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from distae import dist
from distae.config.nets import NetConfig
from distae.losses import wide
from distae.noise import Noise

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "none": lambda x: x,
    "relu": torch.relu,
    "leaky_relu": F.leaky_relu,
    "elu": F.elu,
    "gelu": F.gelu,
    "silu": F.silu,
    "tanh": torch.tanh,
    "sigmoid": torch.sigmoid,
    "softplus": F.softplus,
}


class BatchNorm(nn.Module):
    """Batch normalisation (Ioffe & Szegedy 2015) over the global batch: statistics are reduced over ranks, with gradients.

    `x` is `[B, C]` or `[B, C, H, W]`, B equal on all ranks. torch's SyncBatchNorm does not run on CPU.
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
        dims = [d for d in range(x.ndim) if d != 1]
        view = [1, -1] + [1] * (x.ndim - 2)
        count = x.numel() // x.shape[1] * dist.world().world_size
        values = wide(x)
        mean = dist.all_reduce(values.sum(dims)) / count
        centred = values - mean.view(view)
        var = dist.all_reduce(centred.square().sum(dims)) / count
        with torch.no_grad():
            self.running_mean.lerp_(mean, self.momentum)
            self.running_var.lerp_(var * (count / (count - 1)), self.momentum)
        scale = self.weight * torch.rsqrt(var + self.eps)
        return (centred * scale.view(view) + self.bias.view(view)).to(x.dtype)


def make_norm(cfg: NetConfig, channels: int, images: bool) -> nn.Module | None:
    """The normalisation that `cfg` asks for, over `[B, C]` or, with `images`, `[B, C, H, W]`."""
    if cfg.norm == "batch":
        return BatchNorm(channels)
    if cfg.norm == "group":
        return nn.GroupNorm(cfg.groups, channels)
    if cfg.norm == "layer":
        return nn.GroupNorm(1, channels) if images else nn.LayerNorm(channels)
    return None


def area(shape: tuple[int, ...], halvings: int) -> int:
    """Pixels that are left of an image `[C, H, W]` halved so many times."""
    return (shape[1] >> halvings) * (shape[2] >> halvings)


class Noisy(nn.Module):
    """A module whose forward takes `(x, noise)`; noise is None where nothing is to be drawn."""


class Hidden(Noisy):
    """layer, then norm, activation and dropout. Make the layer without bias where `has_bias(cfg)` is false."""

    def __init__(self, layer: nn.Module, channels: int, cfg: NetConfig, images: bool = False) -> None:
        super().__init__()
        self.layer = layer
        self.norm = make_norm(cfg, channels, images)
        self.activation = ACTIVATIONS[cfg.activation]
        self.dropout = cfg.dropout

    def forward(self, x: Tensor, noise: Noise | None) -> Tensor:
        x = self.layer(x)
        if self.norm is not None:
            x = self.norm(x)
        x = self.activation(x)
        return noise.dropout(x, self.dropout) if self.training and self.dropout and noise else x


def has_bias(cfg: NetConfig) -> bool:
    """A bias directly before a batch norm has no effect, and only rounding for a gradient."""
    return cfg.norm != "batch"


class Chain(Noisy):
    """Layers in a row; those that take noise are given it."""

    def __init__(self, *layers: nn.Module) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)

    def forward(self, x: Tensor, noise: Noise | None) -> Tensor:
        for layer in self.layers:
            x = layer(x, noise) if isinstance(layer, Noisy) else layer(x)
        return x
