"""Decoded samples in a file of this node's cache, which all processes map: decoded once, for this run and later ones."""

import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
import xxhash
from filelock import FileLock
from torch import Tensor

from distae.data.mapped import tensor_of
from distae.data.runs import Rows
from distae.data.source import KnownFeatures, Tensors
from distae.data.splits import Split
from distae.runtime.cache import cache_folder, make_room

MOST_BYTES = 50 << 30
"""Maximum bytes of all decoded sets on a node; the least recently used are deleted."""


class DecodedCopy(Tensors):
    """The samples of a split, decoded. Names of rows, units and identity are those of the original."""

    def __init__(self, x: Tensor, split: Split, path: Path) -> None:
        super().__init__(x, split.label, f"the decoded copy {path}")
        self.split, self.units = split, split.units
        self.classes, self.left_out = split.source.classes, split.source.left_out
        self.features = _OfSplit(split, split.source.features) if split.source.features else None
        self.columns = {k: v if split.rows is None else v[split.rows] for k, v in split.source.columns.items()}

    def name_of(self, row: int) -> str:
        rows = self.split.rows
        return self.split.source.name_of(row if rows is None else int(rows[torch.tensor([row])]))

    def checksum(self, rows: Rows | None) -> str:
        return super().checksum(rows) if rows is not None else str(self.split.identity["values"])


class _OfSplit:
    """What the samples of a split were made of, by their positions in it."""

    def __init__(self, split: Split, features: KnownFeatures) -> None:
        self.split, self.features, self.vectors = split, features, features.vectors

    def activations(self, rows: Tensor) -> Tensor:
        return self.features.activations(self.split.rows_at(rows))


def decoded(split: Split, settings: str, workers: int) -> Split:
    """The same samples from a decoded copy on this node, made by `workers` threads if there is none.

    `settings` are those that decoding depends on. Raises OSError if it cannot be written, BadRowsError if a row cannot be read.
    """
    if not split.nbytes:
        return split
    folder = cache_folder("decoded")
    key = repr([settings, split.source.version, *(split.identity[k] for k in ("samples", "shape", "dtype", "values"))])
    path = folder / f"{xxhash.xxh3_128_hexdigest(key.encode())}.bin"
    with FileLock(f"{path}.lock"):
        if not path.exists() or path.stat().st_size != split.nbytes:
            make_room(folder, split.nbytes, MOST_BYTES)
            _write(split, path, workers)
        os.utime(path)
        x = _mapped(path, "r")[: split.nbytes]
    return replace(split, source=DecodedCopy(x.view(split.source.dtype).view(-1, *split.source.shape), split, path), rows=None)


def _write(split: Split, path: Path, workers: int) -> None:
    fresh = path.with_name(f".{path.name}.writing")
    try:
        with fresh.open("wb") as file:
            os.posix_fallocate(file.fileno(), 0, split.nbytes)  # a full disk is an error now, not a SIGBUS later
        values = _mapped(fresh, "r+").view(split.source.dtype).view(-1, *split.source.shape)

        def copy(positions: Tensor) -> None:
            values[positions[0] : positions[-1] + 1] = split.read(positions)[0]

        with ThreadPoolExecutor(workers, "distae-decode") as pool:
            for _ in pool.map(copy, (torch.arange(part.start, part.stop) for part in split.source.ranges(len(split)))):
                pass
        fresh.replace(path)
    finally:
        fresh.unlink(missing_ok=True)


def _mapped(path: Path, mode: str) -> Tensor:
    return tensor_of(np.memmap(path, np.uint8, mode))  # type: ignore[call-overload]
