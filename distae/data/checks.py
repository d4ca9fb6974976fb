"""Checks that need the values: they run after torch is loaded, before the process group starts."""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from distae.config import TrainConfig
from distae.config.data import ArrayConfig, SparseConfig, TableConfig
from distae.config.models import ModelConfig
from distae.config.names import TRAITS, Traits
from distae.data.sampler import order_of
from distae.data.splits import Split
from distae.errors import UserError


def check_data(cfg: TrainConfig, splits: dict[str, Split]) -> None:
    """Raises UserError if the likelihood or the order does not fit the data, or the training split is smaller than a batch."""
    train = splits["train"]
    if len(train) < cfg.global_batch_size:
        raise UserError(
            f"--global-batch-size {cfg.global_batch_size}: the training split has only {len(train)} samples; valid: at most that"
        )
    order_of(cfg, train)  # raises on --data.shuffle
    if cfg.model.conditional:
        for split in splits.values():
            _check_labels(cfg, split)
    for name, split in splits.items():
        if len(split):
            _check_support(cfg, name, split)


def _check_support(cfg: TrainConfig, name: str, split: Split) -> None:
    """Raises UserError if the split has values to which the likelihood cannot give a probability."""
    likelihood = cfg.model.likelihood
    support = "unit" if cfg.data.binarize == "stochastic" else TRAITS.get(likelihood, Traits()).support
    which = f"the {name} split of --data {cfg.data.name} has"
    if support == "unit" or cfg.model.input == "log1p":
        _check_range(cfg, split, which, support)
    if support == "counts":
        for values in split.model_values():
            x = values.nan_to_num(0.0) if cfg.model.missing else values
            if (odd := x[(x < 0) | (x != x.round())]).numel():
                raise UserError(f"--model.likelihood {likelihood} needs counts, integers from 0 on; {which} the value {odd[0]:.4g}")
    elif support == "onehot" or likelihood == "mixed":
        for block in split.blocks():
            _check_samples(cfg, split.transform.apply(block, torch.float32), which, support)


def _check_range(cfg: TrainConfig, split: Split, which: str, support: str) -> None:
    low, high = _known_bounds(split) if cfg.model.missing else split.model_bounds()
    if math.isnan(low):
        raise UserError(f"{which} missing values (NaN): set --model.missing true, which leaves them out of the loss")
    if cfg.model.input == "log1p" and low < 0:
        raise UserError(f"--model.input log1p needs values from 0 on; {which} values down to {low:.4g}")
    if support != "unit" or (low >= 0 and high <= 1):
        return
    asked = TRAITS.get(cfg.model.likelihood, Traits()).support == "unit"
    what = f"--model.likelihood {cfg.model.likelihood}" if asked else "--data.binarize stochastic (bernoulli draws)"
    how = {ArrayConfig: " (--data.scale)", TableConfig: " (--data.normalize minmax)"}.get(type(cfg.data), "")
    others = {TableConfig: "mixed", SparseConfig: "poisson, nb, zinb or multinomial"}.get(type(cfg.data), "gaussian or laplace")
    raise UserError(f"{what} needs data in [0, 1]; {which} values in [{low:.4g}, {high:.4g}]: rescale it{how}, or use {others}")


def _known_bounds(split: Split) -> tuple[float, float]:
    """The smallest and the largest value that is not missing, or 0 if that is smaller or larger."""
    found = [values.nan_to_num(0.0).aminmax() for values in split.model_values()]
    return min(float(low) for low, _ in found), max(float(high) for _, high in found)


FITS: dict[str, Callable[[Tensor], Tensor]] = {
    "numeric": lambda x: x.isfinite().all(1),
    "binary": lambda x: ((x >= 0) & (x <= 1)).all(1),
    "onehot": lambda x: ((x == 0) | (x == 1)).all(1) & (x.sum(1) == 1),
}
"""Functions of rows `[b, d]`: which of them fit, `[b]` bool."""
NEEDED = {
    "numeric": "finite numbers in numeric columns (missing ones: --model.missing true)",
    "binary": "values in [0, 1] in binary columns",
    "onehot": "one-hot values: a single 1, otherwise 0",
}


def _check_samples(cfg: TrainConfig, x: Tensor, which: str, support: str) -> None:
    """Raises UserError if one of the samples `[b, ...]`, or of the columns of `mixed`, does not fit."""
    for kind, values in _columns(cfg.model, x.flatten(1)) if cfg.model.likelihood == "mixed" else [(support, x.flatten(1))]:
        known = values.nan_to_num(0.0) if cfg.model.missing else values
        fits = FITS[kind](known) | (values.isnan().all(1) & cfg.model.missing)
        if not bool(fits.all()):
            odd = " ".join(f"{v:.4g}" for v in values[~fits][0][:6].tolist())
            raise UserError(f"--model.likelihood {cfg.model.likelihood} needs {NEEDED[kind]}; {which} {odd}")


def _columns(model: ModelConfig, x: Tensor) -> list[tuple[str, Tensor]]:
    """Rows `[b, D]` by groups of columns, and the kind of each."""
    groups = [column.split(":") for column in model.columns]
    parts = torch.split(x, [int(size) for _, size in groups], 1)
    return [("onehot" if kind == "categorical" else kind, part) for (kind, _), part in zip(groups, parts, strict=True)]


def _check_labels(cfg: TrainConfig, split: Split) -> None:
    classes = getattr(cfg.model, "classes", 0)
    if split.label is None:
        named = {ArrayConfig: "--data.label-key", TableConfig: "--data.label", SparseConfig: "--data.label"}.get(type(cfg.data))
        advice = f"; name them with {named}" if named else ""
        raise UserError(f"--model {cfg.model.name} needs labels; --data {cfg.data.name} has none{advice}")
    if len(split) and (largest := int(split.label.max())) >= classes:
        raise UserError(
            f"--model.classes {classes}: --data {cfg.data.name} has labels up to {largest}; valid: {largest + 1} or more"
        )
