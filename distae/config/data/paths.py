"""Files that a setting names, and what kind of data a path looks like. No torch."""

import contextlib
import glob
import zipfile
from collections.abc import Iterable
from itertools import islice
from pathlib import Path

from distae.config.data.base import DataConfig
from distae.errors import UserError

MANIFEST = "manifest.json"
"""What `distae prepare` leaves in its folder."""
ARRAYS = (".npy", ".npz", ".safetensors")
IMAGES = (
    ".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm", ".pbm", ".pnm", ".jp2", ".avif",
    ".ico", ".tga",
)  # fmt: skip
TABLES = (".csv", ".tsv", ".arrow", ".feather", ".parquet")
KINDS = dict.fromkeys(ARRAYS, "array") | dict.fromkeys(IMAGES, "image_folder") | {
    ".csv": "table", ".tsv": "table", ".tab": "table", ".arrow": "table", ".feather": "table",
    ".h5ad": "sparse", ".inter": "sparse",
}  # fmt: skip
"""Kind of data by suffix; .parquet and .npz are looked into."""
SPLIT_NAMES = {
    "train": "train", "training": "train", "val": "val", "valid": "val", "validation": "val", "dev": "val", "test": "test",
}  # fmt: skip
"""What a split may be called, in any case."""
LOOKED_AT = 1000
"""Entries of a folder that are looked at to tell its kind."""


def files_of(text: str, setting: str, suffixes: tuple[str, ...]) -> list[Path]:
    """The files of `a.npy`, `a.npy,b.npy`, `shards/*.npy` or a folder, each sorted by name.

    Raises UserError if there are none, or a folder holds no file with one of the suffixes.
    """
    found: list[Path] = []
    for part in [text] if Path(text).exists() else filter(None, text.split(",")):
        path = expanded(part, setting)
        if path.is_dir():
            inside = sorted(p for p in path.iterdir() if p.suffix.lower() in suffixes)
            if not inside:
                raise UserError(f"{setting}: {path} is a folder without {_either(suffixes)} files{hint(path, setting)}")
            found += inside
        elif path.exists() or not glob.has_magic(part):
            found.append(path)
        else:
            matching = sorted(map(Path, glob.glob(str(path), recursive=True)))  # noqa: PTH207 - Path.glob takes no absolute pattern
            if not matching:
                raise UserError(f"{setting}: no file matches {path}")
            found += matching
    if absent := next((p for p in found if not p.is_file()), None):
        raise UserError(f"{setting}: no file {absent}")
    return found


def expanded(text: str, setting: str) -> Path:
    """The path with `~` expanded. Raises UserError."""
    try:
        return Path(text).expanduser()
    except RuntimeError as error:
        raise UserError(f"{setting}: {text} names the home folder of an unknown user") from error


def hint(path: Path, setting: str = "--data.path") -> str:
    """The `--data` that reads a path, as the end of an error message; empty if it looks like none."""
    kind = kind_of(path)
    return f"; read it with --data {kind} {setting} {path}" if kind else ""


def kind_of(path: Path) -> str | None:
    """The name of the `--data` that a file or a folder looks like; None if it looks like none that is known here."""
    try:
        kind = _kind_of_folder(path) if path.is_dir() else _kind_of_file(path)
    except OSError:
        kind = _kind_by_name(path)
    return kind if kind in DataConfig.choices() else None


def _kind_of_folder(path: Path) -> str | None:
    if (path / MANIFEST).is_file():
        return "array"
    if (path / "state.json").is_file() or (path / "dataset_dict.json").is_file():
        return "hf"
    files = islice((p for p in path.rglob("*") if not p.is_dir()), LOOKED_AT)
    kinds = [kind for kind in (_kind_by_name(p) for p in files) if kind]
    return max(kinds, key=kinds.count) if kinds else None


def _kind_of_file(path: Path) -> str | None:
    kind = _kind_by_name(path)
    if path.suffix.lower() == ".npz" and {"indptr.npy", "indices.npy"} <= _members(path):
        return "sparse"
    return "table" if kind == "parquet" and not _has_samples(path) else kind


def _kind_by_name(path: Path) -> str | None:
    return "parquet" if path.suffix.lower() == ".parquet" else KINDS.get(path.suffix.lower())


def _members(path: Path) -> set[str]:
    try:
        with zipfile.ZipFile(path) as archive:
            return set(archive.namelist())
    except (zipfile.BadZipFile, ValueError):
        return set()


def _has_samples(path: Path) -> bool:
    """Whether a Parquet file has a column of images or arrays: something other than one value per row."""
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError:
        return True
    with contextlib.suppress(pa.ArrowException):
        return any(
            pa.types.is_nested(t) or pa.types.is_binary(t) or pa.types.is_large_binary(t) for t in pq.read_schema(path).types
        )
    return True


def _either(words: Iterable[str]) -> str:
    *first, last = words
    return f"{', '.join(first)} or {last}" if first else last
