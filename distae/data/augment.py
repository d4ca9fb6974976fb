"""Random changes of training samples, batched on the device and keyed like all noise: the same at any world size."""

from dataclasses import dataclass

import torch
from torch import Tensor

from distae.noise import Noise


@dataclass(frozen=True)
class Augment:
    """Random crops and mirror images, of training samples only."""

    crop: int = 0
    """Side in pixels of randomly placed square crops; 0: no crop."""
    flip: bool = False
    """Whether a random half is mirrored left to right."""

    def apply(self, x: Tensor, noise: Noise) -> Tensor:
        """A changed copy of `[B, C, H, W]`: `[B, C, crop, crop]`, or the same size without `crop`."""
        drawn = noise.uniform(torch.empty((len(x), 3), device=x.device))
        height, width = (self.crop, self.crop) if self.crop else x.shape[2:]
        rows = _window(drawn[:, 0], x.shape[2], height)
        columns = _window(drawn[:, 1], x.shape[3], width)
        if self.flip:
            columns = torch.where(drawn[:, 2:] < 0.5, columns.flip(1), columns)
        cut = x.gather(2, rows[:, None, :, None].expand(-1, x.shape[1], -1, x.shape[3]))
        return cut.gather(3, columns[:, None, None, :].expand(-1, x.shape[1], height, -1))


def _window(uniform: Tensor, size: int, length: int) -> Tensor:
    """Indices `[B, length]` of windows of `length` at positions within `size`, which `uniform` `[B]` in [0, 1) determines."""
    start = (uniform * (size - length + 1)).long().clamp_max(size - length)
    return start[:, None] + torch.arange(length, device=uniform.device)
