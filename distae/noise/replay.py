"""Noise recorded in one forward pass and replayed in another: for compiled programs, which hold no generator."""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from distae.noise.keyed import Noise, Rows


class NoiseRecorder(Noise):
    """Noise that writes down, in order, what is drawn of it; `replay` then draws the same of another."""

    def __init__(self, noise: Noise, plan: "list[Draw] | None" = None, place: int = 0) -> None:
        super().__init__(noise.seed, noise.key, noise.rows, noise.device)
        self.plan: list[Draw] = [] if plan is None else plan
        self.place = place

    def normal(self, like: Tensor) -> Tensor:
        self._write("normal", like.to("meta"))
        return super().normal(like)

    def uniform(self, like: Tensor) -> Tensor:
        self._write("uniform", like.to("meta"))
        return super().uniform(like)

    def permutation(self, n: int) -> Tensor:
        self._write("permutation", n)
        return super().permutation(n)

    def integers(self, n: int, high: int) -> Tensor:
        self._write("integers", n, high)
        return super().integers(n, high)

    def common(self, *shape: int) -> Tensor:
        self._write("common", *shape)
        return super().common(*shape)

    def times(self, k: int) -> Noise:
        self._write("times", k)
        return NoiseRecorder(super().times(k), self.plan, sum(draw.name == "times" for draw in self.plan))

    def _write(self, name: str, *args: Any) -> None:
        self.plan.append(Draw(self.place, name, args))


class Draw(NamedTuple):
    """One call of a method of a Noise: of the first one (0), or of the nth that `times` gave."""

    place: int
    name: str
    args: tuple[Any, ...]


def replay(noise: Noise, plan: list[Draw]) -> list[Tensor]:
    """The tensors of a recorded plan, from `noise`."""
    noises: list[Any] = [noise]
    tensors: list[Tensor] = []
    for place, name, args in plan:
        drawn = getattr(noises[place], name)(*args)
        (noises if name == "times" else tensors).append(drawn)
    return tensors


class NoiseReplay(Noise):
    """Noise that was drawn before: hands out its tensors in order. For compiled programs, in which no generator can be."""

    def __init__(self, tensors: list[Tensor]) -> None:
        super().__init__(0, (), Rows(0), torch.device("cpu"))
        self.tensors = tensors
        self.given = 0

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
        self.given += 1
        return self.tensors[self.given - 1]
