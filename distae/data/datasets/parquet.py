"""Images or arrays in Parquet files: row groups as units, files of URLs through a cache on this node."""

import functools
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import torch
import xxhash
from torch import Tensor

from distae.config.data.columns import Column
from distae.config.data.parquet import ParquetConfig, read
from distae.config.data.remote import asked, is_url, may_pass, read_part, said, size_of
from distae.data.arrow import ColumnSource, labels_of
from distae.data.cache import FileCache, Prefetch
from distae.data.datasets.base import register_dataset
from distae.data.datasets.in_columns import check_columns, splits_of
from distae.data.splits import Split
from distae.data.stamps import stamp_of, why_changed

READERS = 8
"""Threads that read footers and samples of contents: they wait for disks and servers."""
BLOCK, BLOCKS = 1 << 20, 64
"""Bytes of a sampled block, and the number of blocks over all files: smaller sets are read whole for their checksum."""


@register_dataset(ParquetConfig)
def load(cfg: ParquetConfig) -> dict[str, Split]:
    return splits_of(cfg, {name: _source(cfg, files) for name, files in cfg.sets().items()})


def _source(cfg: ParquetConfig, files: Sequence[str]) -> "ParquetRows":
    import pyarrow.parquet as pq

    with ThreadPoolExecutor(READERS) as pool:
        footers = [*pool.map(lambda file: read(file, lambda source: pq.ParquetFile(source).metadata), files)]
        schemas = [footer.schema.to_arrow_schema() for footer in footers]
        column = check_columns(cfg, files, schemas)
        name = cfg.label_in(schemas[0], files[0])
        chunks = [*pool.map(lambda f: read(f, lambda s: pq.read_table(s, columns=[name]).column(0)), files)] if name else []
    label, classes = labels_of(cfg, [c for chunk in chunks for c in chunk.chunks], schemas[0], name) if name else (None, ())
    return ParquetRows(cfg, files, footers, column, label, classes)


class ParquetRows(ColumnSource):
    """A column of Parquet files."""

    def __init__(
        self, cfg: ParquetConfig, files: Sequence[str], footers: Sequence[Any], column: Column, label: Tensor | None,
        classes: tuple[str, ...],
    ) -> None:  # fmt: skip
        self.files, self.footers = files, footers
        self.where = [(i, group) for i, footer in enumerate(footers) for group in range(footer.num_row_groups)]
        super().__init__(cfg, column, [footers[i].row_group(group).num_rows for i, group in self.where], label, classes)
        self.stamps = {file: stamp_of(Path(file)) for file in files if not is_url(file)}
        self.cache = FileCache(int(cfg.cache_gb * 1e9))
        self.prefetch = Prefetch(self.cache, files)

    def read_unit(self, number: int) -> Any:
        import pyarrow as pa
        import pyarrow.parquet as pq

        self.prefetch.start()
        i, group = self.where[number]
        if (stamp := self.stamps.get(self.files[i])) and (why := why_changed(Path(self.files[i]), stamp)):
            raise OSError(why)
        try:
            with self.cache.fetch(self.files[i]).open("rb") as file:
                parquet = pq.ParquetFile(file, metadata=self.footers[i])
                column = parquet.read_row_group(group, columns=[self.column.name], use_threads=False).column(0)
        except (OSError, pa.ArrowException) as error:
            raise OSError(said(error)) from error
        except Exception as error:
            if may_pass(error):  # a file system's own error, after all tries
                raise OSError(said(error)) from error
            raise
        return column.combine_chunks() if column.num_chunks != 1 else column.chunk(0)

    def name_of(self, row: int) -> str:
        number = int(torch.searchsorted(self._ends, row, right=True))
        i, group = self.where[number]
        before = sum(self.footers[i].row_group(g).num_rows for g in range(group))
        return f"{self.files[i]} row {row - self.starts[number] + before}"

    @functools.cache  # noqa: B019 - a source lives as long as the run
    def digest(self) -> str:
        """Of all bytes of a small set; of a large one, of its footers, which hold sizes and bounds of columns, and of blocks."""
        sizes = [asked(file, partial(size_of, file)) for file in self.files]
        with ThreadPoolExecutor(READERS) as pool:
            parts = pool.map(lambda part: asked(part[0], partial(read_part, *part)), self._parts(sizes))
            digest = xxhash.xxh3_128()
            for part in parts:
                digest.update(part)
        return digest.hexdigest()

    def _parts(self, sizes: Sequence[int]) -> list[tuple[str, int, int]]:
        """File, start and end of each part that the checksum covers."""
        every = max(1, sum(sizes) // (BLOCK * BLOCKS))
        parts = []
        for file, footer, size in zip(self.files, self.footers, sizes, strict=True):
            if every > 1:
                parts.append((file, max(0, size - footer.serialized_size - 8), size))
            parts += [(file, start, min(start + BLOCK, size)) for start in range(0, size, BLOCK * every)]
        return parts
