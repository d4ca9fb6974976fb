"""Checks that need the values: they run after torch is loaded, before the process group starts."""

import torch

from distae.config import TrainConfig
from distae.config.data import ArrayConfig
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
    """Raises UserError if the split has values that the likelihood gives no probability."""
    likelihood = cfg.model.likelihood
    support = "unit" if cfg.data.binarize == "stochastic" else TRAITS.get(likelihood, Traits()).support
    which = f"the {name} split of --data {cfg.data.name} has"
    if support == "unit":
        low, high = (bound / split.transform.scale for bound in split.bounds())
        if low < 0 or high > 1:
            what = (
                f"--model.likelihood {likelihood}"
                if TRAITS[likelihood].support == "unit"
                else "--data.binarize stochastic (bernoulli draws)"
            )
            how = " (--data.scale)" if isinstance(cfg.data, ArrayConfig) else ""
            raise UserError(
                f"{what} needs data in [0, 1]; {which} values in [{low:.4g}, {high:.4g}]: "
                f"rescale it{how}, or use gaussian or laplace"
            )
    elif support != "real":
        for block in split.blocks():
            x = split.transform.apply(block, torch.float32).nan_to_num(0.0 if cfg.model.missing else -1.0)
            if support == "counts" and bool(((x < 0) | (x != x.round())).any()):
                odd = float(x[(x < 0) | (x != x.round())][0])
                raise UserError(f"--model.likelihood {likelihood} needs counts, integers from 0 on; {which} the value {odd:.4g}")
            if support == "onehot" and bool(((x != 0) & (x != 1)).any() | (x.flatten(1).sum(1) != 1).any()):
                raise UserError(f"--model.likelihood {likelihood} needs one-hot samples, one 1 and else 0; {which} others")


def _check_labels(cfg: TrainConfig, split: Split) -> None:
    classes = getattr(cfg.model, "classes", 0)
    if split.label is None:
        advice = "; name them with --data.label-key" if isinstance(cfg.data, ArrayConfig) else ""
        raise UserError(f"--model {cfg.model.name} needs labels; --data {cfg.data.name} has none{advice}")
    if len(split) and int(split.label.max()) >= classes:
        raise UserError(f"--model.classes {classes}: --data {cfg.data.name} has labels up to {int(split.label.max())}")
