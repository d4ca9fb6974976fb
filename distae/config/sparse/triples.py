"""Tables of users, items and ratings, such as RecBole's .inter files."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from distae.config.sparse.matrix import Matrix
from distae.config.tables.kinds import codes, texts
from distae.config.tables.read import Cells, Column, read
from distae.errors import UserError


@dataclass(frozen=True)
class Triples:
    """Names of columns, and what is kept."""

    user: str | None = None
    item: str | None = None
    rating: str | None = None
    min_rating: float | None = None
    min_items: int = 1


def from_triples(path: Path, how: Triples) -> Matrix:
    """Users by items. A pair that is there several times counts together. Raises UserError where a column is not there."""
    cells = read(path)
    user, item = (_column(cells, k, getattr(how, k)) for k in ("user", "item"))
    rating = _ratings(cells, how)
    kept = np.ones(len(cells), np.bool_) if how.min_rating is None else rating >= how.min_rating
    kept &= rating != 0
    rows, names = _coded(user, kept)
    counts = np.bincount(rows, minlength=len(names))
    kept[np.flatnonzero(kept)[counts[rows] < how.min_items]] = False
    if not kept.any():
        raise UserError(f"--data.min-rating {how.min_rating} and --data.min-items {how.min_items} leave no row of {cells.name}")
    (rows, names), (columns, items) = _coded(user, kept), _coded(item, kept)
    order = np.argsort(rows, kind="stable")
    indptr = np.concatenate([[0], np.bincount(rows, minlength=len(names)).cumsum()])
    note = f"sparse: {cells.name}, {kept.sum():,} of {len(cells):,} rows kept: {len(names):,} users, {len(items):,} items"
    users = np.array(names, dtype=object)
    return Matrix(cells.name, rating[kept][order], columns[order], indptr, len(items), aside={"user": users}, notes=(note,))


def _coded(found: Column, kept: NDArray[np.bool_]) -> tuple[NDArray[np.int64], tuple[str, ...]]:
    """Codes of the kept cells, and what they stand for."""
    coded, names = codes(Column(found.values[kept], found.missing[kept], found.kind))
    return coded.astype(np.int64), names


def _column(cells: Cells, what: str, name: str | None) -> Column:
    """The column that `--data.WHAT` names, or whose name begins so; of `user_id:token`, user_id will do."""
    plain = {column.partition(":")[0]: column for column in cells.columns}
    if name is None:
        found = [column for column in cells.columns if column.lower().startswith(what)]
        if len(found) != 1:
            raise UserError(f"--data.{what}: which column of {cells.name} is it? It has {', '.join(cells.columns)}")
    else:
        found = [column for column in (name, plain.get(name, "")) if column in cells.columns]
        if not found:
            raise UserError(f"--data.{what}: no column {name!r} in {cells.name}; it has {', '.join(cells.columns)}")
    column = cells.columns[found[0]]
    if column.missing.any():
        raise UserError(f"--data.path: {cells.name} row {int(column.missing.argmax()) + 1}, column {found[0]!r} has no value")
    return column


def _ratings(cells: Cells, how: Triples) -> NDArray[np.float64]:
    """Ratings `[n]`, or ones where there are none."""
    if how.rating is None and not any(column.lower().startswith("rating") for column in cells.columns):
        if how.min_rating is not None:
            raise UserError(f"--data.min-rating: {cells.name} has no column of ratings; it has {', '.join(cells.columns)}")
        return np.ones(len(cells))
    found = _column(cells, "rating", how.rating)
    if found.kind != "number":
        row = next((i for i, text in enumerate(texts(found)) if not _is_number(text)), 0)
        raise UserError(f"--data.rating: {cells.name} row {row + 1} has {texts(found)[row]!r}, not a number")
    return found.values


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
