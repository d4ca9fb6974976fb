"""Noise recorded in one forward pass and replayed in another: for compiled programs, which hold no generator."""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from distae.noise.keyed import Noise, Rows


class NoiseRecorder(Noise):
    """Noise that records its draws in order, so that `replay` can repeat them with other noise."""

    def __init__(self, noise: Noise, plan: "list[Draw] | None" = None, source: int = 0) -> None:
        super().__init__(noise.seed, noise.key, noise.rows, noise.device)
        self.plan: list[Draw] = [] if plan is None else plan
        self.source = source

    def normal(self, like: Tensor) -> Tensor:
        self._record("normal", like.to("meta"))
        return super().normal(like)

    def uniform(self, like: Tensor) -> Tensor:
        self._record("uniform", like.to("meta"))
        return super().uniform(like)

    def permutation(self, n: int) -> Tensor:
        self._record("permutation", n)
        return super().permutation(n)

    def integers(self, n: int, high: int) -> Tensor:
        self._record("integers", n, high)
        return super().integers(n, high)

    def common(self, *shape: int) -> Tensor:
        self._record("common", *shape)
        return super().common(*shape)

    def times(self, k: int) -> Noise:
        self._record("times", k)
        return NoiseRecorder(super().times(k), self.plan, sum(draw.name == "times" for draw in self.plan))

    def _record(self, name: str, *args: Any) -> None:
        self.plan.append(Draw(self.source, name, args))


class Draw(NamedTuple):
    """One call of a method of the recorded noise (`source` 0), or of the nth noise that `times` returned (`source` n)."""

    source: int
    name: str
    args: tuple[Any, ...]


def replay(noise: Noise, plan: list[Draw]) -> list[Tensor]:
    """The tensors of a recorded plan, drawn from `noise`."""
    noises: list[Any] = [noise]
    tensors: list[Tensor] = []
    for source, name, args in plan:
        drawn = getattr(noises[source], name)(*args)
        (noises if name == "times" else tensors).append(drawn)
    return tensors


class NoiseReplay(Noise):
    """Noise drawn beforehand: returns its tensors in order. For compiled programs, which cannot hold a generator."""

    def __init__(self, tensors: list[Tensor]) -> None:
        super().__init__(0, (), Rows(0), torch.device("cpu"))
        self.tensors = tensors
        self.used = 0

    def normal(self, like: Tensor) -> Tensor:
        return self._next()

    def uniform(self, like: Tensor) -> Tensor:
        return self._next()

    def permutation(self, n: int) -> Tensor:
        return self._next()

    def integers(self, n: int, high: int) -> Tensor:
        return self._next()

    def common(self, *shape: int) -> Tensor:
        return self._next()

    def times(self, k: int) -> Noise:
        return self

    def _next(self) -> Tensor:
        self.used += 1
        return self.tensors[self.used - 1]
