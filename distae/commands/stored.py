"""Samples in the units of the data as the contents of files."""

import csv
import io
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from distae.data import Transform


def npy(x: "NDArray[Any]") -> bytes:
    """A .npy file."""
    import numpy as np

    file = io.BytesIO()
    np.save(file, x)
    return file.getvalue()


def rows_as_csv(
    stored: "np.ndarray[Any, Any]", transform: "Transform", beside: Mapping[str, Sequence[Any]] | None = None
) -> Iterator[bytes]:
    """CSV of rows `[N, columns]` as stored, categories as texts; `beside` are further columns, in front."""
    beside = beside or {}
    yield from lines_as_csv([[*beside, *(c.name for c in transform.columns)]])
    for row, *further in zip(stored, *beside.values(), strict=True):
        cells = [c.categories[int(v)] if c.categories else repr(float(v)) for c, v in zip(transform.columns, row, strict=True)]
        yield from lines_as_csv([[*further, *cells]])


def lines_as_csv(rows: Iterable[Sequence[Any]]) -> Iterator[bytes]:
    """CSV of rows of cells, the first of them the names of the columns."""
    for row in rows:
        line = io.StringIO()
        csv.writer(line, lineterminator="\n").writerow(row)
        yield line.getvalue().encode()
