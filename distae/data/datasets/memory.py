"""Arrays in memory, given to `distae.fit`."""

import math

import torch
from torch import Tensor

from distae.config.data import MemoryConfig
from distae.data.datasets.base import register_dataset
from distae.data.splits import Split, hold_out
from distae.data.transform import Transform
from distae.errors import UserError


@register_dataset(MemoryConfig)
def load(cfg: MemoryConfig) -> tuple[Split, Split]:
    raise UserError("--data memory is for distae.fit in Python, which takes the arrays as arguments")


def in_memory(cfg: MemoryConfig, x: Tensor, label: Tensor | None, missing: bool) -> Split:
    """A split of `x` `[N, *stored]`, uint8 or floating point. Raises UserError on infinite values; on NaN unless `missing`."""
    split = Split.of(x, label)
    low, high = split.bounds()
    if not (math.isfinite(low) and math.isfinite(high)) and not (missing and not any(b.isinf().any() for b in split.blocks())):
        raise UserError("x contains NaN or infinite values; expected finite numbers")
    guess = 255.0 if x.dtype == torch.uint8 and high > 1 else 1.0
    return Split.of(x, label, Transform(guess if cfg.scale == "auto" else cfg.scale, cfg.stored_layout()))


def with_held_out(cfg: MemoryConfig, train: Split, val: Split | None, test: Split | None) -> dict[str, Split]:
    """The three splits; those that were not given are held out from `train`."""
    if test is None:
        train, test = hold_out(train, cfg.test_fraction)
    if val is None:
        train, val = hold_out(train, cfg.val_fraction)
    return {k: v.take(slice(cfg.limit)) for k, v in {"train": train, "val": val, "test": test}.items()}
