"""What the metrics of several tasks share: figures that are computed once, distances, the baseline of the code's size."""

from collections.abc import Callable, Iterator
from functools import wraps
from typing import TypeVar

import torch
from torch import Tensor

from distae.config.names import TRAITS
from distae.evaluation.evaluation import Evaluation, Pca
from distae.evaluation.metrics import Skip
from distae.losses import squared_distances

T = TypeVar("T")
BLOCK = 1024
"""Rows whose distances to all others are held at once."""
VALUES = 1 << 24
"""Values of rows in float64 that are held at once."""


def once(compute: Callable[[Evaluation], T]) -> Callable[[Evaluation], T]:
    """Keep what a function of an evaluation returns until the model's weights change: several metrics read one pass."""

    @wraps(compute)
    def of(e: Evaluation) -> T:
        return e.once(f"{compute.__module__}.{compute.__name__}", lambda: compute(e), of_model=True)

    return of


def pca_of_code(e: Evaluation, size: int | None = None) -> Pca | None:
    """PCA with `size` components, as many as a code has values; None where samples are too large for it."""
    try:
        return e.pca(size or e.model.code_size)
    except Skip:
        return None


def need_images(e: Evaluation) -> None:
    """Raises Skip unless samples are images of values in [0, 1]."""
    if len(e.model.shape) != 3:
        raise Skip("samples are not images")
    if TRAITS[e.model.cfg.likelihood].support != "unit" and e.transform.scale == 1:
        raise Skip("images are not known to be in [0, 1]: neither the likelihood nor the scale of the data says so")


def are_images(e: Evaluation) -> bool:
    """Whether samples are images of values in [0, 1]."""
    try:
        need_images(e)
    except Skip:
        return False
    return True


def flat(x: Tensor) -> Tensor:
    """`[n, D]` float64 of `[n, ...]`, missing values as 0."""
    return x.flatten(1).double().nan_to_num(0.0)


def distance_blocks(x: Tensor, y: Tensor) -> Iterator[tuple[slice, Tensor]]:
    """Squared distances of the rows of `x` to all of `y`, `[b, m]` float64, missing values as 0, a block of `x` at a time."""
    size = max(1, min(BLOCK, VALUES // x[0].numel()))
    for start in range(0, len(x), size):
        rows = flat(x[start : start + size])
        apart = [squared_distances(rows, flat(y[other : other + size])) for other in range(0, len(y), size)]
        yield slice(start, start + len(rows)), torch.cat(apart, 1)


def nearest(x: Tensor, y: Tensor, k: int = 1) -> Tensor:
    """Distances `[n, k]` of each row of `x` to its k nearest rows of `y`, rising."""
    return torch.cat([d.topk(min(k, len(y)), largest=False).values.sqrt() for _, d in distance_blocks(x, y)])
