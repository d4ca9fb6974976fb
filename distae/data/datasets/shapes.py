"""Shapes drawn from known factors."""

import math

import numpy as np
import torch
from torch import Tensor

from distae.config.data.shapes import FACTORS, ShapesConfig
from distae.data.datasets.base import register_dataset
from distae.data.source import Tensors
from distae.data.splits import Split, hold_out
from distae.data.transform import Transform
from distae.noise.permutation import KeyedPermutation

PIXELS = 1 << 20
"""Number of pixels drawn at once."""
LARGEST = 0.24
"""Half the side of the largest square, relative to the side of the image; hearts and ellipses have about its area."""


@register_dataset(ShapesConfig)
def load(cfg: ShapesConfig) -> tuple[Split, Split]:
    factors = factors_of(cfg)
    source = Tensors(draw(cfg, factors), factors[:, FACTORS.index(cfg.label)].contiguous())
    source.columns = dict(zip(FACTORS, np.ascontiguousarray(factors.numpy().T), strict=True))
    return hold_out(Split(source, Transform(255.0)), cfg.test_fraction)


def factors_of(cfg: ShapesConfig) -> Tensor:
    """`[N, 5]` int64, the index of each factor's value. It depends on the sample's index alone: a larger set only adds samples.

    Combinations come in a keyed permutation of all of them, repeatedly: none comes twice before each has come once.
    """
    total = math.prod(cfg.sizes)
    number = torch.arange(cfg.count)
    if cfg.samples != "all":
        number = KeyedPermutation(total, "shapes")(number % total)
    columns = []
    for size in reversed(cfg.sizes):
        columns.append(number % size)
        number = number // size
    return torch.stack(columns[::-1], 1)


def draw(cfg: ShapesConfig, factors: Tensor) -> Tensor:
    """Images `[N, 1, size, size]` uint8, from factors `[N, 5]`."""
    images = torch.empty((len(factors), 1, cfg.size, cfg.size), dtype=torch.uint8)
    at_once = max(1, PIXELS // cfg.size**2)
    for start in range(0, len(factors), at_once):
        images[start : start + at_once, 0] = _drawn(cfg, factors[start : start + at_once])
    return images


def _drawn(cfg: ShapesConfig, factors: Tensor) -> Tensor:
    """`[B, size, size]` uint8: white inside the shape, by the distance of each pixel from the edge."""
    kind = factors[:, 0]
    scale = LARGEST * (0.5 + 0.5 * _fraction(factors[:, 1], cfg.scales, 1.0)[:, None, None])
    turn = (2 * math.pi * factors[:, 2].double() / cfg.orientations)[:, None, None]
    margin = LARGEST * math.sqrt(2)  # no shape leaves the image, whichever way it is turned
    x, y = (margin + (1 - 2 * margin) * _fraction(factors[:, i], cfg.positions, 0.5)[:, None, None] for i in (3, 4))
    pixels = (torch.arange(cfg.size, dtype=torch.float64) + 0.5) / cfg.size  # rounds alike on every kind of CPU
    dx, dy = pixels[None, None, :] - x, pixels[None, :, None] - y
    u, v = (dx * turn.cos() + dy * turn.sin()) / scale, (dy * turn.cos() - dx * turn.sin()) / scale
    inside = torch.empty_like(u)
    for number, distance in enumerate((_square, _ellipse, _heart)):
        inside[kind == number] = distance(u[kind == number], v[kind == number])
    if not cfg.antialias:
        return (inside > 0).to(torch.uint8) * 255
    return (inside * scale * cfg.size + 0.5).clamp(0, 1).mul(255).round().to(torch.uint8)


def _fraction(number: Tensor, count: int, only: float) -> Tensor:
    """Indices below `count` as evenly spaced values from 0 to 1; `only` if `count` is 1."""
    return number.double() / (count - 1) if count > 1 else torch.full((len(number),), only, dtype=torch.float64)


# Distance of a point from the edge, in half sides of the square, positive inside: exact for the square, to first order for the
# others (value over the length of its gradient).


def _square(u: Tensor, v: Tensor) -> Tensor:
    return 1 - torch.maximum(u.abs(), v.abs())


def _ellipse(u: Tensor, v: Tensor) -> Tensor:
    a, b = 1.3, 0.85
    value = 1 - (u / a).square() - (v / b).square()
    slope = 2 * torch.sqrt((u / a**2).square() + (v / b**2).square())
    return value / slope.clamp_min(1e-3)


def _heart(u: Tensor, v: Tensor) -> Tensor:
    """(p^2 + q^2 - 1)^3 = p^2 q^3, the usual heart curve."""
    p, q = u, 0.15 - v
    round_ = p.square() + q.square() - 1
    value = p.square() * q**3 - round_**3
    slope_p = 2 * p * q**3 - 6 * p * round_.square()
    slope_q = 3 * p.square() * q.square() - 6 * q * round_.square()
    return value / torch.sqrt(slope_p.square() + slope_q.square()).clamp_min(1e-3)
