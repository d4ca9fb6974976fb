"""Tables: files, and DataFrames from Python."""

import json
import math
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from distae.config.data.table import TableConfig
from distae.config.tables import Feature, Table, from_pandas
from distae.data.columns import MOST_QUANTILES, Scaled
from distae.data.datasets import splitting
from distae.data.datasets.base import register_dataset
from distae.data.source import Tensors
from distae.data.splits import Split
from distae.data.transform import Transform
from distae.errors import UserError
from distae.runtime.files import SMALL

LARGEST_TRANSFORM = SMALL // 2
"""Maximum bytes of the transform as JSON: half of what a checkpoint's state may have."""
MOST_QUANTILES_OF_ALL = 200_000
"""Maximum number of quantiles of all columns together: with more columns, each has fewer."""


class Rows(Tensors):
    """The rows of a table."""

    def __init__(self, table: Table) -> None:
        super().__init__(torch.from_numpy(table.x), None if table.label is None else torch.from_numpy(table.label))
        self.table, self.columns, self.classes = table.name, table.aside, table.classes

    def name_of(self, row: int) -> str:
        return f"{self.table} row {row + 1}"


@register_dataset(TableConfig)
def load(cfg: TableConfig) -> dict[str, Split]:
    return _splits(cfg, cfg.table())


def from_frame(frame: Any, cfg: TableConfig) -> dict[str, Split]:
    """Splits of a pandas DataFrame, by settings without a path; afterwards `cfg.shape()` is that of the frame, in this process.

    Raises UserError as for a file.
    """
    if cfg.path:
        raise UserError(f"--data.path {cfg.path}: leave it out, the DataFrame is used instead of a file")
    return _splits(cfg, cfg.keep(from_pandas(frame, cfg.drop)))


def _splits(cfg: TableConfig, table: Table) -> dict[str, Split]:
    source, rows = Rows(table), _rows(cfg, table)
    if cfg.train_classes:  # before the columns are fitted, which are to know the training rows alone
        splits = {k: Split(source, rows=rows[k]).of_classes(cfg.train_classes) for k in ("train", "val")}
        rows |= {k: split.rows_at(torch.arange(len(split))) for k, split in splits.items()}
    transform = Transform(columns=_fitted(table, rows["train"].numpy(), cfg))
    if (size := len(json.dumps(transform.to_json()))) > LARGEST_TRANSFORM:
        raise UserError(f"--data.path: {table.name} has too many columns: they take {size} bytes; at most {LARGEST_TRANSFORM}")
    return {name: Split(source, transform, rows[name], table.notes) for name in ("train", "val", "test")}


def _rows(cfg: TableConfig, table: Table) -> dict[str, Tensor]:
    where = f"--data.path: {table.name}, column "
    if cfg.split:
        return splitting.by_name(table.aside[cfg.split], f"{where}{cfg.split!r}")
    if cfg.group:
        return splitting.by_group(table.aside[cfg.group], cfg.test_fraction, cfg.val_fraction, f"{where}{cfg.group!r}")
    if cfg.time:
        return splitting.by_time(table.aside[cfg.time], cfg.test_fraction, cfg.val_fraction)
    return splitting.at_random(len(table.x), cfg.test_fraction, cfg.val_fraction)


def _fitted(table: Table, train: np.ndarray, cfg: TableConfig) -> tuple[Scaled, ...]:
    """How each column is normalised and filled, from the training rows alone."""
    ranked = sum(f.kind == "numeric" for f in table.features) if cfg.normalize == "quantile" else 0
    quantiles = max(2, min(MOST_QUANTILES, len(train), MOST_QUANTILES_OF_ALL // max(1, ranked)))
    return tuple(_fit(f, table.x[train, i], cfg, quantiles, table.name) for i, f in enumerate(table.features))


def _fit(feature: Feature, values: np.ndarray, cfg: TableConfig, quantiles: int, where: str) -> Scaled:
    known, impute = values[~np.isnan(values)], cfg.missing == "impute"
    if not len(known):
        name = feature.name
        raise UserError(
            f"--data.path: {where}, column {name!r} has no value in the training rows: leave it out: --data.drop {name}"
        )
    made = Scaled(feature.name, feature.kind, feature.categories)
    if feature.kind != "numeric":
        return replace(made, fill=float(np.bincount(known.astype(int)).argmax()) if impute else None)
    mean = math.fsum(known) / len(known)  # exact: numpy's sums differ in the last bit between kinds of CPU
    made = replace(made, fill=mean if impute else None)
    match cfg.normalize:
        case "standard":
            return _scaled(made, mean, math.sqrt(math.fsum(np.square(known - mean)) / len(known)))
        case "minmax":
            return _scaled(made, float(known.min()), float(known.max() - known.min()))
        case "quantile":
            return replace(made, quantiles=tuple(np.quantile(known, np.linspace(0, 1, quantiles)).tolist()))
        case _:
            return made


def _scaled(column: Scaled, offset: float, scale: float) -> Scaled:
    """The column with its normalisation; one that varies only by rounding is not divided by its spread."""
    return replace(column, offset=offset, scale=scale if scale > 1e-12 * max(abs(offset), 1e-290) else 1.0)
