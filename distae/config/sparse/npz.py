"""Matrices of scipy.sparse.save_npz."""

import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from distae.config.data.stored import FILE_ERRORS
from distae.config.sparse.matrix import Matrix, check_arrays, check_memory, classes_of
from distae.config.tables.read import Column, of_objects
from distae.errors import UserError

MEMBERS = ("data", "indices", "indptr", "shape", "format")
ADVICE = "make one of a matrix m: scipy.sparse.save_npz('x.npz', m.tocsr())"


def from_npz(path: Path, label: str | None, batch_key: str | None) -> Matrix:
    """Raises UserError where the file is not a matrix by rows or by columns, or has no such label."""
    try:
        with zipfile.ZipFile(path) as archive:
            check_memory(path.name, sum(member.file_size for member in archive.infolist()))
        with np.load(path, allow_pickle=False) as members:
            return _matrix(path, members, label, batch_key)
    except FILE_ERRORS as error:
        raise UserError(f"--data.path: {path} is damaged, or not an .npz file ({error}); {ADVICE}") from error


def _matrix(path: Path, members: Any, label: str | None, batch_key: str | None) -> Matrix:
    if absent := [k for k in MEMBERS if k not in members.files]:
        held = ", ".join(members.files[:8])
        raise UserError(
            f"--data.path: {path} is not a sparse matrix: it has no {absent[0]!r}, but {held}; {ADVICE},\nor use --data array"
        )
    kind, shape = members["format"].item(), members["shape"]
    kind = kind.decode(errors="replace") if isinstance(kind, bytes) else str(kind)
    if kind not in ("csr", "csc") or shape.shape != (2,) or shape.dtype.kind not in "iu":
        raise UserError(f"--data.path: {path} has format {kind!r} and shape {shape.tolist()}; valid are csr and csc; {ADVICE}")
    rows, width = (int(n) for n in shape)
    found = Matrix(path.name, members["data"], members["indices"], members["indptr"], width)
    if kind == "csc":
        found = by_rows(found, rows)
    if len(found) != rows:
        raise UserError(f"--data.path: {path} is damaged: shape {shape.tolist()}, and {len(found)} rows")
    codes, classes = _classes(path, members, "label", label, rows) if label else (None, ())
    aside = {batch_key: _classes(path, members, "batch-key", batch_key, rows)[0]} if batch_key else {}
    return Matrix(found.name, found.data, found.indices, found.indptr, width, codes, classes, aside)


def _classes(path: Path, members: Any, option: str, key: str, rows: int) -> Any:
    others = [k for k in members.files if k not in MEMBERS]
    if key not in others:
        has = f"has {', '.join(others)} besides the matrix" if others else "contains only the matrix"
        raise UserError(f"--data.{option}: no {key!r} in {path.name}; it {has}")
    values = members[key]
    if values.ndim != 1 or values.dtype.kind not in "biufUS":
        raise UserError(
            f"--data.{option}: {key!r} in {path.name} is {values.dtype} {list(values.shape)}; one dimension is expected"
        )
    if values.dtype.kind in "iuf":
        return classes_of(path.name, option, key, Column(values.astype(np.float64), np.isnan(values.astype(np.float64))), rows)
    return classes_of(path.name, option, key, of_objects(values.astype(str)), rows)


def by_rows(columns: Matrix, rows: int) -> Matrix:
    """A matrix stored by columns (CSC), whose indices are rows, by rows. Raises UserError where it is none."""
    from scipy.sparse import csc_matrix

    check_arrays(replace(columns, width=rows))
    width = columns.width
    if len(columns.indptr) != width + 1:
        raise UserError(f"--data.path: {columns.name} is damaged: {len(columns.indptr) - 1} columns, and shape says {width}")
    made = csc_matrix((columns.data, columns.indices, columns.indptr), (rows, width)).tocsr()
    return replace(columns, data=made.data, indices=made.indices, indptr=made.indptr)
