"""The only source of randomness in distae, keyed: the same key gives the same numbers on any number of ranks.

Noise belongs to the rows of a global batch and is drawn in blocks of rows; a rank draws only the blocks that contain its rows. So
results depend neither on the world size nor on gradient accumulation, and a rank pays for its own rows only. The key of a block is
(seed, key of the forward pass, call, block number), where `call` counts the draws of a forward pass.
"""

import contextlib
import hashlib
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from math import prod

import torch
from torch import Tensor

ORDER = 2
"""Version of the rows of each rank, of noise and of initial weights: a checkpoint of a different version is not resumed."""
BLOCK_ROWS, BLOCK_VALUES = 64, 32768
"""Maximum size of a block. For so few values, what a GPU draws does not depend on its number of multiprocessors."""


@contextlib.contextmanager
def initialising(seed: int) -> Iterator[None]:
    """Seed the CPU generator, from which initial weights are drawn for every device; restore its state at the end."""
    with _initialising, torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        yield


_initialising = threading.RLock()
"""All threads share the CPU generator, so only one at a time builds a model."""


def split_order(n: int, seed: int) -> Tensor:
    """A permutation of range(n) for splits, and for an epoch of a full shuffle: `[n]` int64 on the CPU."""
    return torch.randperm(n, generator=torch.Generator().manual_seed(seed))


def keyed_order(n: int, *key: str | int) -> Tensor:
    """A permutation of range(n) that depends on the key alone: `[n]` int64 on the CPU."""
    return split_order(n, seed_of(key))


def rows_per_block(values_per_row: int) -> int:
    """Rows of one block: a function of a row's width alone, never of the batch.

    A power of two, like most ranks' shares of a batch: these are then whole blocks, and no value is drawn and discarded.
    """
    most = max(1, min(BLOCK_ROWS, BLOCK_VALUES // max(1, values_per_row)))
    return 1 << (most.bit_length() - 1)


@dataclass(frozen=True)
class Rows:
    """Which rows of a global batch this process holds: `count` of them from `start` on."""

    count: int
    start: int = 0


@dataclass
class Noise:
    """The noise of one forward pass."""

    seed: int
    key: tuple[str | int, ...]
    """(stream, step, phase): which forward pass this is."""
    rows: Rows
    device: torch.device
    calls: int = field(default=0, init=False)

    @classmethod
    def seeded(cls, seed: int, n: int, device: torch.device | str = "cpu") -> "Noise":
        """Noise of `n` rows outside of training: `model.sample(n, Noise.seeded(0, n))`."""
        return cls(seed, ("seeded",), Rows(n), torch.device(device))

    def normal(self, like: Tensor) -> Tensor:
        """Standard normal values of `like`'s shape `[B, ...]`."""
        return self._blocks(like, lambda block, generator: block.normal_(generator=generator))

    def uniform(self, like: Tensor) -> Tensor:
        """Values uniform in [0, 1) of `like`'s shape `[B, ...]`."""
        return self._blocks(like, lambda block, generator: block.uniform_(generator=generator))

    def bernoulli(self, p: Tensor) -> Tensor:
        """0 or 1, each 1 with its own probability in `p` `[B, ...]`."""
        return (self.uniform(p) < p).to(p.dtype)

    def dropout(self, x: Tensor, p: float) -> Tensor:
        """`x` `[B, ...]` with each value zeroed with probability `p`, the others scaled by 1/(1-p) (Srivastava 2014)."""
        return x * (self.uniform(x) >= p) / (1 - p)

    def times(self, k: int) -> "Noise":
        """Noise for `k` rows per sample, `[B * k, ...]`; the rows of a sample are adjacent."""
        self.calls += 1
        rows = Rows(self.rows.count * k, self.rows.start * k)
        return Noise(self.seed, (*self.key, "times", self.calls), rows, self.device)

    def permutation(self, n: int) -> Tensor:
        """A permutation of range(n), the same on every rank: `[n]` int64."""
        return self._to_device(torch.randperm(n, generator=self._common_generator()))

    def integers(self, n: int, high: int) -> Tensor:
        """`n` independent integers from 0 to `high` - 1, the same on every rank: `[n]` int64."""
        return self._to_device(torch.randint(high, (n,), generator=self._common_generator()))

    def common(self, *shape: int) -> Tensor:
        """Standard normal values of `shape`, the same on every rank."""
        return self._to_device(torch.randn(shape, generator=self._common_generator()))

    def _blocks(self, like: Tensor, fill: Callable[[Tensor, torch.Generator], Tensor]) -> Tensor:
        """This rank's rows, cut from blocks that are drawn whole: a smaller draw has different values."""
        self.calls += 1
        size = rows_per_block(prod(like.shape[1:]))
        first, end = self.rows.start // size, -(-(self.rows.start + self.rows.count) // size)
        dtype = torch.promote_types(like.dtype, torch.float32)
        drawn = torch.empty((end - first) * size, *like.shape[1:], dtype=dtype, device=self.device)
        for number in range(first, end):
            block = drawn[(number - first) * size : (number - first + 1) * size]
            fill(block, _generator(self.device, (self.seed, self.key, self.calls, number)))
        skipped = self.rows.start - first * size
        return drawn[skipped : skipped + self.rows.count]

    def _common_generator(self) -> torch.Generator:
        """On the CPU: GPUs of different kinds draw different numbers, and all ranks must agree."""
        self.calls += 1
        return _generator(torch.device("cpu"), (self.seed, self.key, self.calls))

    def _to_device(self, x: Tensor) -> Tensor:
        """A copy from pinned memory does not make the host wait."""
        return x if self.device.type == "cpu" else x.pin_memory().to(self.device, non_blocking=True)


def seed_of(key: object) -> int:
    """A hash of 63 bits of a key made of numbers, strings and tuples."""
    return int.from_bytes(hashlib.blake2b(repr(key).encode(), digest_size=8).digest()) >> 1


class _Generators(threading.local):
    """One generator per device and thread: threads would race for a shared one."""

    def __init__(self) -> None:
        self.by_device: dict[torch.device, torch.Generator] = {}


_generators = _Generators()


def _generator(device: torch.device, key: object) -> torch.Generator:
    """The thread's generator on `device`, seeded by `key`; valid until the thread asks for the next."""
    if device not in _generators.by_device:
        _generators.by_device[device] = torch.Generator(device)
    return _generators.by_device[device].manual_seed(seed_of(key))
