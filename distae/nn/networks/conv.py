"""Strided convolutions down, transposed convolutions up."""

from itertools import pairwise

from torch import nn

from distae.config.nets import ConvConfig
from distae.nn.layers import Chain, Hidden, area, has_bias


def encoder(cfg: ConvConfig, shape: tuple[int, ...], out: int) -> Chain:
    """`[B, C, H, W]` to `[B, out]`, or a map of `out` channels; H and W are divisible by 2**len(cfg.channels)."""
    sizes = (shape[0], *cfg.channels)
    layers = [Hidden(nn.Conv2d(a, b, 4, 2, 1, bias=has_bias(cfg)), b, cfg, images=True) for a, b in pairwise(sizes)]
    if cfg.spatial:
        return Chain(*layers, nn.Conv2d(sizes[-1], out, 1))
    return Chain(*layers, nn.Flatten(), nn.Linear(sizes[-1] * area(shape, len(cfg.channels)), out))


def decoder(cfg: ConvConfig, shape: tuple[int, ...], latent_dim: int) -> Chain:
    """`[B, latent_dim]`, or a map of `latent_dim` channels, to `[B, C, H, W]`."""
    sizes = tuple(reversed(cfg.channels))
    start: nn.Module
    if cfg.spatial:
        start = nn.Conv2d(latent_dim, sizes[0], 3, 1, 1, bias=has_bias(cfg))
    else:
        rows, columns, channels = cfg.map_shape(shape, sizes[0])
        start = nn.Sequential(
            nn.Linear(latent_dim, rows * columns * channels, bias=has_bias(cfg)), nn.Unflatten(1, (channels, rows, columns))
        )
    layers = [Hidden(nn.ConvTranspose2d(a, b, 4, 2, 1, bias=has_bias(cfg)), b, cfg, images=True) for a, b in pairwise(sizes)]
    last = nn.ConvTranspose2d(sizes[-1], shape[0], 4, 2, 1)
    return Chain(Hidden(start, sizes[0], cfg, images=True), *layers, last)
