"""Layers; all randomness in them comes from a `Noise` that they are passed."""

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
    """Pixels of an image of shape `(C, H, W)` after its sides are halved `halvings` times."""
    return (shape[1] >> halvings) * (shape[2] >> halvings)


class Noisy(nn.Module):
    """A module whose forward takes `(x, noise)`; without noise (None) it is deterministic."""


class Hidden(Noisy):
    """`layer`, then norm, activation and dropout. Build the layer without a bias where `has_bias(cfg)` is false."""

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
    """Whether a layer before a norm needs a bias. Before a batch norm it has no effect, and its gradient is rounding error."""
    return cfg.norm != "batch"


class Chain(Noisy):
    """Layers applied one after the other, like nn.Sequential; `Noisy` ones also receive the noise."""

    def __init__(self, *layers: nn.Module) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)

    def sharded_blocks(self) -> list[nn.Module]:
        """What `--parallel fsdp` gathers, and `--checkpoint-activations` computes again, as one: each layer, or its own."""
        nested = ((layer, getattr(layer, "sharded_blocks", None)) for layer in self.layers)
        return [block for layer, inner in nested for block in (inner() if inner else [layer])]

    def forward(self, x: Tensor, noise: Noise | None) -> Tensor:
        for layer in self.layers:
            x = layer(x, noise) if isinstance(layer, Noisy) else layer(x)
        return x
