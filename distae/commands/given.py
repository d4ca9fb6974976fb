"""What `distae.fit` is given, as splits and settings."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, IterableDataset

from distae.config import TrainConfig, to_dict
from distae.config.cli import near
from distae.config.data import DataConfig, MemoryConfig, TableConfig
from distae.config.data.paths import kind_of
from distae.config.keywords import from_keywords
from distae.config.names import LIKELIHOODS
from distae.data import Split
from distae.data.datasets.memory import in_memory, with_held_out
from distae.data.datasets.table import from_frame
from distae.errors import UserError
from distae.models.inference import as_tensor

Splits = dict[str, Split]


class Given(NamedTuple):
    """The data arguments of `fit`."""

    x: Any
    y: Any = None
    validation: Any = None
    test: Any = None


def splits_and_settings(given: Given, settings: Mapping[str, Any]) -> tuple[Splits | None, TrainConfig]:
    """The splits (None if they are to be loaded from files), and the settings with those of the data. Raises UserError."""
    if isinstance(given.x, str | Path):
        return None, _of_path(given, settings)
    if _kind(settings) not in (None, MemoryConfig.name, TableConfig.name):
        raise UserError(f"data={_kind(settings)!r} is read from files: pass a path as x, or leave data out")
    if isinstance(given.x, Split):
        return _of_split(given, settings)
    if hasattr(given.x, "iloc") and given.y is None and _kind(settings) != MemoryConfig.name:
        return _of_frame(given, settings)
    return _of_arrays(given, settings)


def _kind(settings: Mapping[str, Any]) -> str | None:
    """The kind of data that the settings name."""
    value = settings.get("data")
    found = value.get("name") if isinstance(value, Mapping) else getattr(value, "name", value)
    return None if found is None else str(found)


def _with_data(settings: Mapping[str, Any], name: str, **values: Any) -> TrainConfig:
    """The settings, with `data` of kind `name` and these values."""
    there = settings.get("data", {})
    there = to_dict(there) if dataclasses.is_dataclass(there) and not isinstance(there, type) else there
    table = dict(there) if isinstance(there, Mapping) else {}
    rest = {k: v for k, v in settings.items() if k != "data"}
    return from_keywords(TrainConfig, {**rest, "data": table | {"name": name} | values})


def _share(value: Any, name: str) -> float | None:
    """The share of the samples to hold out; None if `value` is data, or nothing."""
    if isinstance(value, bool) or not isinstance(value, int | float | np.floating):
        return None
    if not 0 <= value < 1:
        raise UserError(f"{name} is {value}; expected data, or a share >= 0 and < 1")
    return float(value)


def _shares(given: Given) -> dict[str, float]:
    shares = {"val_fraction": _share(given.validation, "validation"), "test_fraction": _share(given.test, "test")}
    return {k: v for k, v in shares.items() if v is not None}


def _of_path(given: Given, settings: Mapping[str, Any]) -> TrainConfig:
    if any(v is not None and _share(v, name) is None for name, v in (("y", given.y), *given._asdict().items()) if name != "x"):
        raise UserError("x is a path: labels and splits come from the settings of data; validation and test can only be shares")
    choices, path, kind = DataConfig.choices(), Path(given.x).expanduser(), _kind(settings)
    if kind is None and str(given.x) in choices and not path.exists():
        return _with_data(settings, str(given.x), **_known_shares(choices[str(given.x)], given))
    kind = kind or kind_of(path)
    if kind not in choices:
        hint = near(str(kind or given.x), choices)
        raise UserError(f"x is {str(given.x)!r}, whose kind is unknown: give data=, one of {', '.join(choices)}{hint}")
    where = "path" if any(f.name == "path" for f in dataclasses.fields(choices[kind])) else "root"
    return _with_data(settings, kind, **{where: str(given.x)}, **_known_shares(choices[kind], given))


def _known_shares(config: type[DataConfig], given: Given) -> dict[str, float]:
    """Raises UserError on a share that this kind of data does not have: its test split is fixed."""
    shares, known = _shares(given), {f.name for f in dataclasses.fields(config)}
    if odd := [k for k in shares if k not in known]:
        raise UserError(f"{odd[0].partition('_')[0]}: the split of {config.name} is fixed; leave it out")
    return shares


def _of_frame(given: Given, settings: Mapping[str, Any]) -> tuple[Splits, TrainConfig]:
    """A DataFrame as a table: columns of numbers are normalised, strings are categories."""
    if any(v is not None and _share(v, name) is None for name, v in (("validation", given.validation), ("test", given.test))):
        raise UserError(
            "x is a DataFrame: give shares for validation and test, or a column of split names: data={'split': 'column'}"
        )
    cfg = _with_data(settings, TableConfig.name, **({"test_fraction": 0.0} | _shares(given)))
    assert isinstance(cfg.data, TableConfig)
    splits = {k: v.take(slice(cfg.data.limit)) for k, v in from_frame(given.x, cfg.data).items()}
    if not _asks_for(settings, "likelihood") and "mixed" in LIKELIHOODS.keys_known:
        cfg = dataclasses.replace(cfg, model=dataclasses.replace(cfg.model, likelihood="mixed"))
    return splits, _fitting(cfg, splits, settings)


def _asks_for(settings: Mapping[str, Any], name: str) -> bool:
    """Whether a setting of the model is given, flat, dotted or in the model's table."""
    model = settings.get("model")
    return name in settings or f"model.{name}" in settings or (not isinstance(model, str | None) and name in _names(model))


def _names(model: Any) -> Any:
    return model if isinstance(model, Mapping) else to_dict(model)


def _of_split(given: Given, settings: Mapping[str, Any]) -> tuple[Splits, TrainConfig]:
    x: Split = given.x
    if given.y is not None:
        raise UserError("y: a Split has its own labels; leave y out")
    # The shape that the model sees: the split has its transform already.
    cfg = _with_data(settings, MemoryConfig.name, stored=x.shape, layout="channels_first", **_shares(given))
    assert isinstance(cfg.data, MemoryConfig)
    others = {name: v for name, v in (("validation", given.validation), ("test", given.test)) if isinstance(v, Split)}
    for name, value in (("validation", given.validation), ("test", given.test)):
        if value is not None and name not in others and _share(value, name) is None:
            raise UserError(f"{name} is a {type(value).__name__}; expected a Split, as x is, or a share")
        if name in others and others[name].shape != x.shape:
            raise UserError(f"{name} has samples of shape {list(others[name].shape)}; those of x are {list(x.shape)}")
    splits = with_held_out(cfg.data, x, others.get("validation"), others.get("test"))
    return splits, _fitting(cfg, splits, settings)


def _of_arrays(given: Given, settings: Mapping[str, Any]) -> tuple[Splits, TrainConfig]:
    x, label = _samples(given.x, given.y, "x")
    cfg = _with_data(settings, MemoryConfig.name, stored=tuple(x.shape[1:]), **_shares(given))
    assert isinstance(cfg.data, MemoryConfig)
    cfg.data.shape()
    train = in_memory(cfg.data, x, label, cfg.model.missing)
    parts: dict[str, Split | None] = {}
    for name, value in (("validation", given.validation), ("test", given.test)):
        parts[name] = None if value is None or _share(value, name) is not None else _other(value, name, train, cfg)
    splits = with_held_out(cfg.data, train, parts["validation"], parts["test"])
    return splits, _fitting(cfg, splits, settings)


def _other(value: Any, name: str, train: Split, cfg: TrainConfig) -> Split:
    """Data for validation or test, alone or as (x, y), with the transform of the training data."""
    x, y = value if isinstance(value, tuple) and len(value) == 2 else (value, None)
    samples, label = _samples(x, y, name)
    if tuple(samples.shape[1:]) != train.source.shape or samples.dtype != train.source.dtype:
        there, here = ([str(t).removeprefix("torch."), list(s)] for t, s in (
            (train.source.dtype, train.source.shape), (samples.dtype, samples.shape[1:])))  # fmt: skip
        raise UserError(f"{name} has samples of {here[0]} {here[1]}; those of x are {there[0]} {there[1]}")
    assert isinstance(cfg.data, MemoryConfig)
    in_memory(cfg.data, samples, label, cfg.model.missing)
    return Split.of(samples, label, train.transform)


def _fitting(cfg: TrainConfig, splits: Splits, settings: Mapping[str, Any]) -> TrainConfig:
    """The default batch size is at most the number of training samples."""
    asked = {"global_batch_size", "batch_size", "bs"} & settings.keys()
    return cfg if asked else dataclasses.replace(cfg, global_batch_size=min(cfg.global_batch_size, max(1, len(splits["train"]))))


def _samples(x: Any, y: Any, name: str) -> tuple[Tensor, Tensor | None]:
    """Samples `[N, ...]`, of bytes or floating point, and labels `[N]`. Raises UserError."""
    if isinstance(x, Dataset):
        x, found = _read(x, name)
        y = found if y is None else y
    samples = as_tensor(x, name)
    if samples.ndim < 2 or not samples.numel():
        raise UserError(f"{name} has shape {list(samples.shape)}; expected [N, D], [N, H, W], [N, C, H, W] or [N, H, W, C]")
    if samples.dtype != torch.uint8 and not samples.is_floating_point():
        samples = samples.float()
    return samples.cpu(), None if y is None else _labels(y, len(samples))


def _labels(y: Any, n: int) -> Tensor:
    label = as_tensor(y, "y").cpu()
    if label.shape != (n,) or label.is_floating_point() or int(label.min()) < 0:
        kind = str(label.dtype).removeprefix("torch.")
        raise UserError(f"y is {kind} {list(label.shape)}; expected [{n}] integers >= 0, one per sample")
    return label.long()


def _read(dataset: "Dataset[Any]", name: str) -> tuple[Tensor, list[int] | None]:
    """All samples of a map-style dataset, once, and labels where each item is a pair with an integer."""
    if isinstance(dataset, IterableDataset) or not hasattr(dataset, "__len__"):
        raise UserError(f"{name} is a dataset without a length; expected a map-style one, with len(dataset) and dataset[i]")
    items, labels = [], []
    for i in range(len(dataset)):
        item = dataset[i]
        value, *rest = item if isinstance(item, tuple | list) else (item,)
        items.append(as_tensor(value, f"{name}[{i}]"))
        labels += [int(rest[0])] if rest and _is_integer(rest[0]) else []
        if items[-1].shape != items[0].shape:
            raise UserError(f"{name}[{i}] has shape {list(items[-1].shape)}, but {name}[0] has {list(items[0].shape)}")
    if not items:
        raise UserError(f"{name} is a dataset without samples")
    return torch.stack(items), labels if len(labels) == len(items) else None


def _is_integer(value: Any) -> bool:
    if isinstance(value, Tensor):
        return value.ndim == 0 and not value.is_floating_point()
    return isinstance(value, int | np.integer)
