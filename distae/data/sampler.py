"""Which samples are in which batch, on which rank: a pure function of (seed, epoch)."""

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.utils.data import DistributedSampler


class GlobalBatchSampler(DistributedSampler[Tensor]):
    """torch's DistributedSampler order with drop_last, in whole global batches, as index tensors.

    The tail of an epoch that does not fill a global batch is dropped (a different one each epoch). Global batch g of an epoch is
    the same set of samples at every world size; of each of its micro-batches, rank r takes the r-th of world_size equal parts.
    """

    def __init__(self, n: int, global_batch_size: int, rank: int, world_size: int, micro_steps: int, seed: int) -> None:
        """`n` samples, at least one global batch of them; `global_batch_size` divides by world_size * micro_steps."""
        assert n >= global_batch_size
        assert global_batch_size % (world_size * micro_steps) == 0
        super().__init__(range(n), world_size, rank, shuffle=True, seed=seed, drop_last=True)  # type: ignore[arg-type]
        self.global_batch_size, self.micro_steps = global_batch_size, micro_steps
        self.steps_per_epoch = n // global_batch_size
        self.first_step = 0

    def enter(self, step: int) -> None:
        """Go to optimizer step `step` of the run."""
        epoch, self.first_step = divmod(step, self.steps_per_epoch)
        self.set_epoch(epoch)

    def __iter__(self) -> Iterator[Tensor]:
        """One `[micro_steps, micro_batch]` int64 tensor per step left in the epoch."""
        generator = torch.Generator().manual_seed(self.seed + self.epoch)
        order = torch.randperm(len(self.dataset), generator=generator)  # type: ignore[arg-type]
        whole = order[: self.steps_per_epoch * self.global_batch_size].view(self.steps_per_epoch, -1)
        yield from whole.view(len(whole), self.micro_steps, self.num_replicas, -1)[self.first_step :, :, self.rank]

    def __len__(self) -> int:
        return self.steps_per_epoch
