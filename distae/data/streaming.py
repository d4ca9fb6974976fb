"""Worker threads that read the samples of coming batches."""

from concurrent.futures import Future, ThreadPoolExecutor
from itertools import pairwise

import torch
from torch import Tensor

from distae.data.splits import Split

PART_ROWS = 8
"""Minimum number of rows that a thread reads at once."""
Stored = tuple[Tensor, Tensor | None]
"""Stored samples `[B, *stored]` and labels `[B]`."""


class ReadAhead:
    """Reads samples of a split before they are asked for, each batch in parts by several threads.

    Samples depend on the positions alone, not on the number of threads. The threads start at the first `expect`, and end with
    `close`.
    """

    def __init__(self, split: Split, workers: int, pinned: bool) -> None:
        """`pinned`: read into pinned memory, from which a GPU copies asynchronously."""
        self.split, self.workers, self.pinned = split, workers, pinned
        self.pool: ThreadPoolExecutor | None = None
        self.coming: dict[bytes, _Batch] = {}

    def expect(self, positions: Tensor) -> None:
        """Start to read the samples at these positions `[B]`."""
        if self.pool is None:
            self.pool = ThreadPoolExecutor(self.workers, "distae-data", _use_one_thread)
        key = _key(positions)
        if key not in self.coming:
            self.coming[key] = _Batch(self.split, positions, self.workers, self.pinned, self.pool)

    def take(self, positions: Tensor) -> Stored:
        """The samples at these positions: waits for them, or reads them in this thread if they were not expected.

        Raises what reading them raised.
        """
        batch = self.coming.pop(_key(positions), None) if self.coming else None
        return self.split.read(positions) if batch is None else batch.result()

    def forget(self, positions: Tensor) -> None:
        """Cancel reading these; does nothing if they were taken."""
        if batch := self.coming.pop(_key(positions), None):
            batch.cancel()

    def close(self) -> None:
        """End the threads, after the parts that they are reading. The next `expect` starts new ones."""
        pool, self.pool = self.pool, None
        self.coming.clear()
        if pool:
            pool.shutdown(cancel_futures=True)


class _Batch:
    """One batch that is being read."""

    def __init__(self, split: Split, positions: Tensor, workers: int, pinned: bool, pool: ThreadPoolExecutor) -> None:
        self.split, n = split, len(positions)
        parts = max(1, min(workers, n // PART_ROWS))
        self.samples = torch.empty((n, *split.source.shape), dtype=split.source.dtype, pin_memory=pinned)
        self.labels: list[Tensor | None] = [None] * parts
        ends = [n * part // parts for part in range(parts + 1)]
        self.futures: list[Future[None]] = [
            pool.submit(self._read, part, positions[start:end], self.samples[start:end])
            for part, (start, end) in enumerate(pairwise(ends))
        ]

    def _read(self, part: int, positions: Tensor, samples: Tensor) -> None:
        stored, self.labels[part] = self.split.read(positions)
        samples.copy_(stored)

    def result(self) -> Stored:
        for future in self.futures:
            future.result()
        labels = [label for label in self.labels if label is not None]
        return self.samples, torch.cat(labels) if labels else None

    def cancel(self) -> None:
        for future in self.futures:
            future.cancel()


def _key(positions: Tensor) -> bytes:
    return positions.numpy().tobytes()


def _use_one_thread() -> None:
    """The workers are the parallelism: torch's own threads under each of them would compete with the training step's."""
    torch.set_num_threads(1)
