"""Checks that need the values: they run after torch is loaded, before the process group starts."""

import torch

from distae.config import TrainConfig
from distae.config.data import ArrayConfig, SparseConfig, TableConfig
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
    """Raises UserError if the split has values that the likelihood gives no probability."""
    likelihood = cfg.model.likelihood
    support = "unit" if cfg.data.binarize == "stochastic" else TRAITS.get(likelihood, Traits()).support
    which = f"the {name} split of --data {cfg.data.name} has"
    if support == "unit":
        _check_unit(cfg, split, which)
    elif support == "counts":
        for values in split.model_values():
            x = values.nan_to_num(0.0) if cfg.model.missing else values
            if (odd := x[(x < 0) | (x != x.round())]).numel():
                raise UserError(f"--model.likelihood {likelihood} needs counts, integers from 0 on; {which} the value {odd[0]:.4g}")
    elif support == "onehot":
        for block in split.blocks():
            x = split.transform.apply(block, torch.float32).nan_to_num(0.0 if cfg.model.missing else -1.0)
            if bool(((x != 0) & (x != 1)).any() | (x.flatten(1).sum(1) != 1).any()):
                raise UserError(f"--model.likelihood {likelihood} needs one-hot samples, one 1 and else 0; {which} others")


def _check_unit(cfg: TrainConfig, split: Split, which: str) -> None:
    low, high = split.model_bounds()
    if low >= 0 and high <= 1:
        return
    asked = TRAITS[cfg.model.likelihood].support == "unit"
    what = f"--model.likelihood {cfg.model.likelihood}" if asked else "--data.binarize stochastic (bernoulli draws)"
    how = {ArrayConfig: " (--data.scale)", TableConfig: " (--data.normalize minmax)"}.get(type(cfg.data), "")
    others = {TableConfig: "mixed", SparseConfig: "poisson, nb, zinb or multinomial"}.get(type(cfg.data), "gaussian or laplace")
    raise UserError(f"{what} needs data in [0, 1]; {which} values in [{low:.4g}, {high:.4g}]: rescale it{how}, or use {others}")


def _check_labels(cfg: TrainConfig, split: Split) -> None:
    classes = getattr(cfg.model, "classes", 0)
    if split.label is None:
        named = {ArrayConfig: "--data.label-key", TableConfig: "--data.label", SparseConfig: "--data.label"}.get(type(cfg.data))
        advice = f"; name them with {named}" if named else ""
        raise UserError(f"--model {cfg.model.name} needs labels; --data {cfg.data.name} has none{advice}")
    if len(split) and int(split.label.max()) >= classes:
        raise UserError(f"--model.classes {classes}: --data {cfg.data.name} has labels up to {int(split.label.max())}")
