"""Batches on the device: from values that are resident there, or that worker threads read ahead."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Literal, TypeVar

import torch
from torch import Tensor

from distae.data.sampler import GlobalBatchSampler
from distae.data.splits import Split
from distae.data.storage import available_memory, streams
from distae.data.streaming import ReadAhead
from distae.noise import Noise

T = TypeVar("T")
COLD_READERS = 4
"""Minimum number of threads to read a file larger than the memory: they wait for the disk, not for a core."""


@dataclass(frozen=True)
class Reading:
    """How batches are read; their values do not depend on it."""

    storage: str = "auto"
    """As `--data.storage`: which values may be copied to the device."""
    workers: Literal["auto"] | int = 0
    """Threads that read ahead; 0: read when a batch is asked for."""
    prefetch: int = 4
    """Steps, or chunks of an evaluation, that are read ahead."""
    threads: int = 1
    """CPU threads of this process; `workers` auto starts at most this number, or COLD_READERS."""

    def workers_for(self, split: Split, device: torch.device) -> int:
        """Threads to read a split; auto: none if a read is a copy from memory and training is on the CPU: nothing to gain."""
        if split.device.type != "cpu":
            return 0
        if self.workers != "auto":
            return self.workers
        if streams(split.source):
            return self.threads
        if split.source.origin and split.nbytes > available_memory():
            return max(COLD_READERS, self.threads)
        return 0 if device.type == "cpu" else min(2, self.threads)


class Loader:
    """Maps row numbers of one split to batches of floating point values on the device."""

    def __init__(
        self, split: Split, binarize: str, device: torch.device, dtype: torch.dtype, channels_last: bool = False,
        reading: Reading = Reading(),
    ) -> None:  # fmt: skip
        on_device = device.type == "cuda" and reading.storage in ("auto", "resident") and not streams(split.source)
        self.split = split.to(device) if on_device and _fits(split, device) else split
        self.prefetch, self.workers = reading.prefetch, reading.workers_for(self.split, device)
        self.reader = ReadAhead(self.split, self.workers, device.type == "cuda")
        self.binarize, self.device, self.dtype = binarize, device, dtype
        images = channels_last and len(split.shape) == 3
        self.memory_format = torch.channels_last if images else torch.contiguous_format

    def __len__(self) -> int:
        return len(self.split)

    @property
    def storage_device(self) -> torch.device:
        """Where the stored values are, and row numbers must be."""
        return self.split.device

    def batch(self, rows: Tensor, noise: Noise, training: bool = False) -> tuple[Tensor, Tensor | None]:
        """Samples `[B, *shape]` and labels `[B]` of the rows `[B]` (int64, on `storage_device`); `training` augments them."""
        stored, label = self.reader.take(rows)
        if self.split.bad:
            self.split.bad.meet(self.split.rows_at(rows))
        stored, transform = self._to_device(stored), self.split.transform
        if training and self.split.augment:
            cut = self.split.augment.apply(transform.in_layout(stored), noise)
            x = transform.rescale(cut, self.dtype, self.memory_format)
        else:
            x = transform.apply(stored, self.dtype, self.memory_format)
        if self.binarize == "threshold":
            x = (x > 0.5).to(self.dtype)
        elif self.binarize == "stochastic":
            x = noise.bernoulli(x)
        return x, None if label is None else self._to_device(label)

    def unreadable(self, rows: Tensor) -> Tensor | None:
        """`[B]` bool on the device, which rows of the last `batch` were substituted; None if no row is known to be bad."""
        bad = self.split.bad.among(self.split.rows_at(rows)) if self.split.bad else None
        return None if bad is None else bad.to(self.device)

    def ahead(self, items: Iterable[T], rows_of: Callable[[T], Iterable[Tensor]]) -> Iterator[T]:
        """The same items, while worker threads read the rows of the next `prefetch` of them for `batch`."""
        if not self.workers:
            yield from items
            return
        coming: deque[T] = deque()
        try:
            for item in items:
                coming.append(item)
                for rows in rows_of(item):
                    self.reader.expect(rows)
                if len(coming) > self.prefetch:
                    yield coming[0]
                    coming.popleft()
            while coming:
                yield coming[0]
                coming.popleft()
        finally:
            for item in coming:
                for rows in rows_of(item):
                    self.reader.forget(rows)

    def close(self) -> None:
        """End the worker threads, if there are any."""
        self.reader.close()

    @property
    def where(self) -> str:
        """Where the values are, as shown in the log."""
        source, by = self.split.source, f", {self.workers} worker thread{'s' * (self.workers > 1)}" if self.workers else ""
        if self.split.device.type != "cpu":
            return "resident on the GPU"
        if streams(source):
            return f"streamed{by}"
        return (f"mapped from {source.origin}" if source.origin else "resident in memory") + by

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
