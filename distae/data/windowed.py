"""A shuffle for samples that are read in units, such as row groups: close to a full shuffle, but each unit is read once.

The units of the split, in a new random order each epoch, form one stream of rows. The part of it that fills whole global batches is
cut into equal lanes, and lane i fills the i-th of as many equal parts of every global batch; inside a lane, rows are shuffled
within windows of a few units' rows. The number of lanes follows from the settings and the units alone, so the batches are the same
at every world size; a rank whose share of a batch is whole lanes reads the units of those and no others.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

from distae.noise import keyed_order

MOST_LANES = 128
"""Maximum number of lanes: a process that trains alone keeps a window of units for each of them."""
UNITS_PER_LANE = 4
"""Minimum number of units of a lane, of which it may share the first and the last with its neighbours."""


class WindowedOrder:
    """Which sample is in which slot of which global batch of an epoch, as a function of (seed, epoch, units, window, batch).

    Memory is that of the units and the windows; any step can be entered without the steps before it.
    """

    def __init__(self, units: Tensor, batch: int, seed: int, window: int) -> None:
        """`units` `[U]` int64 are numbers of samples, all at least 1; `window` is in units."""
        self.units, self.seed, self.units_per_window, n = units, seed, window, int(units.sum())
        self.lanes = lanes_of(batch, len(units))
        self.width = batch // self.lanes
        """Slots of a lane in a global batch."""
        self.length = n // batch * self.width
        """Rows of a lane in an epoch."""
        windows = max(1, self.length * len(units) // (n * window))
        self.window = -(-self.length // windows)
        """Rows of a window."""
        self.epoch = -1
        self.ends = self.offsets = torch.empty(0)
        self.kept: dict[int, tuple[int, Tensor]] = {}
        """The newest window of each lane, and its rows."""

    def rows(self, epoch: int, steps: range, slots: range) -> Tensor:
        """Positions in the split `[steps, slots]` int64, of these consecutive steps and slots of a global batch."""
        if epoch != self.epoch:
            self._enter(epoch)
        width, found = self.width, []
        for lane in range(slots.start // width, -(-slots.stop // width)):
            of_lane = torch.cat([*self._of_lane(lane, steps.start * width, steps.stop * width)]).view(len(steps), width)
            found.append(of_lane[:, max(0, slots.start - lane * width) : slots.stop - lane * width])
        return torch.cat(found, 1)

    def units_in_use(self, slots: range) -> int:
        """Number of recently used units to keep, so that each is read once for these slots (measured: 1.00 to 1.01 times)."""
        lanes = -(-slots.stop // self.width) - slots.start // self.width
        return lanes * (-(-3 * self.units_per_window // 2) + 2)

    def _enter(self, epoch: int) -> None:
        """Put the units in the order of the epoch."""
        order = keyed_order(len(self.units), self.seed, "units", epoch)
        sizes = self.units[order]
        self.ends = sizes.cumsum(0)
        self.offsets = (self.units.cumsum(0) - self.units)[order] - (self.ends - sizes)
        self.epoch = epoch
        self.kept.clear()

    def _of_lane(self, lane: int, first: int, end: int) -> Iterator[Tensor]:
        """The rows `first` to `end` - 1 of a lane, window by window.

        Windows of different lanes end at different times, so that units are read at an even rate, not all at once.
        """
        shift = lane * 40503 % 65536 * self.window >> 16 if self.window < self.length else 0  # multiples of the golden ratio
        for number in range((first + shift) // self.window, (end - 1 + shift) // self.window + 1):
            start = max(0, number * self.window - shift)
            stop = min(self.length, (number + 1) * self.window - shift)
            yield self._window(lane, number, start, stop)[max(0, first - start) : end - start]

    def _window(self, lane: int, number: int, start: int, stop: int) -> Tensor:
        """The rows `start` to `stop` - 1 of a lane, which form a window, shuffled."""
        if lane not in self.kept or self.kept[lane][0] != number:
            shuffled = keyed_order(stop - start, self.seed, "window", self.epoch, lane, number)
            self.kept[lane] = number, self._positions(lane, start + shuffled)
        return self.kept[lane][1]

    def _positions(self, lane: int, at: Tensor) -> Tensor:
        """Positions in the split of the rows `at` of a lane before it is shuffled.

        Every other lane runs backwards: a unit that two neighbours share is then first, or last, in both, and read once.
        """
        in_stream = lane * self.length + at if lane % 2 == 0 else (lane + 1) * self.length - 1 - at
        return in_stream + self.offsets[torch.searchsorted(self.ends, in_stream, right=True)]


def lanes_of(batch: int, units: int) -> int:
    """The largest divisor of the global batch that leaves each lane enough units."""
    most = max(1, min(MOST_LANES, units // UNITS_PER_LANE))
    return max(lanes for lanes in range(1, most + 1) if batch % lanes == 0)
