"""Sums of a log window's terms, on the device: nothing is read until a row is written."""

from dataclasses import dataclass

import torch
from torch import Tensor

from distae import distributed as dist
from distae.models import Output


@dataclass(frozen=True)
class AccumulatorState:
    """A log window as it is stored in a checkpoint."""

    names: list[str]
    sums: list[list[float]]
    """For each rank, one per name."""
    steps: int

    def __post_init__(self) -> None:
        if any(len(of_rank) != len(self.names) for of_rank in self.sums):
            raise ValueError("a rank's sums are not one per name")


class MetricAccumulator:
    """Sums of the terms since the last log, on the device, and how many steps passed before the first non-finite one."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.names: list[str] = []
        self.clear()

    def clear(self) -> None:
        self.steps = 0
        self.open: dict[tuple[str, ...], Tensor] = {}
        self.sums = torch.zeros(len(self.names), dtype=torch.float64, device=self.device)
        self.good = torch.ones((), device=self.device)
        self.good_steps = torch.zeros((), device=self.device)

    def add(self, out: Output) -> None:
        """Add the terms of one micro-step of one phase."""
        names = (*out.per_sample, *out.per_batch)
        values = torch.stack([*out.per_sample.values()]).mean(1)
        if out.per_batch:
            values = torch.cat([values, torch.stack([*out.per_batch.values()]).to(values.dtype)])
        self.open[names] = self.open[names] + values if names in self.open else values

    def close_step(self, finite: Tensor, micro_steps: int) -> None:
        """End an optimizer step; `finite` is a scalar, false if one of its updates was masked."""
        if not self.names:
            self.names = [name for names in self.open for name in names]
            self.sums = self.sums.new_zeros(len(self.names))
        phases = [*self.open.values()]
        values = phases[0] if len(phases) == 1 else torch.cat(phases)
        self.sums += values if micro_steps == 1 else values / micro_steps
        self.open = {}
        self.good *= finite
        self.good_steps += self.good
        self.steps += 1

    def state(self) -> AccumulatorState:
        """State accepted by `load`. Collective: called on all ranks together."""
        return AccumulatorState(self.names, dist.gather(self.sums.tolist()), self.steps)

    def load(self, state: AccumulatorState) -> None:
        """Continue a window that was open at a save; all its steps were finite, or it would not have been saved.

        Each rank gets its own sums back, bit for bit; on another number of ranks rank 0 gets them all.
        """
        self.names = state.names
        self.clear()
        self.steps = state.steps
        self.good_steps += self.steps
        world, sums = dist.world(), torch.tensor(state.sums, dtype=self.sums.dtype, device=self.device)
        if len(sums) == world.world_size:
            self.sums += sums[world.rank]
        elif world.is_main:
            # read() divides by the current number of ranks; these are sums over the earlier number
            self.sums += sums.sum(0) * (world.world_size / len(sums))

    def read(self) -> tuple[dict[str, float], int | None]:
        """Means over the window and all ranks, and the number (from 1) of the first masked step in it. Synchronises."""
        sums = dist.all_reduce_(self.sums.clone()) / max(1, self.steps * dist.world().world_size)
        *means, good, good_steps = torch.cat([sums, torch.stack([self.good, self.good_steps])]).tolist()
        return dict(zip(self.names, means, strict=True)), None if good else int(good_steps) + 1
