"""Fully connected encoder and decoder."""

from itertools import pairwise
from math import prod

from torch import nn

from distae.config.nets import MLPConfig
from distae.nn.layers import Chain, Hidden, has_bias


def encoder(cfg: MLPConfig, shape: tuple[int, ...], out: int) -> Chain:
    """`[B, *shape]` to `[B, out]`."""
    sizes = (prod(shape), *cfg.hidden)
    return Chain(nn.Flatten(), *_hidden(cfg, sizes), nn.Linear(sizes[-1], out))


def decoder(cfg: MLPConfig, shape: tuple[int, ...], latent_dim: int) -> Chain:
    """`[B, latent_dim]` to `[B, *shape]`."""
    sizes = (latent_dim, *reversed(cfg.hidden))
    return Chain(*_hidden(cfg, sizes), nn.Linear(sizes[-1], prod(shape)), nn.Unflatten(1, shape))


def _hidden(cfg: MLPConfig, sizes: tuple[int, ...]) -> list[Hidden]:
    return [Hidden(nn.Linear(a, b, bias=has_bias(cfg)), b, cfg) for a, b in pairwise(sizes)]
