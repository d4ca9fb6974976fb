"""A made-up data set in units, each in a file of its own, like row groups and shards."""

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from distae.config.data import DataConfig
from distae.data import Split, Transform, UnitSource, hold_out, register_dataset
from distae.data.source import BadRowsError


@dataclass(frozen=True, kw_only=True)
class InUnitsConfig(DataConfig):
    """Images 8x8 in files of some."""

    name: ClassVar[str] = "in_units"
    path: str = ""
    """Folder of the files."""

    def shape(self) -> tuple[int, ...]:
        return (1, 8, 8)


class InUnits(UnitSource):
    """Row n is in its file as n-th. What is above 250 counts as unreadable."""

    shape, dtype, decodes = (8, 8), torch.uint8, True

    def __init__(self, folder: Path) -> None:
        self.paths = sorted(folder.glob("*.npy"))
        self.units = torch.tensor([len(np.load(path, mmap_mode="r")) for path in self.paths])
        self.label = torch.arange(len(self)) % 10
        self.opened: list[int] = []

    def read_unit(self, number: int) -> Tensor:
        self.opened.append(number)
        return torch.from_numpy(np.load(self.paths[number]))

    def decode(self, unit: Tensor, rows: Tensor) -> Tensor:
        samples = unit[rows]
        if bad := {row: f"row {row} of a file is bad" for row, x in zip(rows.tolist(), samples, strict=True) if x.min() > 250}:
            raise BadRowsError(bad)
        return samples


def write_units(folder: Path, x: np.ndarray, sizes: list[int]) -> Path:
    """The rows of `x` in files of `sizes`."""
    folder.mkdir()
    ends = np.cumsum(sizes)
    for number, (end, size) in enumerate(zip(ends, sizes, strict=True)):
        np.save(folder / f"{number:04}.npy", x[end - size : end])
    return folder


@register_dataset(InUnitsConfig)
def load(cfg: InUnitsConfig) -> tuple[Split, Split]:
    return hold_out(Split(InUnits(Path(cfg.path)), Transform(255.0, "no_channel")), 0.1)
