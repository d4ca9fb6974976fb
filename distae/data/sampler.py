"""Which samples are in which batch, on which rank: a pure function of (seed, epoch)."""

from collections.abc import Iterator
from typing import Protocol

import torch
from torch import Tensor
from torch.utils.data import DistributedSampler

from distae.config import TrainConfig
from distae.data.splits import TABLE_ROWS, Split
from distae.data.windowed import WindowedOrder
from distae.errors import UserError
from distae.noise import KeyedPermutation, split_order

AHEAD = 64
"""Steps whose rows are computed at once."""
WINDOWED_BYTES = 256 << 20
"""With --data.shuffle auto, smaller training splits are shuffled in full. A constant: the order must not depend on the machine."""


class Order(Protocol):
    """Which sample is in which slot of which global batch of an epoch."""

    def rows(self, epoch: int, steps: range, slots: range) -> Tensor:
        """Positions in the split `[steps, slots]` int64, of these consecutive steps and slots of a global batch."""
        ...

    def units_in_use(self, slots: range) -> int:
        """Number of recently used units to keep for these slots."""
        ...


class FullOrder:
    """The order of torch's DistributedSampler: one permutation of all samples per epoch, stored as a table."""

    def __init__(self, n: int, batch: int, seed: int) -> None:
        self.n, self.batch, self.seed = n, batch, seed
        self.epoch, self.order = -1, torch.empty(0)

    def rows(self, epoch: int, steps: range, slots: range) -> Tensor:
        if epoch != self.epoch:
            self.epoch, self.order = epoch, split_order(self.n, self.seed + epoch)
        wanted = self.order[steps.start * self.batch : steps.stop * self.batch].view(len(steps), self.batch)
        return wanted[:, slots.start : slots.stop]

    def units_in_use(self, slots: range) -> int:
        return 0


class KeyedOrder:
    """One permutation of all samples per epoch, computed only for the rows that are asked for."""

    def __init__(self, n: int, batch: int, seed: int) -> None:
        self.n, self.batch, self.seed = n, batch, seed

    def rows(self, epoch: int, steps: range, slots: range) -> Tensor:
        at = torch.arange(steps.start, steps.stop)[:, None] * self.batch + torch.arange(slots.start, slots.stop)
        return KeyedPermutation(self.n, (self.seed, "order", epoch))(at)

    def units_in_use(self, slots: range) -> int:
        return 0


class GlobalBatchSampler(DistributedSampler[Tensor]):
    """torch's DistributedSampler with drop_last in whole global batches, as tensors of this rank's row numbers; any order.

    The tail of an epoch that does not fill a global batch is dropped (a different one each epoch). Global batch g of an epoch is
    the same set of samples at every world size; of each of its micro-batches, rank r takes the r-th of world_size equal parts.
    """

    def __init__(
        self, n: int, global_batch_size: int, rank: int, world_size: int, micro_steps: int, seed: int, order: Order | None = None
    ) -> None:
        """`n` samples, at least one global batch of them; `global_batch_size` divides by world_size * micro_steps."""
        assert n >= global_batch_size
        assert global_batch_size % (world_size * micro_steps) == 0
        super().__init__(range(n), world_size, rank, shuffle=True, seed=seed, drop_last=True)  # type: ignore[arg-type]
        self.order = order or full_order(n, global_batch_size, seed)
        self.steps_per_epoch = n // global_batch_size
        micro = global_batch_size // micro_steps
        share = micro // world_size
        self.slots = [range(start, start + share) for start in range(rank * share, global_batch_size, micro)]
        self.first_step = 0

    def enter(self, step: int) -> None:
        """Go to optimizer step `step` of the run."""
        epoch, self.first_step = divmod(step, self.steps_per_epoch)
        self.set_epoch(epoch)

    def __iter__(self) -> Iterator[Tensor]:
        """One `[micro_steps, micro_batch]` int64 tensor per step left in the epoch."""
        for first in range(self.first_step, self.steps_per_epoch, AHEAD):
            steps = range(first, min(first + AHEAD, self.steps_per_epoch))
            yield from torch.stack([self.order.rows(self.epoch, steps, slots) for slots in self.slots], 1)

    def __len__(self) -> int:
        return self.steps_per_epoch

    @property
    def units_in_use(self) -> int:
        """Number of recently used units of the source that this rank should keep."""
        return sum(self.order.units_in_use(slots) for slots in self.slots)


def full_order(n: int, batch: int, seed: int) -> Order:
    """A shuffle of all samples; above TABLE_ROWS without a table."""
    return (FullOrder if n <= TABLE_ROWS else KeyedOrder)(n, batch, seed)


def order_of(cfg: TrainConfig, split: Split) -> Order:
    """The order of the training split by `--data.shuffle`. Raises UserError if that is windowed, and the source has no units."""
    units = None if cfg.data.shuffle == "full" else split.units
    if cfg.data.shuffle == "windowed" and units is None:
        raise UserError(
            f"--data.shuffle windowed: --data {cfg.data.name} is read row by row and has no units to shuffle; valid: auto, full"
        )
    if units is None or (cfg.data.shuffle == "auto" and split.nbytes < WINDOWED_BYTES):
        return full_order(len(split), cfg.global_batch_size, cfg.seed)
    return WindowedOrder(units, cfg.global_batch_size, cfg.seed, cfg.data.window)
