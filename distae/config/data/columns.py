"""What a table of samples holds: which column is the sample, which the label, of what shape and type. No torch."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from distae.config.data.array import StoredLayout, as_the_model_sees
from distae.config.data.base import DataConfig
from distae.config.data.image_folder import CHANNELS, ImageSettings
from distae.config.fields import Fraction, Joined, Positive
from distae.errors import UserError

NUMBERS = {"uint8": "uint8", "halffloat": "float16", "float": "float32", "double": "float64"}
"""Types of values as they are read, by pyarrow's name; other integers and bools are read as float32."""


@dataclass(frozen=True)
class Column:
    """The column of samples."""

    name: str
    kind: Literal["image", "array"]
    shape: tuple[int, ...]
    """Of one sample as read: `[C, size, size]` of an image."""
    dtype: str


@dataclass(frozen=True, kw_only=True)
class ColumnsConfig(ImageSettings):
    """What data sets in tables of images or arrays share."""

    unit: ClassVar[str]
    """What their files are called, for messages."""

    path: Joined = ""
    """Where the data is."""
    test: Joined = ""
    """The test split, as for --data.path; by default the files named as test, else it is held out."""
    column: str | None = None
    """Column of the images (encoded, as bytes or as a struct of bytes and path) or arrays (lists of numbers); by default the
    only one of such a type."""
    label: str | None = None
    """Column of the labels: integers from 0 on, or names; by default the only one that Hugging Face's
    metadata calls a class label."""
    mode: Literal["RGB", "RGBA", "L", "F"] = "RGB"
    """What all images are converted to: colour, colour and transparency, grey, or grey as floating point, which keeps 16 bits."""
    scale: Literal["auto"] | Positive = "auto"
    """The model's values are the stored ones divided by this. auto: 255 for images and uint8 arrays, else 1."""
    layout: Literal["channels_first", "channels_last"] = "channels_last"
    """Meaning of arrays of 3 dimensions: `[H, W, C]` or `[C, H, W]`."""
    test_fraction: Fraction = 0.1
    """Share of the samples held out for the test split, if there is none."""

    def shape(self) -> tuple[int, ...]:
        column = self.described()
        if column.kind == "image":
            return (CHANNELS[self.mode], self.size, self.size)
        if self.flip or self.crop != "center":
            raise UserError(f"--data.flip and --data.crop require encoded images; column {column.name!r} contains arrays")
        return as_the_model_sees(column.shape, self.stored_layout(column))

    def stored_layout(self, column: Column) -> StoredLayout:
        """How the samples of the column are laid out."""
        if len(column.shape) == 2:
            return "no_channel"
        last = column.kind == "array" and self.layout == "channels_last"
        return "channels_last" if last and len(column.shape) == 3 else "as_stored"

    def sets(self) -> dict[str, list[str]]:
        """Files by split: `train`, and `val` and `test` where the names or `--data.test` say so."""
        raise NotImplementedError

    def head(self, file: str) -> "tuple[Any, Any]":
        """The Arrow schema of a file, and what gives the first value of a column. Raises UserError if it is damaged."""
        raise NotImplementedError

    def described(self, file: str | None = None) -> Column:
        """The column of samples, as a file says, by default the first."""
        file = file or self.sets()["train"][0]
        schema, first = self.head(file)
        name = self.column_in(schema, file)
        return _described(self, file, schema, name, first)

    def column_in(self, schema: Any, file: str) -> str:
        """The name of the column of samples. Raises UserError if there is no such column, or it is not clear which."""
        check_names(schema.names, file)
        if self.column:
            if self.column not in schema.names:
                raise UserError(f"--data.column: {self.column!r} is not in {file}; it contains {', '.join(schema.names)}")
            return str(self.column)
        kinds = {field.name: kind_of_type(field.type) for field in schema}
        found = [n for n, k in kinds.items() if k == "image"] or [n for n, k in kinds.items() if k == "array"]
        if len(found) == 1:
            return str(found[0])
        if not found:
            advice = f"; read it with --data table --data.path {file}" if "table" in DataConfig.choices() else ""
            raise UserError(f"--data.column: {file} has no column of images or lists of numbers, only {', '.join(kinds)}{advice}")
        raise UserError(f"--data.column: {file} has several columns of samples, {', '.join(found)}: give one")

    def label_in(self, schema: Any, file: str) -> str | None:
        """The name of the column of labels; None if there is none. Raises UserError if the one asked for is not there."""
        if self.label:
            if self.label not in schema.names:
                raise UserError(f"--data.label: {self.label!r} is not in {file}; it contains {', '.join(schema.names)}")
            return self.label
        found = [n for n, f in features_of(schema).items() if f.get("_type") == "ClassLabel" and n in schema.names]
        return found[0] if len(found) == 1 else None


def check_names(names: Sequence[str], file: str) -> None:
    """Raises UserError on two columns of one name."""
    if twice := next((n for n in names if list(names).count(n) > 1), None):
        raise UserError(f"--data.path: {file} has two columns of the name {twice!r}")


def features_of(schema: Any) -> dict[str, dict[str, Any]]:
    """Hugging Face's description of each column, from the schema's metadata; empty if there is none."""
    try:
        features = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
        return {name: feature for name, feature in features.items() if isinstance(feature, dict)}
    except (LookupError, ValueError, TypeError, AttributeError, RecursionError):
        return {}


def kind_of_type(tp: Any) -> Literal["image", "array"] | None:
    """What a column of an Arrow type can hold."""
    import pyarrow as pa

    tp = getattr(tp, "storage_type", tp)
    if pa.types.is_struct(tp):
        return "image" if tp.get_field_index("bytes") >= 0 else None
    if pa.types.is_binary(tp) or pa.types.is_large_binary(tp):
        return "image"
    inner, depth = tp, 0
    while pa.types.is_list(inner) or pa.types.is_large_list(inner) or pa.types.is_fixed_size_list(inner):
        inner, depth = inner.value_type, depth + 1
    number = pa.types.is_floating(inner) or pa.types.is_integer(inner) or pa.types.is_boolean(inner)
    return "array" if depth and number else None


def value_type(tp: Any) -> str:
    """numpy's name of the type that a column of lists is read as."""
    tp = getattr(tp, "storage_type", tp)
    while hasattr(tp, "value_type"):
        tp = tp.value_type
    return NUMBERS.get(str(tp), "float32")


def _described(cfg: ColumnsConfig, file: str, schema: Any, name: str, first: Any) -> Column:
    kind = kind_of_type(schema.field(name).type)
    if kind is None:
        raise UserError(
            f"--data.column: {name!r} of {file} is of type {schema.field(name).type}; images (bytes, or a struct of bytes) and "
            "lists of numbers are read"
        )
    if kind == "image":
        return Column(name, kind, (CHANNELS[cfg.mode], cfg.stored_side, cfg.stored_side), "float32" if cfg.mode == "F" else "uint8")
    try:
        shape = _array_shape(first(name))
    except ValueError as error:
        raise UserError(f"--data.path: {file} row 0, column {name!r}: {error}") from error
    if len(shape) > 3 or 0 in shape:
        raise UserError(
            f"--data.column: {name!r} of {file} contains samples of shape {list(shape)}; valid are [D], [H, W] and [H, W, C]"
        )
    return Column(name, kind, shape, value_type(schema.field(name).type))


def _array_shape(value: Any) -> tuple[int, ...]:
    """Shape of nested lists. Raises ValueError if there is none."""
    shape: list[int] = []
    while isinstance(value, list):
        shape.append(len(value))
        value = value[0] if value else None
    if not shape:
        raise ValueError("there is no value")
    return tuple(shape)
