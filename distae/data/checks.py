"""Checks that need the values: they run after torch is loaded, before the process group starts."""

from distae.config import TrainConfig
from distae.config.data import ArrayConfig
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
    if cfg.model.likelihood != "bernoulli" and cfg.data.binarize != "stochastic":
        return
    how = " (--data.scale)" if isinstance(cfg.data, ArrayConfig) else ""
    for name, split in splits.items():
        if not len(split):
            continue
        low, high = split.model_bounds()
        if low < 0 or high > 1:
            raise UserError(
                f"--model.likelihood bernoulli needs data in [0, 1]; the {name} split of --data {cfg.data.name} has values in "
                f"[{low:.4g}, {high:.4g}]: rescale it{how}, or use gaussian or laplace"
            )


def _check_labels(cfg: TrainConfig, split: Split) -> None:
    classes = getattr(cfg.model, "classes", 0)
    if split.label is None:
        advice = "; name them with --data.label-key" if isinstance(cfg.data, ArrayConfig) else ""
        raise UserError(f"--model {cfg.model.name} needs labels; --data {cfg.data.name} has none{advice}")
    if len(split) and int(split.label.max()) >= classes:
        raise UserError(f"--model.classes {classes}: --data {cfg.data.name} has labels up to {int(split.label.max())}")
