"""Samples in a column of Arrow tables: encoded images or lists of numbers, read in units."""

import io
from abc import abstractmethod
from collections.abc import Sequence
from typing import Any, NoReturn

import numpy as np
import torch
import xxhash
from torch import Tensor

from distae.config.data.columns import Column, ColumnsConfig, features_of
from distae.config.data.remote import said
from distae.data.decode import decode
from distae.data.runs import Rows
from distae.data.source import BadRowsError
from distae.data.units import UnitSource
from distae.errors import UserError

LARGEST_LABEL = 2**31


class ColumnSource(UnitSource):
    """The column of samples of some files. Subclasses define how a unit's column is read: `UnitSource.read_unit`."""

    decodes = True

    def __init__(
        self, cfg: ColumnsConfig, column: Column, units: Sequence[int], label: Tensor | None, classes: tuple[str, ...]
    ) -> None:
        self.cfg, self.column, self.label, self.classes = cfg, column, label, classes
        self.shape, self.dtype = column.shape, getattr(torch, column.dtype)
        if column.kind == "image" and column.dtype == "uint8":
            self.limits = 0.0, 255.0
        self.units = torch.tensor(units, dtype=torch.int64)
        self.starts = (self.units.cumsum(0) - self.units).tolist()

    @abstractmethod
    def digest(self) -> str:
        """Checksum of the files' contents, or of sampled blocks of them."""

    def checksum(self, rows: Rows | None) -> str:
        of_rows = b"" if rows is None else rows.numpy().tobytes()
        read_as = f"{self.digest()} {self.column} {self.cfg.mode}"  # a decoded copy is known by this
        return xxhash.xxh3_128_hexdigest(read_as.encode() + of_rows)

    def read(self, rows: Tensor) -> Tensor:
        try:
            return super().read(rows)
        except BadRowsError as error:
            named = {row: (self.name_of(row), reason) for row, reason in error.reasons.items()}
            file = {n: n.rpartition(" row ")[0] for n, _ in named.values()}
            raise BadRowsError({row: r if r.startswith(file[n]) else f"{n}: {r}" for row, (n, r) in named.items()}) from error

    def decode(self, unit: Any, rows: Tensor) -> Tensor:
        if self.column.kind == "array":
            return self._arrays(unit, rows)
        samples = torch.empty((len(rows), *self.shape), dtype=self.dtype)
        into, bad = samples.numpy(), dict[int, str]()
        images = unit.field("bytes") if hasattr(unit, "field") else unit
        for i, row in enumerate(rows.tolist()):
            try:
                file = io.BytesIO(images[row].as_buffer() or missing(unit[row].as_py()))
                into[i] = decode(file, self.cfg.mode, self.cfg.stored_side)
            except Exception as error:  # decoders raise anything on damaged images
                bad[row] = f"its image cannot be read ({said(error)})"
        if bad:
            raise BadRowsError(bad)
        return samples

    def _arrays(self, unit: Any, rows: Tensor) -> Tensor:
        """Rows of a column of lists. Raises BadRowsError on those of a different length, with missing values or NaN."""
        values, owner = flattened(unit.take(rows.numpy()))
        lengths, wanted = np.bincount(owner, minlength=len(rows)).tolist(), torch.Size(self.shape).numel()
        bad = {row: f"it has {n} values, expected {wanted}" for row, n in zip(rows.tolist(), lengths, strict=True) if n != wanted}
        if values.dtype.kind == "f":
            bad |= dict.fromkeys(rows[owner[~np.isfinite(values)]].tolist(), "it has a value that is missing, NaN or infinite")
        if bad:
            raise BadRowsError(bad)
        return torch.from_numpy(values.astype(self.column.dtype)).view(len(rows), *self.shape)


def missing(cell: Any) -> NoReturn:
    """Raises ValueError that says what a cell without an image holds."""
    path = cell.get("path") if isinstance(cell, dict) else None
    raise ValueError(f"only its path {path} is in the file" if path else "there is none")


def flattened(column: Any) -> tuple[np.ndarray, np.ndarray]:
    """All numbers of a column of nested lists, and the row of each. Missing numbers are NaN; missing rows have no numbers."""
    import pyarrow as pa
    import pyarrow.compute as pc

    column = getattr(column, "storage", column)
    owner = np.arange(len(column))
    while hasattr(column.type, "value_type"):
        if pa.types.is_fixed_size_list(column.type):  # a missing one still has slots for its values
            column = column.cast(pa.list_(column.type.value_type))
        owner = owner[pc.list_parent_indices(column).to_numpy(zero_copy_only=False)]
        column = pc.list_flatten(column)
    return column.to_numpy(zero_copy_only=False), owner


def labels_of(cfg: ColumnsConfig, chunks: Sequence[Any], schema: Any, name: str) -> tuple[Tensor | None, tuple[str, ...]]:
    """Labels `[N]` and the names of the classes, of the column of labels in parts.

    Raises UserError on values that are not labels. Without `--data.label`, a column of -1 (Hugging Face's "no label") is ignored.
    """
    import pyarrow as pa

    column = pa.chunked_array(chunks)
    if pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    if column.null_count:
        row = column.is_null().to_numpy().argmax()
        raise UserError(f"--data.label: row {row} has no value in column {name!r}; labels are integers from 0 on, or names")
    if pa.types.is_string(column.type) or pa.types.is_large_string(column.type):
        names, numbers = np.unique(column.to_numpy().astype(str), return_inverse=True)
        return torch.from_numpy(numbers.astype(np.int64)), tuple(names.tolist())
    if not (pa.types.is_integer(column.type) or pa.types.is_boolean(column.type)):
        raise UserError(f"--data.label: {name!r} is of type {column.type}; labels are integers from 0 on, or names")
    numbers = column.to_numpy().astype(np.int64)
    if numbers.size and (numbers.min() < 0 or numbers.max() > LARGEST_LABEL):
        if not cfg.label and numbers.min() == numbers.max() == -1:
            return None, ()
        raise UserError(f"--data.label: {name!r} has values from {numbers.min()} to {numbers.max()}; labels are integers from 0 on")
    return torch.from_numpy(numbers.copy()), tuple(features_of(schema).get(name, {}).get("names") or ())
