"""Resident data: stored values on the device, batches by index, no per-sample Python."""

from collections.abc import Iterator
from dataclasses import replace

import torch
from torch import Tensor

from distae.data.sampler import GlobalBatchSampler
from distae.data.splits import Arrays
from distae.noise import Noise


class Loader:
    """Turns row numbers of one split into batches of floating point values on the device."""

    def __init__(
        self, arrays: Arrays, binarize: str, device: torch.device, dtype: torch.dtype, channels_last: bool = False
    ) -> None:
        if _fits(arrays.x, device):
            arrays = replace(arrays, x=arrays.x.to(device), label=None if arrays.label is None else arrays.label.to(device))
        self.arrays = arrays
        self.binarize, self.device, self.dtype = binarize, device, dtype
        images = channels_last and arrays.x.ndim == 4
        self.memory_format = torch.channels_last if images else torch.contiguous_format

    def __len__(self) -> int:
        return len(self.arrays)

    @property
    def storage_device(self) -> torch.device:
        """Where the stored values are, and row numbers are wanted."""
        return self.arrays.x.device

    def batch(self, rows: Tensor, noise: Noise) -> tuple[Tensor, Tensor | None]:
        """Samples `[B, *shape]` and labels `[B]` of the rows `[B]` (int64, on `storage_device`)."""
        x = self._to_device(self.arrays.x.index_select(0, rows)).to(self.dtype, memory_format=self.memory_format)
        if self.arrays.scale != 1:
            x *= self.arrays.scale
        if self.binarize == "threshold":
            x = (x > 0.5).to(self.dtype)
        elif self.binarize == "stochastic":
            x = noise.bernoulli(x)
        label = self.arrays.label
        return x, None if label is None else self._to_device(label.index_select(0, rows))

    def _to_device(self, x: Tensor) -> Tensor:
        """From where the data is; a copy from pinned memory does not make the host wait."""
        return x if x.device == self.device else x.pin_memory().to(self.device, non_blocking=True)


def steps(sampler: GlobalBatchSampler, first: int, storage_device: torch.device) -> Iterator[Tensor]:
    """Row numbers `[micro_steps, micro_batch]` of every step from `first` on, epoch after epoch, without end."""
    step = first
    while True:
        sampler.enter(step)
        for rows in sampler:
            yield rows.to(storage_device, non_blocking=True)
            step += 1


def _fits(x: Tensor, device: torch.device) -> bool:
    if device.type != "cuda":
        return True
    return x.nbytes < 0.5 * torch.cuda.mem_get_info(device)[0]
