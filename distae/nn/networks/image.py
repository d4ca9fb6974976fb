"""The encoder and decoder of latent diffusion's image autoencoders (Esser 2021, Rombach 2022), for any size of image."""

from itertools import chain, pairwise, repeat

import torch.nn.functional as F
from torch import Tensor, nn

from distae.config.nets import ImageConfig
from distae.nn.layers import Chain, has_bias
from distae.nn.networks.resnet import Block, NormAct
from distae.nn.norms import make_norm


class Attention(nn.Module):
    """x + projection(attention(norm(x))) over the positions of a map, with one head. `[B, C, H, W]` to the same."""

    def __init__(self, cfg: ImageConfig, channels: int) -> None:
        super().__init__()
        self.norm = make_norm(cfg, channels, images=True) or nn.Identity()
        self.qkv, self.proj = nn.Conv2d(channels, 3 * channels, 1), nn.Conv2d(channels, channels, 1, bias=has_bias(cfg))

    def forward(self, x: Tensor) -> Tensor:
        query, key, value = self.qkv(self.norm(x)).flatten(2).transpose(1, 2)[:, None].chunk(3, 3)
        seen = F.scaled_dot_product_attention(query, key, value)
        out: Tensor = x + self.proj(seen[:, 0].transpose(1, 2).view_as(x))
        return out


class Centred(nn.Conv2d):
    """A convolution of values in [0, 1] as the published networks see them, in [-1, 1]: the padding's 0 is their middle."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(2 * x - 1)


class Downsample(nn.Module):
    """A strided convolution; the padding is on the right and below alone, as in the published networks. Halves the sides."""

    def __init__(self, cfg: ImageConfig, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, 2, bias=has_bias(cfg))

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.conv(F.pad(x, (0, 1, 0, 1)))
        return out


def encoder(cfg: ImageConfig, shape: tuple[int, ...], out: int) -> Chain:
    """`[B, C, H, W]` to a map of `out` channels; H and W are divisible by 2**cfg.halvings."""
    inner, last = cfg.inner_channels or out, cfg.widths[-1]
    parts: list[nn.Module] = [Centred(shape[0], cfg.channels, 3, 1, 1, bias=has_bias(cfg))]
    for level, (before, width) in enumerate(pairwise((cfg.channels, *cfg.widths)), 1):
        parts += [Downsample(cfg, before)] if level > 1 else []
        parts += _stage(cfg, level, before, width, cfg.blocks)
    return Chain(*parts, *_middle(cfg), NormAct(cfg, last), nn.Conv2d(last, inner, 3, 1, 1), nn.Conv2d(inner, out, 1))


def decoder(cfg: ImageConfig, shape: tuple[int, ...], latent_dim: int) -> Chain:
    """A map of `latent_dim` channels to `[B, C, H, W]`."""
    inner, first = cfg.inner_channels or latent_dim, cfg.widths[0]
    parts: list[nn.Module] = [nn.Conv2d(latent_dim, inner, 1), _conv(cfg, inner, cfg.widths[-1]), *_middle(cfg)]
    for level, (before, width) in enumerate(pairwise((cfg.widths[-1], *reversed(cfg.widths)))):
        parts += [nn.Upsample(scale_factor=2), _conv(cfg, before, before)] if level else []
        parts += _stage(cfg, len(cfg.widths) - level, before, width, cfg.blocks + 1)
    return Chain(*parts, NormAct(cfg, first), nn.Conv2d(first, shape[0], 3, 1, 1))


def _conv(cfg: ImageConfig, inputs: int, channels: int) -> nn.Conv2d:
    return nn.Conv2d(inputs, channels, 3, 1, 1, bias=has_bias(cfg))


def _stage(cfg: ImageConfig, level: int, inputs: int, channels: int, blocks: int) -> list[nn.Module]:
    """The blocks of a level, and its attention."""
    parts: list[nn.Module] = []
    for a, b in pairwise(chain((inputs,), repeat(channels, blocks))):
        parts += [Block(cfg, a, b), *([Attention(cfg, b)] if level in cfg.attention else [])]
    return parts


def _middle(cfg: ImageConfig) -> list[nn.Module]:
    """What works on the smallest map."""
    width = cfg.widths[-1]
    attention = [Attention(cfg, width)] if cfg.middle_attention else []
    return [Block(cfg, width, width), *attention, Block(cfg, width, width)]
