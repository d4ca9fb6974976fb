"""Samples in memory and the splits of them."""

from dataclasses import dataclass
from functools import cached_property

import torch
import xxhash
from torch import Tensor

from distae.noise import split_order

Identity = dict[str, str | int | float | None]
"""What there is to compare with other data, by name."""


@dataclass(frozen=True)
class Arrays:
    """Samples as stored; `x * scale` is what the model sees."""

    x: Tensor
    """`[N, *shape]` uint8 or floating point."""
    label: Tensor | None
    """`[N]` int64."""
    scale: float = 1.0

    @cached_property
    def identity(self) -> Identity:
        """Number, shape, type and scale of the samples, checksums of all bytes."""
        return {
            "samples": len(self),
            "shape": "x".join(map(str, self.x.shape[1:])),
            "dtype": str(self.x.dtype).removeprefix("torch."),
            "scale": self.scale,
            "values": _checksum(self.x),
            "labels": None if self.label is None else _checksum(self.label),
        }

    def take(self, rows: Tensor | slice) -> "Arrays":
        return Arrays(self.x[rows], None if self.label is None else self.label[rows], self.scale)

    def __len__(self) -> int:
        return len(self.x)


def identity(splits: dict[str, Arrays]) -> Identity:
    """Of all splits, by names as `train.samples`. A copy elsewhere, of another time, is the same data."""
    return {f"{name}.{key}": value for name, split in splits.items() for key, value in split.identity.items()}


def _checksum(x: Tensor) -> str:
    """The xxh3 checksum of the bytes."""
    return xxhash.xxh3_128_hexdigest(x.contiguous().view(-1).view(torch.uint8).numpy().data)


SPLIT_SEED = 0
"""Hold-outs do not change with --seed, so runs with other seeds are compared on the same samples."""


def hold_out(arrays: Arrays, fraction: float) -> tuple[Arrays, Arrays]:
    held = round(len(arrays) * fraction)
    order = split_order(len(arrays), SPLIT_SEED)
    return arrays.take(order[held:].sort().values), arrays.take(order[:held].sort().values)
