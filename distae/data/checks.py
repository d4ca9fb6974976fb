"""Checks that need the values: they run after torch is loaded, before the process group starts."""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from distae.config import TrainConfig
from distae.config.data import ArrayConfig
from distae.config.models import ModelConfig
from distae.config.names import TRAITS, Traits
from distae.data.splits import Split
from distae.errors import UserError


def check_data(cfg: TrainConfig, splits: dict[str, Split]) -> None:
    """Raises UserError if the likelihood does not fit the values, or the training split is smaller than a batch."""
    train = splits["train"]
    if len(train) < cfg.global_batch_size:
        raise UserError(
            f"--global-batch-size {cfg.global_batch_size}: the training split has only {len(train)} samples; valid: at most that"
        )
    if cfg.model.conditional:
        for split in splits.values():
            _check_labels(cfg, split)
    for name, split in splits.items():
        if len(split):
            _check_support(cfg, name, split)


def _check_support(cfg: TrainConfig, name: str, split: Split) -> None:
    """Raises UserError if the split has values that the likelihood gives no probability, or that the encoder cannot see."""
    likelihood = cfg.model.likelihood
    support = "unit" if cfg.data.binarize == "stochastic" else TRAITS.get(likelihood, Traits()).support
    which = f"the {name} split of --data {cfg.data.name} has"
    if support == "unit" or cfg.model.input == "log1p":
        _check_range(cfg, which, split, support)
    if support in ("counts", "onehot") or likelihood == "mixed":
        for block in split.blocks():
            x = split.transform.apply(block, torch.float32)
            for kind, values in _parts(cfg.model, support, x):
                known = values.nan_to_num(0.0) if cfg.model.missing else values
                fits = FITS[kind](known) | (values.isnan().flatten(1).all(1) & cfg.model.missing)
                if not bool(fits.all()):
                    odd = [round(v, 4) for v in values[~fits][0].flatten()[:6].tolist()]
                    raise UserError(f"--model.likelihood {likelihood} needs {NEEDED[kind]}; {which} a sample with {odd}")


def _check_range(cfg: TrainConfig, which: str, split: Split, support: str) -> None:
    low, high = _bounds(split, cfg.model.missing)
    if math.isnan(low):
        raise UserError(f"{which} missing values (NaN): set --model.missing true, with which they have no part in the loss")
    if support == "unit" and (low < 0 or high > 1):
        of_likelihood = TRAITS.get(cfg.model.likelihood, Traits()).support == "unit"
        what = f"--model.likelihood {cfg.model.likelihood}" if of_likelihood else "--data.binarize stochastic (bernoulli draws)"
        how = " (--data.scale)" if isinstance(cfg.data, ArrayConfig) else ""
        raise UserError(
            f"{what} needs data in [0, 1]; {which} values in [{low:.4g}, {high:.4g}]: rescale it{how}, or use gaussian or laplace"
        )
    if cfg.model.input == "log1p" and low < 0:
        raise UserError(f"--model.input log1p needs values from 0 on; {which} values down to {low:.4g}")


def _bounds(split: Split, missing: bool) -> tuple[float, float]:
    """The smallest and the largest value; NaN where one is NaN, unless values may be `missing`."""
    if not missing:
        low, high = (bound / split.transform.scale for bound in split.bounds())
        return low, high
    known = (split.transform.apply(block, torch.float32).nan_to_num(0.0).aminmax() for block in split.blocks())
    lows, highs = zip(*((float(low), float(high)) for low, high in known), strict=True)
    return min(lows), max(highs)


FITS: dict[str, Callable[[Tensor], Tensor]] = {
    "numeric": lambda x: x.isfinite().flatten(1).all(1),
    "binary": lambda x: ((x >= 0) & (x <= 1)).flatten(1).all(1),
    "counts": lambda x: ((x >= 0) & (x == x.round())).flatten(1).all(1),
    "onehot": lambda x: ((x == 0) | (x == 1)).flatten(1).all(1) & (x.flatten(1).sum(1) == 1),
}
"""Which samples `[b, ...]` fit: `[b]` bool."""
NEEDED = {
    "numeric": "finite numbers in numeric columns (missing ones: --model.missing true)",
    "binary": "values in [0, 1]",
    "counts": "counts, integers from 0 on",
    "onehot": "one-hot samples, one 1 and else 0",
}


def _parts(model: ModelConfig, support: str, x: Tensor) -> list[tuple[str, Tensor]]:
    """The samples `[b, ...]` by kind of values: the columns of a table, or all of them."""
    if model.likelihood != "mixed":
        return [(support, x)]
    groups = [column.split(":") for column in model.columns]
    parts = torch.split(x, [int(size) for _, size in groups], 1)
    return [("onehot" if kind == "categorical" else kind, part) for (kind, _), part in zip(groups, parts, strict=True)]


def _check_labels(cfg: TrainConfig, split: Split) -> None:
    classes = getattr(cfg.model, "classes", 0)
    if split.label is None:
        advice = "; name them with --data.label-key" if isinstance(cfg.data, ArrayConfig) else ""
        raise UserError(f"--model {cfg.model.name} needs labels; --data {cfg.data.name} has none{advice}")
    if len(split) and int(split.label.max()) >= classes:
        raise UserError(f"--model.classes {classes}: --data {cfg.data.name} has labels up to {int(split.label.max())}")
