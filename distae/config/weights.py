"""Weights of an objective's terms that change over training, written `0:1@1000`."""

import re

from distae.config.fields import NonNegative

_NUMBER = r"\d+(?:\.\d*)?(?:[eE][-+]?\d+)?|\.\d+(?:[eE][-+]?\d+)?"
_RAMP = re.compile(rf"({_NUMBER}):({_NUMBER})@([1-9]\d*)(?:x([1-9]\d*))?")


class Ramp(str):
    """`FROM:TO@STEPS` goes linearly from FROM to TO over the first STEPS optimizer steps, then stays (KL warm-up: `0:1@1000`).

    `FROM:TO@STEPSxN` is N cycles of STEPS each, with the ramp in the first half of a cycle (Fu 2019, cyclic annealing).
    Raises ValueError if the text is neither.
    """

    __slots__ = ()

    def __new__(cls, text: str) -> "Ramp":
        if not _RAMP.fullmatch(text):
            raise ValueError(f"{text!r} is not FROM:TO@STEPS or FROM:TO@STEPSxCYCLES")
        return super().__new__(cls, text)

    def at(self, step: int | None) -> float:
        """The weight at the update from `step` (counted from 0) to step + 1; None gives the final weight."""
        match = _RAMP.fullmatch(self)
        assert match
        first, last, steps, cycles = float(match[1]), float(match[2]), int(match[3]), int(match[4] or 0)
        if step is None or step >= steps * max(1, cycles):
            return last
        done = min(1.0, 2 * (step % steps) / steps) if cycles else step / steps
        return first + (last - first) * done


Weight = NonNegative | Ramp
"""A constant, or a weight that changes over training."""


def at(weight: Weight, step: int | None) -> float:
    """The value of `weight` at an optimizer step; its final value if `step` is None, as in evaluation."""
    return weight.at(step) if isinstance(weight, Ramp) else weight
