"""Settings of folders that Hugging Face's `save_to_disk` makes, and what is known from their heads."""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from distae.config.data.columns import ColumnsConfig
from distae.config.data.parquet import SPLITS
from distae.config.data.paths import expanded, hint
from distae.config.data.reading import read_json
from distae.config.extras import needs
from distae.errors import UserError

LARGEST = 64 << 20
"""Bytes of a state.json."""


@dataclass(frozen=True)
class _File:
    filename: str


@dataclass(frozen=True)
class _State:
    """The part of state.json that is used."""

    _data_files: list[_File]
    _indices_data_files: list[_File] | None = None
    _indices_files: list[_File] | None = None


@dataclass(frozen=True)
class _Splits:
    splits: list[str]


@dataclass(frozen=True, kw_only=True)
class HFConfig(ColumnsConfig):
    """A folder that Hugging Face's `save_to_disk` made, of one set or a dictionary of splits: images (bytes in the file) or lists
    of numbers, memory-mapped. Needs `pip install 'distae[data]'`, not the `datasets` package."""

    name: ClassVar[str] = "hf"
    unit: ClassVar[str] = "record batches"

    def sets(self) -> dict[str, list[str]]:
        needs("pyarrow", "data", "--data hf")
        found = self._splits(self.path, "--data.path")
        if self.test:
            test = self._splits(self.test, "--data.test")
            found["test"] = test.get("test", test["train"])
        return found

    def _splits(self, text: str, flag: str) -> dict[str, list[str]]:
        if not text:
            raise UserError(f"{flag}: --data hf needs a folder that save_to_disk made")
        folder = expanded(text, flag)
        if (folder / "dataset_dict.json").is_file():
            names = _json(folder / "dataset_dict.json", _Splits, flag).splits
            known = {SPLITS[name]: folder / name for name in names if name in SPLITS}
            if "train" not in known and len(names) != 1:
                raise UserError(f"{flag}: {folder} has the splits {', '.join(names)}: give {folder}/NAME of one")
            known = known if "train" in known else {"train": folder / names[0]}
            return {split: _files(path, flag) for split, path in known.items()}
        if (folder / "state.json").is_file():
            return {"train": _files(folder, flag)}
        where = "no such folder" if not folder.exists() else "save_to_disk made no such folder: it has no state.json"
        raise UserError(f"{flag}: {folder}: {where}{hint(folder, flag)}")

    def head(self, file: str) -> tuple[Any, Callable[[str], Any]]:
        return _head(file, Path(file).stat().st_mtime_ns)


def batches(file: str) -> tuple[Any, list[Any]]:
    """The schema and the record batches of an Arrow stream, memory-mapped. Raises UserError if it is damaged or truncated."""
    import pyarrow as pa

    try:
        with pa.memory_map(file) as source, pa.ipc.open_stream(source) as stream:
            return stream.schema, [*stream]
    except (OSError, pa.ArrowException) as error:
        raise UserError(f"--data.path: {file} is not a whole Arrow stream ({' '.join(str(error).split())})") from error


@functools.lru_cache(maxsize=64)
def _head(file: str, _stamp: int) -> tuple[Any, Callable[[str], Any]]:
    schema, found = batches(file)

    def first(column: str) -> Any:
        return next((batch.column(batch.schema.get_field_index(column))[0].as_py() for batch in found if batch.num_rows), None)

    return schema, first


def _files(folder: Path, flag: str) -> list[str]:
    """The Arrow files of a set in order."""
    state = _json(folder / "state.json", _State, flag)
    if state._indices_data_files or state._indices_files:
        raise UserError(f"{flag}: {folder} is a selection of rows: save it again, after flatten_indices()")
    files = [folder / file.filename for file in state._data_files]
    if any(Path(file.filename).name != file.filename for file in state._data_files):
        raise UserError(f"{flag}: {folder / 'state.json'} names files outside its folder")
    if absent := next((f for f in files if not f.is_file()), None):
        raise UserError(f"{flag}: {absent} is missing, and {folder / 'state.json'} names it")
    if not files:
        raise UserError(f"{flag}: {folder} has no rows")
    return [str(file) for file in files]


def _json(path: Path, kind: Any, flag: str) -> Any:
    try:
        return read_json(path, kind, LARGEST)
    except (OSError, ValueError) as error:
        raise UserError(f"{flag}: {path} is missing or damaged ({error})") from error
