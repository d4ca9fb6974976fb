"""Rows of a DataFrame for a model of a table: columns by name, categories as the codes that they had in training."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from distae.config.tables import Feature, from_pandas
from distae.config.tables.kinds import texts
from distae.config.tables.read import Column
from distae.errors import UserError


def rows_of(frame: Any, features: Sequence[Feature]) -> NDArray[np.float64]:
    """`[N, features]` as stored, NaN where a value is missing. Raises UserError if a column is missing or a category is new."""
    names = [str(name) for name in frame.columns]
    if absent := [f.name for f in features if f.name not in names]:
        raise UserError(f"x has no column {absent[0]!r}; expected {', '.join(f.name for f in features)}")
    cells = from_pandas(frame, [name for name in names if name not in {f.name for f in features}])
    return np.stack([_values(f, cells.columns[f.name]) for f in features], 1)


def _values(feature: Feature, column: Column) -> NDArray[np.float64]:
    values = np.full(len(column.missing), np.nan)
    there = ~column.missing
    if feature.kind == "numeric":
        if column.kind == "text":
            raise UserError(f"x, column {feature.name!r} contains strings; expected numbers")
        values[there] = column.values[there]
        return values
    code = {text: i for i, text in enumerate(feature.categories)}
    found = texts(Column(column.values[there], column.missing[there], column.kind))
    if unknown := next((text for text in found if text not in code), None):
        raise UserError(f"x, column {feature.name!r} contains {unknown!r}; expected {', '.join(feature.categories[:20])}")
    values[there] = [code[text] for text in found]
    return values
