"""Data for a trained model: with the model's own transform, tables by its columns."""

import math
from dataclasses import replace

import torch
from torch import Tensor

from distae.data.columns import Scaled
from distae.data.source import Source, Tensors
from distae.data.splits import Split
from distae.data.transform import Transform
from distae.errors import UserError


def as_trained(splits: dict[str, Split], transform: Transform, shape: tuple[int, ...]) -> dict[str, Split]:
    """The same samples with the transform of a trained model, which sees samples of `shape`.

    Raises UserError where they are not what the model was trained on: other columns, shape or units.
    """
    if transform.columns:
        sources = {id(split.source): _with_columns(split, transform) for split in splits.values()}
        return {k: replace(v, source=sources[id(v.source)], transform=transform) for k, v in splits.items()}
    return {k: replace(v, transform=_fitting(v, transform, shape)) for k, v in splits.items()}


def _fitting(split: Split, transform: Transform, shape: tuple[int, ...]) -> Transform:
    """The model's transform, or the data's own where it gives the same from another layout. Raises UserError where none does."""
    if split.transform.columns:
        raise UserError(f"the data are a table; the model takes samples of shape {[*shape]}")
    made = next((t for t in (transform, split.transform) if _shape(split, t) == shape), None)
    if made is None:
        raise UserError(f"the data have samples of {split.source.row_type}, {[*split.shape]} to a model; this one takes {[*shape]}")
    if split.transform.scale != transform.scale and len(split):
        low, high = split.bounds()
        raise UserError(
            f"the data have values from {low:.4g} to {high:.4g}, to divide by {split.transform.scale:g}; the model was trained "
            f"on values divided by {transform.scale:g}: store them in the same units (arrays: --data.scale {transform.scale:g})"
        )
    return made


def _shape(split: Split, transform: Transform) -> tuple[int, ...] | None:
    try:
        return transform.shape(split.source.shape)
    except (RuntimeError, IndexError):  # a layout of other dimensions
        return None


def _with_columns(split: Split, transform: Transform) -> Source:
    """All rows of a table, with the columns that the model knows, by name and category."""
    theirs = {column.name: i for i, column in enumerate(split.transform.columns)}
    if absent := [c.name for c in transform.columns if c.name not in theirs]:
        have = ", ".join([*theirs][:20]) or f"samples of {split.source.row_type}"
        raise UserError(f"the data have no column {absent[0]!r} of the model; they have {have}")
    source = split.source
    assert isinstance(source, Tensors)
    columns = []
    for wanted in transform.columns:
        i = theirs[wanted.name]
        try:
            columns.append(_values(source.x[:, i], split.transform.columns[i], wanted))
        except UnknownValueError as error:
            raise UserError(f"{source.name_of(error.row)}, column {wanted.name!r}: {error}") from error
    return source.with_values(torch.stack(columns, 1))


class UnknownValueError(ValueError):
    """A value that the model was not trained on."""

    def __init__(self, row: int, text: str) -> None:
        super().__init__(text)
        self.row = row


def _values(x: Tensor, found: Scaled, wanted: Scaled) -> Tensor:
    """Stored values `[N]` of a column that was `found` as those of the model's. Raises UnknownValueError."""
    if found.kind == "numeric" == wanted.kind or found.categories == wanted.categories:
        return x
    code = {text: float(i) for i, text in enumerate(wanted.categories)}
    texts = found.categories or tuple(_text(v) for v in torch.unique(x[~x.isnan()]).tolist())
    stored = {float(i) if found.categories else float(text): text for i, text in enumerate(texts)}
    used = {k: text for k, text in stored.items() if bool((x == k).any())}
    try:
        value = {k: float(text) if wanted.kind == "numeric" else code[text] for k, text in used.items()}
    except (KeyError, ValueError) as error:
        k, odd = next((k, text) for k, text in used.items() if not _fits(text, wanted))
        valid = ", ".join(wanted.categories[:20]) or "numbers"
        row = int((x == k).nonzero()[0])
        raise UnknownValueError(row, f"{odd!r} is unknown to the model; it was trained on {valid}") from error
    made = torch.full_like(x, float("nan"))
    for k, v in value.items():
        made[x == k] = v
    return made


def _fits(text: str, wanted: Scaled) -> bool:
    if wanted.kind != "numeric":
        return text in wanted.categories
    try:
        return math.isfinite(float(text))
    except ValueError:
        return False


def _text(value: float) -> str:
    return str(int(value)) if value.is_integer() else repr(value)
