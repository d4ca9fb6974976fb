"""Layers that draw no randomness of their own."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from distae.config.nets import NetConfig
from distae.nn.norms import make_norm
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
