"""Two networks that pythae 0.1.2 publishes for MNIST, for any variant: --plugin benchmarks/pythae_net.py --net pythae_conv.

Layers, sizes and parameter counts are those of pythae.models.nn.benchmarks.mnist; its two linear heads of a VAE are one here, and
its last sigmoid is in the likelihood. The batch norm is ours, over the global batch, so results do not depend on the world size.
"""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from distae.config.fields import Count
from distae.config.nets import NetConfig
from distae.nn import register_net
from distae.nn.layers import Chain
from distae.nn.norms import BatchNorm

Norm = Callable[[int], nn.Module]


def conv_down(width: int, out: int, norm: Norm) -> list[nn.Module]:
    """Encoder_Conv_VAE_MNIST: `[B, 1, 28, 28]` to `[B, out]`; pythae's width is 128."""
    sizes = (1, width, 2 * width, 4 * width, 8 * width)
    stages = [layer for a, b in pairwise(sizes) for layer in (nn.Conv2d(a, b, 4, 2, 1), norm(b), nn.ReLU())]
    return [*stages, nn.Flatten(), nn.Linear(8 * width, out)]


def conv_up(width: int, latent_dim: int, norm: Norm) -> list[nn.Module]:
    """Decoder_Conv_AE_MNIST without its sigmoid: `[B, latent_dim]` to `[B, 1, 28, 28]`."""
    w = width
    return [
        nn.Linear(latent_dim, 16 * 8 * w), nn.Unflatten(1, (8 * w, 4, 4)),
        nn.ConvTranspose2d(8 * w, 4 * w, 3, 2, 1), norm(4 * w), nn.ReLU(),
        nn.ConvTranspose2d(4 * w, 2 * w, 3, 2, 1, 1), norm(2 * w), nn.ReLU(),
        nn.ConvTranspose2d(2 * w, 1, 3, 2, 1, 1),
    ]  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class PythaeConvConfig(NetConfig):
    """pythae's convolutional network for MNIST; of --net.norm, --net.activation and --net.dropout it takes none."""

    name: ClassVar[str] = "pythae_conv"

    width: Count = 128
    """Channels of the first layer; the others are multiples."""
    statistics: Literal["global", "local"] = "global"
    """local: torch's batch norm over each process's own rows. Gives up parity; to measure what parity costs."""

    @property
    def widths(self) -> tuple[int, ...]:
        return tuple(self.width * k for k in (1, 2, 4, 8))

    @property
    def make_norm(self) -> Norm:
        return BatchNorm if self.statistics == "global" else nn.BatchNorm2d


@register_net(PythaeConvConfig)
class PythaeConv:
    """`[B, 1, 28, 28]` only."""

    @staticmethod
    def encoder(cfg: PythaeConvConfig, shape: tuple[int, ...], out: int) -> Chain:
        return Chain(*conv_down(cfg.width, out, cfg.make_norm))

    @staticmethod
    def decoder(cfg: PythaeConvConfig, shape: tuple[int, ...], latent_dim: int) -> Chain:
        return Chain(*conv_up(cfg.width, latent_dim, cfg.make_norm))


class Residual(nn.Module):
    """ResBlock: `[B, C, H, W]` to the same."""

    def __init__(self, channels: int, hidden: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.ReLU(), nn.Conv2d(channels, hidden, 3, 1, 1), nn.ReLU(), nn.Conv2d(hidden, channels, 1)
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = x + self.body(x)
        return out


class Vectors(nn.Module):
    """`[B, C, H, W]` to `[B, H * W * C]`: the channels of a pixel are one vector, as a quantizer needs them."""

    def forward(self, x: Tensor) -> Tensor:
        return x.permute(0, 2, 3, 1).flatten(1)


class Pixels(nn.Module):
    """The inverse of `Vectors`, to `[B, C, 4, 4]`."""

    def forward(self, z: Tensor) -> Tensor:
        return z.view(len(z), 4, 4, -1).permute(0, 3, 1, 2).contiguous(memory_format=torch.contiguous_format)


def resnet_down(dim: int) -> list[nn.Module]:
    """Encoder_ResNet_VQVAE_MNIST: `[B, 1, 28, 28]` to 16 vectors, `[B, 16 * dim]`."""
    return [
        nn.Conv2d(1, 64, 4, 2, 1), nn.Conv2d(64, 128, 4, 2, 1), nn.Conv2d(128, 128, 3, 2, 1), Residual(128, 32), Residual(128, 32),
        nn.Conv2d(128, dim, 1), Vectors(),
    ]  # fmt: skip


def resnet_up(dim: int) -> list[nn.Module]:
    """Decoder_ResNet_VQVAE_MNIST without its sigmoid: `[B, 16 * dim]` to `[B, 1, 28, 28]`."""
    return [
        Pixels(), nn.ConvTranspose2d(dim, 128, 1), nn.ConvTranspose2d(128, 128, 3, 2, 1), Residual(128, 32), Residual(128, 32),
        nn.ReLU(), nn.ConvTranspose2d(128, 64, 3, 2, 1, 1), nn.ReLU(), nn.ConvTranspose2d(64, 1, 3, 2, 1, 1),
    ]  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class PythaeResNetConfig(NetConfig):
    """pythae's ResNet for a VQ-VAE on MNIST: 16 vectors per image; --net.norm, --net.activation and --net.dropout are not used."""

    name: ClassVar[str] = "pythae_resnet"

    @property
    def widths(self) -> tuple[int, ...]:
        return (64, 128, 128)


@register_net(PythaeResNetConfig)
class PythaeResNet:
    """`[B, 1, 28, 28]` only; --model.latent-dim is 16 times --model.dim."""

    @staticmethod
    def encoder(cfg: PythaeResNetConfig, shape: tuple[int, ...], out: int) -> Chain:
        return Chain(*resnet_down(out // 16))

    @staticmethod
    def decoder(cfg: PythaeResNetConfig, shape: tuple[int, ...], latent_dim: int) -> Chain:
        return Chain(*resnet_up(latent_dim // 16))
