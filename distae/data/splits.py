"""Samples in memory and the splits of them."""

from dataclasses import dataclass

from torch import Tensor

from distae.noise import split_order


@dataclass(frozen=True)
class Arrays:
    """Samples as stored; `x * scale` is what the model sees."""

    x: Tensor
    """`[N, *shape]` uint8 or floating point."""
    label: Tensor | None
    """`[N]` int64."""
    scale: float = 1.0

    def take(self, rows: Tensor | slice) -> "Arrays":
        return Arrays(self.x[rows], None if self.label is None else self.label[rows], self.scale)

    def __len__(self) -> int:
        return len(self.x)


SPLIT_SEED = 0
"""Hold-outs do not change with --seed, so runs with other seeds are compared on the same samples."""


def hold_out(arrays: Arrays, fraction: float) -> tuple[Arrays, Arrays]:
    held = round(len(arrays) * fraction)
    order = split_order(len(arrays), SPLIT_SEED)
    return arrays.take(order[held:].sort().values), arrays.take(order[:held].sort().values)
