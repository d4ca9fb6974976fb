"""What the columns of a table are, and their cells as numbers. Names, kinds and categories are of all rows; statistics are not."""

import difflib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from distae.config.tables.read import Cells, Column
from distae.errors import UserError

SHOWN = 5
"""Columns or values that a message names at most."""
MOST_CLASSES = 10_000
"""Distinct labels."""


@dataclass(frozen=True)
class Feature:
    """One column that the model sees."""

    name: str
    kind: Literal["numeric", "binary", "categorical"] = "numeric"
    categories: tuple[str, ...] = ()
    """What codes 0, 1, … of a binary or categorical column stand for."""

    @property
    def width(self) -> int:
        """Values that the model sees: categories are one-hot."""
        return len(self.categories) if self.kind == "categorical" else 1


@dataclass(frozen=True)
class Kinds:
    """What the user says of the columns; names are checked against the table's."""

    label: str | None = None
    aside: Mapping[str, str] = field(default_factory=dict)
    """Columns that the model does not see, and the setting that names each."""
    categorical: tuple[str, ...] = ()
    numeric: tuple[str, ...] = ()
    missing: Literal["refuse", "impute", "mask"] = "refuse"
    onehot: bool = True
    """False leaves categorical columns out."""
    max_categories: int = 100


@dataclass(frozen=True)
class Table:
    """A table as numbers."""

    name: str
    features: tuple[Feature, ...]
    """Numeric ones first, then binary, then categorical ones, each in the order of the file."""
    x: NDArray[np.float64]
    """`[N, len(features)]`: numbers, or codes of categories; NaN where missing."""
    label: NDArray[np.int64] | None = None
    classes: tuple[str, ...] = ()
    """What the labels 0, 1, … stand for."""
    aside: Mapping[str, NDArray[Any]] = field(default_factory=dict)
    """`[N]` each, as stored."""
    notes: tuple[str, ...] = ()

    @property
    def shape(self) -> tuple[int]:
        """Of one sample, as the model sees it."""
        return (sum(feature.width for feature in self.features),)

    def groups(self) -> tuple[str, ...]:
        """Kinds and widths of the values that the model sees, in order: `numeric:5`, `binary:2`, `categorical:3`, …"""
        counts = [(kind, sum(f.kind == kind for f in self.features)) for kind in ("numeric", "binary")]
        single = [f"{kind}:{n}" for kind, n in counts if n]
        return (*single, *(f"categorical:{f.width}" for f in self.features if f.kind == "categorical"))


def table_of(cells: Cells, kinds: Kinds) -> Table:
    """Raises UserError on columns that are not there, or hold what the model cannot take."""
    _check_names(cells, kinds)
    label, classes = _label(cells, kinds.label)
    kept = {k: v for k, v in cells.columns.items() if k != kinds.label and k not in kinds.aside}
    _check_cells(cells.name, kept, kinds)
    found = [(_feature(cells, name, kinds), column) for name, column in kept.items()]
    left_out = [f.name for f, _ in found if f.kind == "categorical" and not kinds.onehot]
    used = [(f, column) for kind in ("numeric", "binary", "categorical") for f, column in found if f.kind == kind]
    used = [(f, column) for f, column in used if f.name not in left_out]
    if not used:
        raise UserError(f"--data.path: {cells.name} has no column left for the model")
    features = tuple(f for f, _ in used)
    x = np.stack([_encoded(f, column) for f, column in used], 1)
    aside = {k: cells.columns[k].values for k in kinds.aside}
    table = Table(cells.name, features, x, label, classes, aside)
    return replace(table, notes=(_summary(table, kinds, left_out), *_doubts(table, left_out, cells)))


def _check_names(cells: Cells, kinds: Kinds) -> None:
    label = {kinds.label: "label"} if kinds.label else {}
    named = label | dict(kinds.aside) | dict.fromkeys(kinds.categorical, "categorical") | dict.fromkeys(kinds.numeric, "numeric")
    for name, option in named.items():
        column(cells, name, option)
    if both := set(kinds.categorical) & set(kinds.numeric):
        raise UserError(f"--data.categorical and --data.numeric both name {min(both)!r}")
    if kinds.label in kinds.aside:
        raise UserError(f"--data.label and another setting both name {kinds.label!r}: give it once")


def column(cells: Cells, name: str, option: str) -> Column:
    """The column that `--data.OPTION` names. Raises UserError."""
    if name not in cells.columns:
        names = list(cells.columns)
        shown = ", ".join(names[:20]) + (f", … ({len(names)} in all)" if len(names) > 20 else "")
        meant = [name.replace(",", " ")] if set(name.split(",")) <= set(names) else difflib.get_close_matches(name, names, 1)
        hint = f" (did you mean {meant[0]!r}?)" if meant else ""
        raise UserError(f"--data.{option}: no column {name!r}{hint} in {cells.name}; it has {shown}")
    return cells.columns[name]


def place(cells: str, row: int, name: str) -> str:
    return f"{cells} row {row + 1}, column {name!r}"


def texts(column: Column) -> list[str]:
    """Each cell as text; whole numbers without a point."""
    if column.kind == "text":
        return list(column.values)
    return [str(int(v)) if v.is_integer() else repr(v) for v in column.values.tolist()]


def codes(column: Column) -> tuple[NDArray[np.float64], tuple[str, ...]]:
    """Codes `[N]`, NaN where missing, and what they stand for: numbers in their order, texts by the alphabet."""
    found, there = np.full(len(column.missing), np.nan), ~column.missing
    if column.kind != "text":
        distinct, found[there] = np.unique(column.values[there], return_inverse=True)
        return found, tuple(texts(Column(distinct, there, column.kind)))
    cells = column.values[there].tolist()
    order = {text: code for code, text in enumerate(sorted(set(cells)))}
    found[there] = np.fromiter(map(order.__getitem__, cells), np.float64, len(cells))
    return found, tuple(order)


def _label(cells: Cells, name: str | None) -> tuple[NDArray[np.int64] | None, tuple[str, ...]]:
    if name is None:
        return None, ()
    asked = column(cells, name, "label")
    if asked.missing.any():
        first, count = int(asked.missing.argmax()), int(asked.missing.sum())
        raise UserError(f"--data.label: {place(cells.name, first, name)} has no label ({count} rows in all)")
    if asked.kind != "text" and (asked.values % 1 != 0).any():
        row = int((asked.values % 1 != 0).argmax())
        raise UserError(
            f"--data.label: {place(cells.name, row, name)} is {asked.values[row]:g}; labels are classes: texts or whole numbers.\n"
            f"Use the column as a value (leave --data.label out), or keep it aside: --data.id {name}"
        )
    found, classes = codes(asked)
    if len(classes) > MOST_CLASSES:
        raise UserError(
            f"--data.label: {name!r} has {len(classes)} different values in {cells.name}; at most {MOST_CLASSES} classes"
        )
    return found.astype(np.int64), classes


def _check_cells(where: str, columns: dict[str, Column], kinds: Kinds) -> None:
    """Raises UserError on infinite cells, columns without a value, and missing values where they are refused."""
    for name, found in columns.items():
        if found.missing.all():
            raise UserError(f"--data.path: {where}, column {name!r} has no value at all: leave it out: --data.drop {name}")
        if found.kind == "number" and np.isinf(found.values).any():
            raise UserError(f"--data.path: {place(where, int(np.isinf(found.values).argmax()), name)} is infinite")
    if kinds.missing == "refuse" and (gone := [(name, c.missing) for name, c in columns.items() if c.missing.any()]):
        shown = ", ".join(f"{name!r} {m.sum()} (first in row {m.argmax() + 1})" for name, m in gone[:SHOWN])
        more = f", and {len(gone) - SHOWN} more columns" if len(gone) > SHOWN else ""
        raise UserError(
            f"--data.path: {where} has {sum(m.sum() for _, m in gone)} cells without a value: {shown}{more};\n"
            "give --data.missing impute (the training rows' mean or most frequent category) or mask (left out of the likelihood)"
        )


def _feature(cells: Cells, name: str, kinds: Kinds) -> Feature:
    found = cells.columns[name]
    if name in kinds.numeric:
        _check_number(cells.name, name, found)
        return Feature(name)
    if found.kind == "time":
        raise UserError(
            f"--data.path: {cells.name}, column {name!r} has times; keep it aside (--data.id {name}), leave it out (--data.drop "
            f"{name}), or take it as a number (--data.numeric {name})"
        )
    if found.kind == "number" and name not in kinds.categorical and not _two_values(found):
        return Feature(name)
    if found.kind == "text" and name not in kinds.categorical:
        _check_text(cells.name, name, found)
    categories = codes(found)[1]
    if len(categories) > kinds.max_categories:
        example = ", ".join(map(repr, categories[:2]))
        raise UserError(
            f"--data.max-categories {kinds.max_categories}: column {name!r} of {cells.name} has {len(categories)} different values "
            f"({example}, …);\nkeep it aside (--data.id {name}), leave it out (--data.drop {name}), or raise the limit"
        )
    return Feature(name, "binary" if len(categories) == 2 and name not in kinds.categorical else "categorical", categories)


def _two_values(found: Column) -> bool:
    values = found.values[~found.missing]
    low, high = values.min(), values.max()
    return bool(low < high and ((values == low) | (values == high)).all())


def _numbers_in(found: Column) -> Iterator[tuple[int, bool]]:
    """Row and whether it holds a number, of every cell that holds a value."""
    for row, (text, gone) in enumerate(zip(found.values, found.missing, strict=True)):
        if not gone:
            try:
                float(text)
                yield row, "_" not in text
            except ValueError:
                yield row, False


def _check_number(where: str, name: str, found: Column) -> None:
    if found.kind == "text":
        row = next(row for row, number in _numbers_in(found) if not number)
        raise UserError(f"--data.numeric: {place(where, row, name)} is {found.values[row]!r}, not a number")


def _check_text(where: str, name: str, found: Column) -> None:
    """Raises UserError on text in a column of which most cells are numbers."""
    cells = list(_numbers_in(found))
    numbers = sum(number for _, number in cells)
    if numbers > len(cells) / 2:
        row = next(row for row, number in cells if not number)
        raise UserError(
            f"--data.path: {place(where, row, name)} is {found.values[row]!r}, where {numbers} of {len(cells)} cells are numbers;\n"
            f"correct it, leave the cell empty for a missing value, or give --data.categorical {name}"
        )


def _encoded(feature: Feature, found: Column) -> NDArray[np.float64]:
    if feature.kind == "numeric":
        return np.where(found.missing, np.nan, found.values.astype(np.float64))
    return codes(found)[0]


def _summary(table: Table, kinds: Kinds, left_out: Sequence[str]) -> str:
    count = {kind: sum(f.kind == kind for f in table.features) for kind in ("numeric", "binary", "categorical")}
    said = [f"{n} {kind}" for kind, n in count.items() if n]
    if count["categorical"]:
        said[-1] += f" (one-hot, {sum(f.width for f in table.features if f.kind == 'categorical')} values)"
    if kinds.label:
        said.append(f"label {kinds.label!r} ({len(table.classes)} classes: {_shown(table.classes)})")
    if kinds.aside:
        said.append(f"kept aside: {_shown(tuple(kinds.aside))}")
    if left_out:
        said.append(f"categorical, left out: {_shown(left_out)}")
    gone = int(np.isnan(table.x).sum())
    how = {"impute": "imputed", "mask": "masked"}.get(kinds.missing, "")
    return f"table: {table.name}, {len(table.x)} rows: {', '.join(said)}" + (f"; {gone} missing values, {how}" if gone else "")


def _doubts(table: Table, left_out: Sequence[str], cells: Cells) -> list[str]:
    """Notes on columns that are probably not meant as values."""
    counts = [f.name for i, f in enumerate(table.features) if f.kind == "numeric" and _counts_rows(table.x[:, i])]
    texts = [f.name for f in table.features if f.kind == "categorical" and f.width == len(table.x) > 2]
    notes = [f"table: column {name!r} numbers the rows; if it is an id, keep it aside: --data.id {name}" for name in counts]
    notes += [
        f"table: column {name!r} is different in every row; if it is an id, keep it aside: --data.id {name}" for name in texts
    ]
    same = [f.name for i, f in enumerate(table.features) if f.width == 1 and np.nanmin(table.x[:, i]) == np.nanmax(table.x[:, i])]
    return notes + ([f"table: the same value in every row: {_shown(same)}"] if same else [])


def _counts_rows(values: NDArray[np.float64]) -> bool:
    return len(values) > 2 and bool((np.diff(values) == 1).all())


def _shown(names: Sequence[str]) -> str:
    return ", ".join(names[:SHOWN]) + (", …" if len(names) > SHOWN else "")
