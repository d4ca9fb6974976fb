"""When to save: every N steps, or at the interval that minimises the expected lost time."""

import math
from collections import deque
from statistics import median
from typing import Literal

GPU_HOURS_PER_FAILURE = 54 * 24 * 16384 / 419
"""50,677: there were 419 unexpected interruptions in 54 days of 16,384 GPUs (Llama Team 2024, arXiv:2407.21783)."""
FIRST = 10
"""Steps from the start of a process to its first save, and from there to its second, before anything is measured."""
REMEMBERED = 5
"""Number of saves whose median is taken as the cost of one: a single slow write must not stretch the interval."""


def best_interval(cost: float, mtbf: float) -> float:
    """Seconds of training between two saves that lose the least time, saves and repeated steps together.

    A save blocks training for `cost` seconds, and failures come every `mtbf` seconds on average. Daly 2006, eq. 37 ("A higher
    order estimate of the optimum checkpoint interval for restart dumps", Future Generation Computer Systems 22); its first order
    is sqrt(2 * cost * mtbf), by Young 1974 ("A first order approximation to the optimum checkpoint interval", CACM 17).
    """
    if cost >= 2 * mtbf:
        return mtbf
    x = cost / (2 * mtbf)
    return math.sqrt(2 * cost * mtbf) * (1 + math.sqrt(x) / 3 + x / 9) - cost


class SaveSchedule:
    """Which steps to save. With "auto", the next step to save follows from the measured costs of a save and of a step.

    Times are seconds of one clock; the time of a step includes all that happens between two saves, evaluations too.
    """

    def __init__(self, every: int | Literal["auto"], mtbf: float) -> None:
        """`mtbf` is the job's mean time between failures in seconds."""
        self.every, self.mtbf = every, mtbf
        self.costs: deque[float] = deque(maxlen=REMEMBERED)
        self.saves = 0
        self.start(0, 0.0)

    def start(self, step: int, now: float) -> None:
        """Training continues from `step`."""
        self.since, self.next = (step, now), step + FIRST

    def due(self, step: int) -> bool:
        return step >= self.next if self.every == "auto" else step % self.every == 0

    def after(self, step: int, began: float, ended: float) -> int:
        """The step of the next save, after one at `step` that blocked training from `began` to `ended`."""
        before, then = self.since
        per_step = (began - then) / max(1, step - before)
        self.since = (step, ended)
        self.saves += 1
        if self.saves == 1:  # it allocated the buffers for all later ones
            return step + FIRST
        self.costs.append(ended - began)
        return step + max(1, round(best_interval(median(self.costs), self.mtbf) / max(per_step, 1e-9)))
