"""Files and DataFrames to columns of numbers or texts. Values are not changed; errors name file, row and column."""

import csv
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from distae.config.extras import needs
from distae.errors import UserError

MISSING = frozenset(("", "?", "NA", "N/A", "n/a", "#N/A", "<NA>", "NaN", "nan", "-nan", "NAN", "null", "NULL", "None"))
"""Cells of .csv and .tsv files that hold no value."""
ARROW, PARQUET = (".arrow", ".feather", ".ipc"), (".parquet", ".pq")
TEXT = {".csv": ",", ".tsv": "\t", ".tab": "\t", ".inter": "\t"}
"""Suffixes and the usual delimiter."""


@dataclass(frozen=True)
class Column:
    """One column of a table."""

    values: NDArray[Any]
    """`[N]`: float64, or texts as objects; anything where `missing`."""
    missing: NDArray[np.bool_]
    """`[N]`: cells that hold no value."""
    kind: str = "number"
    """number, text, or time (values are microseconds)."""


@dataclass(frozen=True)
class Cells:
    """A table as it is stored."""

    name: str
    """For messages: the file's name."""
    columns: dict[str, Column]

    def __len__(self) -> int:
        return len(next(iter(self.columns.values())).missing)


def read(path: Path, drop: Sequence[str] = ()) -> Cells:
    """The columns of a file but those in `drop`. Raises UserError if it is no table, or holds no row."""
    suffix = path.suffix.lower()
    if suffix in TEXT:
        cells = _read_text(path, TEXT[suffix], drop)
    elif suffix in (*PARQUET, *ARROW):
        cells = _read_arrow(path, suffix in PARQUET, drop)
    else:
        other = {
            ".npy": " (--data array reads it)",
            ".npz": " (--data array or sparse reads it)",
            ".h5ad": " (--data sparse reads it)",
        }
        raise UserError(f"--data.path: {path}{other.get(suffix, '')}: valid are {', '.join((*TEXT, *PARQUET, *ARROW))}")
    return _checked(cells)


def from_pandas(frame: Any, drop: Sequence[str] = ()) -> Cells:
    """The columns of a pandas DataFrame but those in `drop`; its index is not one of them. Raises UserError as `read`."""
    kept = _kept(_names([str(name) for name in frame.columns], "the DataFrame"), drop, "the DataFrame")
    return _checked(Cells("the DataFrame", {name: _of_series(frame.iloc[:, i], name) for i, name in kept}))


def _checked(cells: Cells) -> Cells:
    if not cells.columns or not len(cells):
        raise UserError(f"--data.path: {cells.name} contains no {'rows' if cells.columns else 'columns'}")
    return cells


def _names(names: list[str], where: str) -> list[str]:
    """The columns' names; pandas writes its index without one. Raises UserError where two are the same."""
    names = [name.strip() or f"unnamed_{i + 1}" for i, name in enumerate(names)]
    if twice := next((name for i, name in enumerate(names) if name in names[:i]), None):
        first, second = (i + 1 for i, name in enumerate(names) if name == twice)
        raise UserError(f"--data.path: {where} has two columns {twice!r}, the {first}. and the {second}.: rename one of them")
    return names


def _kept(names: list[str], drop: Sequence[str], where: str) -> list[tuple[int, str]]:
    """Number and name of the columns not in `drop`. Raises UserError on names that are not there."""
    if odd := [name for name in drop if name not in names]:
        raise UserError(
            f"--data.drop: no column {odd[0]!r} in {where}; it has {', '.join(names[:20])}{', …' if len(names) > 20 else ''}"
        )
    return [(i, name) for i, name in enumerate(names) if name not in drop]


def _read_text(path: Path, usual: str, drop: Sequence[str]) -> Cells:
    """By pyarrow where it is installed and takes the file; else, with the same result and errors that name the place, by csv."""
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            delimiter = _delimiter(file.readline(), usual)
            file.seek(0)
            reader = csv.reader(file, delimiter=delimiter, strict=True)
            kept = _kept(_header(next(reader, []), path), drop, path.name)
            if fast := _by_pyarrow(path, delimiter, kept):
                return fast
            width = len(kept) + len(set(drop))
            columns = list(zip(*_whole_rows(reader, width, path), strict=True)) or [()] * width
    except UnicodeDecodeError as error:
        raise UserError(f"--data.path: {path} is not UTF-8 text (byte {error.start}); save it as UTF-8") from error
    except csv.Error as error:
        raise UserError(f"--data.path: {path} line {reader.line_num}: {error}") from error
    except OSError as error:
        raise UserError(f"--data.path: cannot read {path} ({error.strerror})") from error
    return Cells(path.name, {name: of_texts(columns[i]) for i, name in kept})


def _by_pyarrow(path: Path, delimiter: str, kept: list[tuple[int, str]]) -> Cells | None:
    """Some 3 times as fast, in half the memory; None where the file needs the other way."""
    try:
        import pyarrow
        import pyarrow.compute
        from pyarrow import csv as fast

        names = [str(i) for i in range(max(i for i, _ in kept) + 1)] if kept else []
        read = fast.ReadOptions(skip_rows=1, autogenerate_column_names=True)
        parse = fast.ParseOptions(delimiter=delimiter, newlines_in_values=True)
        strings = {f"f{name}": pyarrow.string() for name in names}
        convert = fast.ConvertOptions(column_types=strings, include_columns=[f"f{i}" for i, _ in kept], strings_can_be_null=False)
        table = fast.read_csv(path, read, parse, convert)
    except (ImportError, ValueError, OSError):  # pyarrow's own errors are ValueErrors
        return None
    return Cells(path.name, {name: _of_strings(table.column(f"f{i}"), pyarrow) for i, name in kept})


def _of_strings(values: Any, pyarrow: Any) -> Column:
    """As `of_texts`."""
    compute = pyarrow.compute
    stripped = compute.utf8_trim_whitespace(values)
    missing = compute.is_in(stripped, pyarrow.array(sorted(MISSING)))
    try:
        numbers = compute.cast(compute.if_else(missing, pyarrow.scalar(None, pyarrow.string()), stripped), pyarrow.float64())
        return Column(numbers.to_numpy(), missing.to_numpy().astype(np.bool_))
    except ValueError:
        return of_texts(values.to_pylist())


def _delimiter(header: str, usual: str) -> str:
    """The usual one, unless the header has only another: spreadsheets of some countries save `;` in a .csv."""
    return usual if usual in header else next((d for d in ";\t,|" if d in header), usual)


def _header(cells: list[str], path: Path) -> list[str]:
    if not cells:
        raise UserError(f"--data.path: {path} is empty")
    if all(_is_number(cell) for cell in cells):
        raise UserError(
            f"--data.path: the first line of {path} is numbers ({', '.join(cells[:3])}, …), "
            "where names of columns are expected: add them"
        )
    return _names(cells, str(path))


def _whole_rows(reader: Any, width: int, path: Path) -> Iterable[list[str]]:
    """The rows that have cells. Raises UserError at one of another number of cells."""
    for number, row in enumerate(reader, 1):
        if len(row) == width:
            yield row
        elif row:
            raise UserError(
                f"--data.path: {path} row {number} (line {reader.line_num}) has {len(row)} cells; the header has {width}"
            )


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return "_" not in text


def of_texts(texts: Sequence[str]) -> Column:
    """Numbers where all cells that hold a value are numbers, else texts."""
    stripped = [text.strip() for text in texts]
    missing = np.fromiter((text in MISSING for text in stripped), np.bool_, len(stripped))
    cells = ("nan" if gone else text for text, gone in zip(stripped, missing, strict=True))
    try:
        numbers = np.fromiter(cells, np.float64, len(stripped))
    except ValueError:
        numbers = None
    if numbers is None or any("_" in text for text in stripped):  # Python takes 1_000 for a number
        return Column(np.array(stripped, dtype=object), missing, "text")
    return Column(numbers, missing)


def of_numbers(values: NDArray[Any]) -> Column:
    numbers = np.asarray(values, dtype=np.float64)
    return Column(numbers, np.isnan(numbers))


def of_objects(values: Iterable[Any]) -> Column:
    """Texts of whatever has one; None, NaN and the like are missing."""
    found = [None if v is None or v != v or str(v) in ("<NA>", "NaT") else str(v) for v in values]  # noqa: PLR0124 - NaN
    missing = np.fromiter((v is None for v in found), np.bool_, len(found))
    return Column(np.array([v or "" for v in found], dtype=object), missing, "text")


def _read_arrow(path: Path, parquet: bool, drop: Sequence[str]) -> Cells:
    what = f"--data.path {path}"
    pyarrow = needs("pyarrow", "data", what)
    load: Callable[[Path, Any], Any] = _parquet if parquet else _ipc
    try:
        table = load(path, pyarrow)
    except (pyarrow.ArrowException, OSError, ValueError) as error:
        raise UserError(f"--data.path: {path} is damaged, or not a file of this kind ({str(error).splitlines()[0]})") from error
    kept = _kept(_names(table.column_names, str(path)), drop, path.name)
    return Cells(path.name, {name: _of_arrow(table.column(i), name, path.name, pyarrow) for i, name in kept})


def _parquet(path: Path, pyarrow: Any) -> Any:
    with needs("pyarrow.parquet", "data", f"--data.path {path}").ParquetFile(path, memory_map=True) as file:
        return file.read()  # read_table takes no two columns of one name, which are for `_names` to report


def _ipc(path: Path, pyarrow: Any) -> Any:
    """A file, which feather is too, or a stream."""
    ipc = needs("pyarrow.ipc", "data", f"--data.path {path}")
    with pyarrow.memory_map(str(path)) as source:
        try:
            return ipc.open_file(source).read_all()
        except pyarrow.ArrowInvalid:
            source.seek(0)
            return ipc.open_stream(source).read_all()


def _of_arrow(values: Any, name: str, where: str, pyarrow: Any) -> Column:
    types, kind = pyarrow.types, values.type
    if types.is_dictionary(kind):
        return of_objects(values.to_pylist())
    if types.is_timestamp(kind) or types.is_date(kind):
        micros = values.cast(pyarrow.timestamp("us")).cast(pyarrow.int64()).cast(pyarrow.float64(), safe=False)
        return Column(micros.to_numpy(), values.is_null().to_numpy(), "time")
    if types.is_integer(kind) or types.is_floating(kind) or types.is_decimal(kind) or types.is_null(kind):
        return of_numbers(values.cast(pyarrow.float64(), safe=False).to_numpy())
    if types.is_boolean(kind) or types.is_string(kind) or types.is_large_string(kind) or types.is_string_view(kind):
        return of_objects(values.to_pylist())
    raise UserError(
        f"--data.path: {where}, column {name!r} contains {kind}, not numbers or texts; leave it out: --data.drop {name}"
    )


def _of_series(series: Any, name: str) -> Column:
    """A column of a DataFrame."""
    kind = series.dtype
    if getattr(kind, "kind", "O") == "M" or str(kind).startswith("datetime"):
        missing = series.isna().to_numpy()
        return Column(series.astype("int64").to_numpy().astype(np.float64), missing, "time")
    if getattr(kind, "kind", "O") in "iuf" and str(kind) != "category":
        return of_numbers(series.to_numpy(dtype=np.float64, na_value=np.nan))
    nested = next((v for v in series if isinstance(v, list | tuple | dict | set | np.ndarray)), None)
    if nested is not None:
        raise UserError(f"the DataFrame, column {name!r} contains a {type(nested).__name__}, not numbers or texts: drop it")
    return of_objects(series)
