"""Resident data: stored values on the device, batches by index, no per-sample Python."""

from collections.abc import Iterator
from dataclasses import replace

import torch
from torch import Tensor

from distae.data.sampler import GlobalBatchSampler
from distae.data.sets import Arrays
from distae.noise import Noise


class Loader:
    """Turns row numbers of one split into batches of floating point values on the device."""

    def __init__(
        self, arrays: Arrays, binarize: str, device: torch.device, dtype: torch.dtype, channels_last: bool = False
    ) -> None:
        self.arrays = replace(arrays, x=arrays.x.to(device)) if _fits(arrays.x, device) else arrays
        self.binarize, self.device, self.dtype = binarize, device, dtype
        images = channels_last and arrays.x.ndim == 4
        self.memory_format = torch.channels_last if images else torch.contiguous_format

    def __len__(self) -> int:
        return len(self.arrays)

    @property
    def home(self) -> torch.device:
        """Where the stored values are, and row numbers are wanted."""
        return self.arrays.x.device

    def batch(self, rows: Tensor, noise: Noise) -> tuple[Tensor, Tensor | None]:
        """Samples `[B, *shape]` and labels `[B]` of the rows `[B]` (int64, on `home`)."""
        stored = self.arrays.x.index_select(0, rows).to(self.device, non_blocking=True)
        x = stored.to(self.dtype, memory_format=self.memory_format)
        if self.arrays.scale != 1:
            x *= self.arrays.scale
        if self.binarize == "threshold":
            x = (x > 0.5).to(self.dtype)
        elif self.binarize == "stochastic":
            x = noise.bernoulli(x)
        label = self.arrays.label
        return x, None if label is None else label[rows.to(label.device)].to(self.device, non_blocking=True)


def steps(sampler: GlobalBatchSampler, first: int, home: torch.device) -> Iterator[Tensor]:
    """Row numbers `[micro_steps, micro_batch]` of every step from `first` on, epoch after epoch, without end."""
    step = first
    while True:
        sampler.enter(step)
        for rows in sampler:
            yield rows.to(home, non_blocking=True)
            step += 1


def _fits(x: Tensor, device: torch.device) -> bool:
    if device.type != "cuda":
        return True
    return x.nbytes < 0.5 * torch.cuda.mem_get_info(device)[0]
