"""Shared by data sets of images or arrays in columns (Parquet, Arrow): splits, the transform, and checks over all files."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from distae.config.data.columns import Column, ColumnsConfig, check_names
from distae.data.arrow import ColumnSource
from distae.data.augment import Augment
from distae.data.splits import Split, hold_out
from distae.data.transform import Transform
from distae.errors import UserError


def check_columns(cfg: ColumnsConfig, files: Sequence[str], schemas: Sequence[Any]) -> Column:
    """The column of samples of the first file. Raises UserError if another file lacks it, or has it with another type."""
    column = cfg.described(files[0])
    for file, schema in zip(files[1:], schemas[1:], strict=True):
        check_names(schema.names, file)
        if column.name not in schema.names:
            raise UserError(
                f"--data.column: {column.name!r} is in {files[0]}, not in {file}; it contains {', '.join(schema.names)}"
            )
        types = [s.field(column.name).type for s in (schemas[0], schema)]
        if types[0] != types[1]:
            raise UserError(f"--data.column: {column.name!r} is {types[0]} in {files[0]} and {types[1]} in {file}")
        labels = cfg.label_in(schemas[0], files[0]), cfg.label_in(schema, file)
        if labels[0] != labels[1]:
            raise UserError(f"--data.label: {files[0]} has {labels[0] or 'no labels'}, {file} {labels[1] or 'no labels'}")
    return column


def splits_of(cfg: ColumnsConfig, sources: Mapping[str, ColumnSource]) -> dict[str, Split]:
    """Splits from a source per split; missing splits are held out. Raises UserError if types, shapes or classes differ."""
    cfg.shape()
    train = sources["train"]
    for name, source in sources.items():
        if not len(source):
            raise UserError(f"--data.path: the {name} split of {cfg.path} has no rows")
        if (source.shape, source.dtype) != (train.shape, train.dtype):
            raise UserError(
                f"--data.path: samples of {name} are {source.row_type}, those of train {train.row_type}: give --data.size"
            )
        if train.classes and source.classes and source.classes != train.classes:
            raise UserError(f"--data.label: classes of {name} are {_few(source.classes)}, those of train {_few(train.classes)}")
    scale = (255.0 if train.dtype.itemsize == 1 else 1.0) if cfg.scale == "auto" else cfg.scale
    cut = cfg.size if train.column.kind == "image" and cfg.crop == "random" else 0
    transform = Transform(scale, cfg.stored_layout(train.column), crop=cut)
    splits = {name: Split(source, transform) for name, source in sources.items()}
    splits["train"] = Split(train, transform, notes=(_seen(cfg, train),))
    if "test" not in splits:
        splits["train"], splits["test"] = hold_out(splits["train"], cfg.test_fraction)
    if "val" not in splits:
        splits["train"], splits["val"] = hold_out(splits["train"], cfg.val_fraction)
    if cut or cfg.flip:  # of training samples alone, so that the splits are all made here
        splits["train"] = replace(splits["train"], augment=Augment(cut, cfg.flip))
    return splits


def _seen(cfg: ColumnsConfig, source: ColumnSource) -> str:
    what = f"images as {cfg.mode}" if source.column.kind == "image" else "arrays"
    labels = f", {len(source.classes) or int(source.label.max()) + 1} classes" if source.label is not None else ", no labels"
    units = f"{len(source.units)} {cfg.unit}"
    return f"--data {cfg.name}: {len(source)} {what} of {source.row_type} in column {source.column.name!r}, {units}{labels}"


def _few(names: Sequence[str]) -> str:
    return ", ".join(names[:10]) + (", …" if len(names) > 10 else "")
