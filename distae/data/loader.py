"""Resident data: stored values on the device, batches by index, no per-sample Python."""

from collections.abc import Iterator

import torch
from torch import Tensor

from distae.data.sampler import GlobalBatchSampler
from distae.data.splits import Split
from distae.noise import Noise


class Loader:
    """Maps row numbers of one split to batches of floating point values on the device."""

    def __init__(self, split: Split, binarize: str, device: torch.device, dtype: torch.dtype, channels_last: bool = False) -> None:
        self.split = split.to(device) if device.type == "cuda" and _fits(split, device) else split
        self.binarize, self.device, self.dtype = binarize, device, dtype
        images = channels_last and len(split.shape) == 3
        self.memory_format = torch.channels_last if images else torch.contiguous_format

    def __len__(self) -> int:
        return len(self.split)

    @property
    def storage_device(self) -> torch.device:
        """Where the stored values are, and row numbers must be."""
        return self.split.device

    def batch(self, rows: Tensor, noise: Noise) -> tuple[Tensor, Tensor | None]:
        """Samples `[B, *shape]` and labels `[B]` of the rows `[B]` (int64, on `storage_device`)."""
        stored, label = self.split.read(rows)
        x = self.split.transform.apply(self._to_device(stored), self.dtype, self.memory_format)
        if self.binarize == "threshold":
            x = (x > 0.5).to(self.dtype)
        elif self.binarize == "stochastic":
            x = noise.bernoulli(x)
        return x, None if label is None else self._to_device(label)

    def _to_device(self, x: Tensor) -> Tensor:
        """Copy to the device; from pinned memory the host does not wait."""
        return x if x.device == self.device else x.pin_memory().to(self.device, non_blocking=True)


def steps(sampler: GlobalBatchSampler, first: int, storage_device: torch.device) -> Iterator[Tensor]:
    """Row numbers `[micro_steps, micro_batch]` of every step from `first` on, epoch after epoch, without end."""
    step = first
    while True:
        sampler.enter(step)
        for rows in sampler:
            yield rows.to(storage_device, non_blocking=True)
            step += 1


def _fits(split: Split, device: torch.device) -> bool:
    return split.nbytes < 0.5 * torch.cuda.mem_get_info(device)[0]
