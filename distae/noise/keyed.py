"""The only source of randomness in distae, keyed: the same key gives the same numbers on any number of ranks.

Noise is drawn for the rows of a whole global batch and each rank keeps its own, so results depend neither on the world size nor
on gradient accumulation. The key is (seed, stream, step, phase, call), the call counting the draws of one forward.
"""

import contextlib
import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor


@contextlib.contextmanager
def initialising(seed: int) -> Iterator[None]:
    """Weights made inside come from the CPU generator seeded with `seed`, whatever the device; its state is put back."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield


def split_order(n: int, seed: int) -> Tensor:
    """A fixed permutation of range(n), for splits: `[n]` int64 on the CPU."""
    return torch.randperm(n, generator=torch.Generator().manual_seed(seed))


@dataclass(frozen=True)
class Rows:
    """Which rows of a global batch this process holds."""

    total: int
    index: Tensor | None = None
    """`[B]` int64 on the device; None is all of them, in order. Rows past the end (evaluation's padding) get row 0's noise."""

    @staticmethod
    def strided(total: int, start: int, stop: int, step: int, device: torch.device) -> "Rows":
        """Rows start, start + step, … below stop."""
        if (start, stop, step) == (0, total, 1):
            return Rows(total)
        index = torch.arange(start, stop, step, device=device)
        return Rows(total, torch.where(index < total, index, 0))


@dataclass
class Noise:
    """The noise of one forward pass."""

    seed: int
    key: tuple[str | int, ...]
    """(stream, step, phase): which forward pass this is."""
    rows: Rows
    device: torch.device
    apart: tuple[int, ...] = ()
    """What is added to the key of noise for rows, but not of draws that all ranks share: the rank, for --noise per_rank."""
    calls: int = field(default=0, init=False)

    @classmethod
    def seeded(cls, seed: int, n: int, device: torch.device | str = "cpu") -> "Noise":
        """Noise of `n` rows outside of training: `model.sample(n, Noise.seeded(0, n))`."""
        return cls(seed, ("seeded",), Rows(n), torch.device(device))

    def normal(self, like: Tensor) -> Tensor:
        """Standard normal values of `like`'s shape `[B, ...]`."""
        return self._rows(torch.randn(self._shape(like), **self._how(like)))

    def uniform(self, like: Tensor) -> Tensor:
        """Values uniform in [0, 1) of `like`'s shape `[B, ...]`."""
        return self._rows(torch.rand(self._shape(like), **self._how(like)))

    def bernoulli(self, p: Tensor) -> Tensor:
        """0 or 1, each 1 with its own probability in `p` `[B, ...]`."""
        return (self.uniform(p) < p).to(p.dtype)

    def dropout(self, x: Tensor, p: float) -> Tensor:
        """`x` `[B, ...]` with each value zeroed with probability `p`, the others scaled by 1/(1-p) (Srivastava 2014)."""
        return x * (self.uniform(x) >= p) / (1 - p)

    def times(self, k: int) -> "Noise":
        """Noise for `k` rows per sample, `[B * k, ...]`, those of a sample in a row."""
        self.calls += 1
        index = self.rows.index
        if index is not None:
            index = (index[:, None] * k + torch.arange(k, device=index.device)).flatten()
        return Noise(self.seed, (*self.key, "times", self.calls), Rows(self.rows.total * k, index), self.device, self.apart)

    def permutation(self, n: int) -> Tensor:
        """A permutation of range(n), the same on every rank: `[n]` int64."""
        return torch.randperm(n, generator=self._generator(()), device=self.device)

    def integers(self, n: int, high: int) -> Tensor:
        """`n` integers below `high`, each on its own, the same on every rank: `[n]` int64."""
        return torch.randint(high, (n,), generator=self._generator(()), device=self.device)

    def common(self, *shape: int) -> Tensor:
        """Standard normal values of `shape`, the same on every rank."""
        return torch.randn(shape, generator=self._generator(()), device=self.device)

    def _shape(self, like: Tensor) -> tuple[int, ...]:
        return (self.rows.total, *like.shape[1:])

    def _how(self, like: Tensor) -> dict[str, Any]:
        dtype = torch.promote_types(like.dtype, torch.float32)
        return {"generator": self._generator(self.apart), "device": self.device, "dtype": dtype}

    def _rows(self, x: Tensor) -> Tensor:
        return x if self.rows.index is None else x.index_select(0, self.rows.index)

    def _generator(self, apart: tuple[int, ...]) -> torch.Generator:
        self.calls += 1
        text = repr((self.seed, *self.key, *apart, self.calls)).encode()
        seed = int.from_bytes(hashlib.blake2b(text, digest_size=8).digest()) >> 1
        return _generator_on(self.device).manual_seed(seed)


_generators: dict[torch.device, torch.Generator] = {}


def _generator_on(device: torch.device) -> torch.Generator:
    return _generators.setdefault(device, torch.Generator(device))
