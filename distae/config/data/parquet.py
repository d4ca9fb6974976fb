"""Settings of images or arrays in Parquet files, and what is known from their footers and first row."""

import functools
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, ClassVar

from distae.config.data.columns import ColumnsConfig
from distae.config.data.paths import SPLIT_NAMES
from distae.config.data.remote import asked, is_url, listed, opened
from distae.config.extras import needs
from distae.config.fields import Positive
from distae.errors import UserError

SPLITS = SPLIT_NAMES | {"testing": "test", "eval": "val"}
"""Splits by the first word of a file's name, or its folder's, as Hugging Face takes them."""


@dataclass(frozen=True, kw_only=True)
class ParquetConfig(ColumnsConfig):
    """Images or arrays in Parquet files, in the layout of Hugging Face's sets: a column of encoded images (bytes, or a struct of
    bytes and path) or of lists of numbers, and one of labels. Files, folders, globs, or URLs that fsspec reads (s3://, gs://,
    https://, hf://), which are kept in a cache on this node. Needs `pip install 'distae[data]'`."""

    name: ClassVar[str] = "parquet"
    unit: ClassVar[str] = "row groups"

    cache_gb: Positive = 50.0
    """Maximum gigabytes of files from URLs kept in this node's cache: the folder DISTAE_CACHE, or ~/.cache/distae."""

    def sets(self) -> dict[str, list[str]]:
        needs("pyarrow.parquet", "data", "--data parquet")
        if not self.path:
            raise UserError("--data.path: --data parquet needs Parquet files: a file, a folder, a glob or a URL")
        found: dict[str, list[str]] = {}
        files = listed(self.path, "--data.path", (".parquet",))
        named = [split_of(file) for file in files]
        for file, split in zip(files, named, strict=True):
            found.setdefault(split if split and "train" in named else "train", []).append(file)
        if self.test:
            found["test"] = listed(self.test, "--data.test", (".parquet",))
        return found

    def head(self, file: str) -> tuple[Any, Callable[[str], Any]]:
        return _head(file, None if is_url(file) else Path(file).stat().st_mtime_ns)


def split_of(file: str) -> str | None:
    """The split that the name of a file or its folder begins with, such as `train-00000-of-00002.parquet`."""
    path = PurePosixPath(file)
    words = (re.split(r"[-_.\d]", name.lower(), maxsplit=1)[0] for name in (path.name, path.parent.name))
    return next((SPLITS[word] for word in words if word in SPLITS), None)


@functools.lru_cache(maxsize=64)
def _head(file: str, _stamp: int | None) -> tuple[Any, Callable[[str], Any]]:
    """The schema, and what reads the first value of a column, each once."""
    import pyarrow.parquet as pq

    schema = read(file, pq.read_schema)

    @functools.cache
    def first(column: str) -> Any:
        def value(source: Any) -> Any:
            rows = pq.ParquetFile(source).iter_batches(batch_size=1, columns=[column])
            return next((batch.column(0)[0].as_py() for batch in rows if batch.num_rows), None)

        return read(file, value)

    return schema, first


def read(file: str, use: Callable[[Any], Any]) -> Any:
    """What `use` makes of an open file. Raises UserError if it is damaged, or cannot be read."""
    import pyarrow as pa

    def request() -> Any:
        with opened(file) as source:
            return use(source)

    try:
        return asked(file, request)
    except UserError as error:
        if isinstance(error.__cause__, pa.ArrowException | OSError) and "Parquet" in str(error):
            raise UserError(f"--data.path: {file} is not a whole Parquet file ({error.__cause__})") from error
        raise
