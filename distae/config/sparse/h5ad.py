"""AnnData's .h5ad files: cells by genes, read with h5py alone."""

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from distae.config.extras import needs
from distae.config.sparse.matrix import Matrix, check_memory, classes_of
from distae.config.sparse.npz import by_rows
from distae.config.tables.read import Column, of_numbers, of_objects
from distae.errors import UserError

CHUNK = 64 << 20
"""Bytes of a dense matrix that are read at once."""


def from_h5ad(path: Path, layer: str | None, label: str | None, batch_key: str | None) -> Matrix:
    """X or a layer, and columns of obs. Raises UserError where they are not there."""
    h5py = needs("h5py", "data", f"--data.path {path}")
    try:
        with h5py.File(path, "r") as file:
            found = _matrix(path, file, layer, h5py)
            obs = file["obs"] if label or batch_key else {}
            codes, classes = _obs(path, obs, "label", label, len(found)) if label else (None, ())
            aside = {batch_key: _obs(path, obs, "batch-key", batch_key, len(found))[0]} if batch_key else {}
    except (OSError, KeyError, ValueError, TypeError, RuntimeError, AttributeError, IndexError) as error:
        raise UserError(f"--data.path: {path} is damaged, or not an .h5ad file ({error})") from error
    return Matrix(found.name, found.data, found.indices, found.indptr, found.width, codes, classes, aside)


def _matrix(path: Path, file: Any, layer: str | None, h5py: Any) -> Matrix:
    if layer and layer not in (layers := list(file.get("layers", ()))):
        raise UserError(f"--data.layer: no layer {layer!r} in {path.name}; it has {', '.join(layers) or 'none'}")
    x = file["layers"][layer] if layer else file["X"]
    if isinstance(x, h5py.Dataset):
        return _dense(path, x)
    kind = str(x.attrs.get("encoding-type", x.attrs.get("h5sparse_format", "")))
    rows, width = (int(n) for n in x.attrs.get("shape", x.attrs.get("h5sparse_shape", ())))
    members = [x[k] for k in ("data", "indices", "indptr")]
    check_memory(path.name, sum(m.nbytes for m in members))
    data, indices, indptr = (m[:] for m in members)
    found = Matrix(path.name, data, indices, indptr, width)
    if not kind.startswith(("csr", "csc")):
        raise UserError(
            f"--data.path: {path.name} contains a {kind or 'group of another kind'}; valid are csr_matrix, csc_matrix and dense"
        )
    found = by_rows(found, rows) if kind.startswith("csc") else found
    if len(found) != rows:
        raise UserError(f"--data.path: {path} is damaged: shape [{rows}, {width}], and {len(found)} rows")
    return found


def _dense(path: Path, x: Any) -> Matrix:
    """A matrix that is stored with its zeros, in chunks of rows."""
    from scipy.sparse import csr_matrix, vstack

    if x.ndim != 2 or x.dtype.kind not in "biuf" or not len(x):
        raise UserError(f"--data.path: {path.name} contains {x.dtype} {list(x.shape)}; numbers of cells by genes are expected")
    step = max(1, CHUNK // max(1, x.shape[1] * x.dtype.itemsize))
    made = vstack([csr_matrix(x[start : start + step]) for start in range(0, len(x), step)], format="csr")
    return Matrix(path.name, made.data, made.indices, made.indptr, x.shape[1])


def _obs(path: Path, obs: Any, option: str, key: str, rows: int) -> tuple[NDArray[np.int64], tuple[str, ...]]:
    """Codes of a column of obs, and what they stand for."""
    columns = [k for k in obs if not k.startswith("__")]
    if key not in columns:
        raise UserError(f"--data.{option}: no column {key!r} in obs of {path.name}; it has {', '.join(columns[:20])}")
    return classes_of(path.name, option, key, _column(obs[key], obs), rows)


def _column(found: Any, obs: Any) -> Column:
    """Categories are a group of codes and names, in older files codes beside obs/__categories; others are numbers or strings."""
    if hasattr(found, "keys"):
        if "categories" in found:
            return _named(found["codes"][:], found["categories"][:])
        values = of_numbers(found["values"][:])  # a nullable column: values and a mask
        return Column(values.values, values.missing | found["mask"][:])
    if "categories" in found.attrs:
        return _named(found[:], obs[found.attrs["categories"]][:])
    return of_numbers(found[:]) if found.dtype.kind in "iufb" else _text(found[:])


def _named(codes: NDArray[Any], names: NDArray[Any]) -> Column:
    """The category of each row; a code of -1 is missing."""
    texts = _text(names).values if names.dtype.kind not in "iufb" else names.astype(str)
    return Column(np.array([str(texts[c]) if c >= 0 else "" for c in codes], dtype=object), codes < 0, "text")


def _text(values: NDArray[Any]) -> Column:
    return of_objects(v.decode(errors="replace") if isinstance(v, bytes) else v for v in values)
