"""A data set of your own: --plugin examples/my_dataset.py --data bars."""

from dataclasses import dataclass
from typing import ClassVar

import torch

from distae.config.data import DataConfig
from distae.config.fields import Count
from distae.data import Split, Transform, hold_out, register_dataset


@dataclass(frozen=True, kw_only=True)
class BarsConfig(DataConfig):
    """All images of horizontal and vertical bars (Foldiak 1990), made on the spot."""

    name: ClassVar[str] = "bars"
    size: Count = 5
    """Pixels a side."""

    def shape(self):  # known without reading the data: checks come before torch is imported
        return (1, self.size, self.size)


@register_dataset(BarsConfig)
def bars(cfg):
    """Training and test samples: bytes as they are stored, and the number that they are divided by."""
    bits = torch.arange(4**cfg.size)[:, None] >> torch.arange(2 * cfg.size) & 1  # which bars each image has
    across, down = bits.to(torch.uint8).chunk(2, dim=1)
    images = (across[:, None, :, None] | down[:, None, None, :]) * 255
    return hold_out(Split.of(images, None, Transform(255.0)), 0.2)
