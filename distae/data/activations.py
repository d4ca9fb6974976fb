"""What a network makes of samples, as samples of their own."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import xxhash
from torch import Tensor

from distae.config.plugin import function
from distae.data.runs import Rows
from distae.data.source import Source
from distae.data.splits import Split
from distae.data.transform import Transform
from distae.errors import UserError

OPTION = "--from-model"


class Activations(Source):
    """A function of the samples of another source, computed as they are read, on the CPU by any thread."""

    def __init__(self, source: Source, transform: Transform, of: Callable[[Tensor], Any], key: str) -> None:
        """`of` takes values `[B, *shape]` float32 as a model sees them, and returns `[B, ...]`; `key` identifies it."""
        self.source, self.transform, self.of, self.key = source, transform, of, key
        self.label, self.classes, self.left_out = source.label, source.classes, source.left_out
        first = self.read(torch.arange(1))
        self.shape, self.dtype = tuple(first.shape[1:]), first.dtype

    def __len__(self) -> int:
        return len(self.source)

    def name_of(self, row: int) -> str:
        return self.source.name_of(row)

    @torch.no_grad()
    def read(self, rows: Tensor) -> Tensor:
        """Raises UserError where the function does not return floating point numbers, as many for each sample."""
        made = self.of(self.transform.apply(self.source.read(rows), torch.float32))
        if not isinstance(made, Tensor) or made.ndim < 2 or len(made) != len(rows) or not made.is_floating_point():
            what = f"{made.dtype} {list(made.shape)}" if isinstance(made, Tensor) else type(made).__name__
            raise UserError(f"{OPTION}: the function gives {what} for {len(rows)} samples; expected floats [{len(rows)}, ...]")
        return made.cpu()

    def checksum(self, rows: Rows | None) -> str:
        """Of the samples and the function's file: the network is not run for it."""
        return xxhash.xxh3_128_hexdigest(f"{self.key} {self.source.checksum(rows)}".encode())


def activations(splits: dict[str, Split], text: str) -> dict[str, Split]:
    """The splits as the function FILE.py:FUNCTION makes them. Raises UserError."""
    of, file = function(text, OPTION), Path(text.rpartition(":")[0])
    key = f"{text.rpartition(':')[2]} {xxhash.xxh3_128_hexdigest(file.read_bytes())}"
    made: dict[int, Activations] = {}
    for split in splits.values():
        if id(split.source) not in made:
            made[id(split.source)] = Activations(split.source, split.transform, of, key)
    return {n: replace(s, source=made[id(s.source)], transform=Transform(), augment=None) for n, s in splits.items()}
