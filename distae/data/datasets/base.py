"""How a data set is bound to its settings."""

from collections.abc import Callable
from contextvars import ContextVar
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

from distae.config.data import DataConfig
from distae.config.registry import Registry
from distae.data.bad_rows import BadRows
from distae.data.splits import Split, hold_out
from distae.errors import UserError

Loaded = tuple[Split, Split] | dict[str, Split]
L = TypeVar("L", bound=Callable[[Any], Loaded])
_LOADERS: Registry[type[DataConfig], Callable[[Any], Loaded]] = Registry("data set")


def register_dataset(*configs: type[DataConfig]) -> Callable[[L], L]:
    """Bind to these settings a function that returns their training and test splits.

    Or a dict of `train`, `val` and `test`, if the source itself says which samples are for validation.
    """
    return _LOADERS.register(*configs)


RUN_DIR: ContextVar[Path | None] = ContextVar("RUN_DIR", default=None)
"""While data are loaded with --data.on-error skip: the folder of the run, where `Source.remember` may have written its rows."""


def load(cfg: DataConfig, run_dir: Path | None = None) -> dict[str, Split]:
    """Splits `train`, `val` and `test`, on the CPU. Raises UserError if the files are missing or hold something else.

    `run_dir` is the folder of the run: with --data.on-error skip, a run that resumes keeps the rows that it began with.
    """
    token = RUN_DIR.set(run_dir if cfg.on_error == "skip" else None)
    try:
        return _load(cfg)
    finally:
        RUN_DIR.reset(token)


def _load(cfg: DataConfig) -> dict[str, Split]:
    if type(cfg) not in _LOADERS:
        raise UserError(f"--data {cfg.name}: no loader is bound to its settings by @register_dataset({type(cfg).__name__})")
    splits = _LOADERS[type(cfg)](cfg)
    if not isinstance(splits, dict):
        train, val = hold_out(splits[0], cfg.val_fraction)
        splits = {"train": train, "val": val, "test": splits[1]}
    if cfg.train_classes:
        splits |= {k: splits[k].of_classes(cfg.train_classes) for k in ("train", "val")}
    if cfg.on_error == "skip":
        splits = {k: replace(v, bad=BadRows()) for k, v in splits.items()}
    return {k: v.take(slice(cfg.limit)) for k, v in splits.items()}
