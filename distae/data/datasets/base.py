"""How a data set is bound to its settings."""

from collections.abc import Callable
from typing import Any, TypeVar

from distae.config.data import DataConfig
from distae.data.splits import Arrays, hold_out
from distae.errors import UserError
from distae.registry import Registry

L = TypeVar("L", bound=Callable[[Any], tuple[Arrays, Arrays]])
_LOADERS: Registry[type[DataConfig], Callable[[Any], tuple[Arrays, Arrays]]] = Registry("data set")


def register_dataset(*configs: type[DataConfig]) -> Callable[[L], L]:
    """Bind to these settings a function that returns their training and test `Arrays`."""
    return _LOADERS.register(*configs)


def load(cfg: DataConfig) -> dict[str, Arrays]:
    """Splits `train`, `val` and `test`, on the CPU. Raises UserError if the files are missing or hold something else."""
    if type(cfg) not in _LOADERS:
        raise UserError(f"--data {cfg.name}: no loader is bound to its settings by @register_dataset({type(cfg).__name__})")
    train, test = _LOADERS[type(cfg)](cfg)
    train, val = hold_out(train, cfg.val_fraction)
    splits = {"train": train, "val": val, "test": test}
    return {k: v.take(slice(cfg.limit)) for k, v in splits.items()}
