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

LARGEST_TRANSFORM = 8 << 20
"""Bytes of the transform as JSON, half of what a checkpoint's state may have."""
MOST_TABLES_OF_QUANTILES = 200_000
"""Quantiles of all columns together: with more columns, each has fewer."""


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
    """Splits of a pandas DataFrame by settings without a path; from then on `cfg.shape()` is that of the frame, in this process.

    Raises UserError as for a file.
    """
    if cfg.path:
        raise UserError(f"--data.path {cfg.path}: a DataFrame takes the place of a file: leave it out")
    return _splits(cfg, cfg.keep(from_pandas(frame, cfg.drop)))


def _splits(cfg: TableConfig, table: Table) -> dict[str, Split]:
    rows = _rows(cfg, table)
    transform = Transform(columns=_fitted(table, rows["train"].numpy(), cfg))
    if (size := len(json.dumps(transform.to_json()))) > LARGEST_TRANSFORM:
        raise UserError(f"--data.path: {table.name} has too many columns: they take {size} bytes; at most {LARGEST_TRANSFORM}")
    source = Rows(table)
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
    """The columns, normalised and filled by the training rows alone."""
    ranked = sum(f.kind == "numeric" for f in table.features) if cfg.normalize == "quantile" else 0
    quantiles = max(2, min(MOST_QUANTILES, len(train), MOST_TABLES_OF_QUANTILES // max(1, ranked)))
    return tuple(_fit(f, table.x[train, i], cfg, quantiles, table.name) for i, f in enumerate(table.features))


def _fit(feature: Feature, values: np.ndarray, cfg: TableConfig, quantiles: int, where: str) -> Scaled:
    known, impute = values[~np.isnan(values)], cfg.missing == "impute"
    if not len(known):
        name = feature.name
        raise UserError(
            f"--data.path: {where}, column {name!r} holds no value in the training rows: leave it out: --data.drop {name}"
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
    """A column whose spread is no more than rounding of its values keeps its scale."""
    return replace(column, offset=offset, scale=scale if scale > 1e-12 * max(abs(offset), 1e-290) else 1.0)
