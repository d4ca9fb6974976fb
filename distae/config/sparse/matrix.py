"""A sparse matrix by rows (CSR), and what a file must hold to be one."""

import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from distae.config.tables.kinds import codes
from distae.config.tables.read import Column
from distae.errors import UserError


@dataclass(frozen=True)
class Matrix:
    """`[N, width]`: of row i, the values `data[indptr[i]:indptr[i + 1]]` are in the columns `indices[…]`; all others are 0."""

    name: str
    """For messages: the file's name."""
    data: NDArray[Any]
    indices: NDArray[Any]
    indptr: NDArray[Any]
    width: int
    label: NDArray[np.int64] | None = None
    classes: tuple[str, ...] = ()
    """What the labels 0, 1, … stand for."""
    aside: Mapping[str, NDArray[Any]] = field(default_factory=dict)
    """`[N]` each: batches, names of rows."""
    notes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.indptr) - 1


def checked(found: Matrix, binary: bool) -> Matrix:
    """With columns ascending in each row, values float32 (float64 where that is not exact), and a note. Raises UserError."""
    check_arrays(found)
    from scipy.sparse import csr_matrix

    data = np.ones(len(found.data), np.float32) if binary else found.data
    exact = data.astype(np.float32)
    if (exact != data).any():
        exact = data.astype(np.float64)
    rows = csr_matrix((exact, found.indices.astype(np.int64), found.indptr.astype(np.int64)), (len(found), found.width), copy=True)
    rows.sum_duplicates()
    rows.eliminate_zeros()
    if binary:
        rows.data[:] = 1
    made = replace(
        found, data=rows.data, indices=rows.indices.astype(_index_type(found.width)), indptr=rows.indptr.astype(np.int64)
    )
    return replace(made, notes=(*found.notes, _summary(made)))


def _index_type(width: int) -> type:
    return np.int32 if width <= np.iinfo(np.int32).max else np.int64


def check_arrays(found: Matrix) -> None:
    """Raises UserError where these arrays are not a sparse matrix: a file may hold anything."""
    name, indptr, indices, data = found.name, found.indptr, found.indices, found.data
    kinds = {indices.dtype.kind, indptr.dtype.kind}
    if any(a.ndim != 1 for a in (data, indices, indptr)) or data.dtype.kind not in "biuf" or not kinds <= {"i", "u"}:
        shown = ", ".join(f"{k} {a.dtype}{list(a.shape)}" for k, a in (("data", data), ("indices", indices), ("indptr", indptr)))
        raise UserError(
            f"--data.path: {name} is not a sparse matrix: {shown}; expected one dimension each, numbers and whole numbers"
        )
    if len(indptr) < 2 or found.width < 1:
        raise UserError(f"--data.path: {name} has shape [{len(indptr) - 1}, {found.width}]: at least one row and one column")
    steps = np.diff(indptr.astype(np.int64))
    if indptr[0] != 0 or indptr[-1] != len(indices) or len(indices) != len(data) or (steps < 0).any():
        row = f", at row {int((steps < 0).argmax()) + 1}" if (steps < 0).any() else ""
        raise UserError(
            f"--data.path: {name} is damaged: indptr must ascend from 0 to {len(indices)}, the number of indices and values{row}"
        )
    _check_values(found)


def _check_values(found: Matrix) -> None:
    """Raises UserError on a column that is not there, and on NaN and infinite values."""
    outside, infinite = (found.indices < 0) | (found.indices >= found.width), ~np.isfinite(found.data)
    for bad, why in ((outside, f"the last column is {found.width - 1}"), (infinite, "expected are finite numbers")):
        if bad.any():
            at = int(bad.argmax())
            row = int(np.searchsorted(found.indptr, at, side="right"))
            raise UserError(f"--data.path: {found.name} row {row}, column {found.indices[at]} is {found.data[at]}; {why}")


def classes_of(name: str, option: str, key: str, found: Column, rows: int) -> tuple[NDArray[np.int64], tuple[str, ...]]:
    """Codes `[N]` of a column, and what they stand for. Raises UserError that names `--data.OPTION`."""
    if len(found.missing) != rows:
        raise UserError(f"--data.{option}: {key!r} in {name} has {len(found.missing)} values for {rows} rows")
    if found.missing.any():
        raise UserError(f"--data.{option}: {key!r} in {name} has no value in row {int(found.missing.argmax()) + 1}")
    coded, classes = codes(found)
    return coded.astype(np.int64), classes


def check_memory(name: str, needed: int) -> None:
    """Raises UserError where a file announces more bytes than the machine has."""
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    if needed > memory:
        raise UserError(f"--data.path: {name} takes {needed} bytes; this machine has {memory}")


def _summary(made: Matrix) -> str:
    whole = bool((made.data % 1 == 0).all())
    values = f"{'whole numbers' if whole else 'values'} {made.data.min():g} to {made.data.max():g}" if len(made.data) else "nothing"
    share = len(made.data) / (len(made) * made.width)
    empty = int((np.diff(made.indptr) == 0).sum())
    said = f"sparse: {made.name}, {len(made):,} rows, {made.width:,} columns, {share:.2%} of the values are not 0: {values}"
    label = f"; label ({len(made.classes)} classes: {', '.join(made.classes[:5])}{', …' if len(made.classes) > 5 else ''})"
    return said + (label if made.label is not None else "") + (f"; {empty} rows contain only 0" if empty else "")
