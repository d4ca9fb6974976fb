"""Folders of Hugging Face's `save_to_disk`: Arrow streams, memory-mapped, record batches as units."""

import functools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
import xxhash
from torch import Tensor

from distae.config.data.columns import Column
from distae.config.data.hf import HFConfig, batches
from distae.data.arrow import ColumnSource, labels_of
from distae.data.datasets.base import register_dataset
from distae.data.datasets.in_columns import check_columns, splits_of
from distae.data.source import BLOCK_BYTES, WHOLE_BYTES, BadRowsError
from distae.data.splits import Split
from distae.data.stamps import stamp_of, why_changed
from distae.errors import UserError


@register_dataset(HFConfig)
def load(cfg: HFConfig) -> dict[str, Split]:
    return splits_of(cfg, {name: _source(cfg, files) for name, files in cfg.sets().items()})


def _source(cfg: HFConfig, files: Sequence[str]) -> "Batches":
    found = [batches(file) for file in files]
    column = check_columns(cfg, files, [schema for schema, _ in found])
    whole = [(i, batch) for i, (_, inside) in enumerate(found) for batch in inside if batch.num_rows]
    if not whole:
        raise UserError(f"--data.path: {files[0]} has no rows")
    schema = found[0][0]
    name = cfg.label_in(schema, files[0])
    label, classes = labels_of(cfg, [batch.column(name) for _, batch in whole], schema, name) if name else (None, ())
    return Batches(cfg, files, whole, column, label, classes)


class Batches(ColumnSource):
    """A column of Arrow streams."""

    def __init__(
        self, cfg: HFConfig, files: Sequence[str], found: Sequence[tuple[int, Any]], column: Column, label: Tensor | None,
        classes: tuple[str, ...],
    ) -> None:  # fmt: skip
        super().__init__(cfg, column, [batch.num_rows for _, batch in found], label, classes)
        self.files, self.stamps = files, [stamp_of(Path(file)) for file in files]
        self.found = [(i, batch.column(column.name)) for i, batch in found]

    def read_unit(self, number: int) -> Any:
        """Number of the file, and the batch's column where it is mapped: no copy."""
        return self.found[number]

    def decode(self, unit: Any, rows: Tensor) -> Tensor:
        """A unit that is kept is still mapped: its file is looked at just before each read."""
        i, column = unit
        if why := why_changed(Path(self.files[i]), self.stamps[i]):
            raise BadRowsError(dict.fromkeys(rows.tolist(), why))
        return super().decode(column, rows)

    def name_of(self, row: int) -> str:
        number = int(torch.searchsorted(self._ends, row, right=True))
        i = self.found[number][0]
        first = next(n for n, (of, _) in enumerate(self.found) if of == i)
        return f"{self.files[i]} row {row - self.starts[first]}"

    @functools.cache  # noqa: B019 - a source lives as long as the run
    def digest(self) -> str:
        """Of all bytes of the files; of sampled blocks, if they are large."""
        digest = xxhash.xxh3_128()
        for block in self._blocks():
            digest.update(block)
        return digest.hexdigest()

    def _blocks(self) -> Iterator[bytes]:
        every = max(1, sum(size for size, _ in self.stamps) // WHOLE_BYTES)
        for name, (size, _) in zip(self.files, self.stamps, strict=True):
            with Path(name).open("rb") as file:
                for start in range(0, size, BLOCK_BYTES * every):
                    file.seek(start)
                    yield file.read(BLOCK_BYTES)
