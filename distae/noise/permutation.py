"""A permutation of a large range that is computed when it is needed, not stored."""

from math import isqrt

import torch
from torch import Tensor

from distae.noise.keyed import seed_of

ROUNDS = 8
"""Rounds of the Feistel network: more than the 4 after which few queried values look random (Luby & Rackoff 1988)."""


class KeyedPermutation:
    """A permutation of range(n) that depends on `key` alone, without a table.

    A Feistel network over pairs of numbers below ceil(sqrt(n)); a result of n or more is fed in again until it is below n, which is
    rare (cycle walking; Black & Rogaway 2002, "Ciphers with arbitrary finite domains").
    """

    def __init__(self, n: int, key: object) -> None:
        """`n` from 1 to 2^62."""
        self.n, self.side = n, isqrt(n - 1) + 1
        self.keys = [seed_of((key, number)) for number in range(ROUNDS)]

    def __call__(self, x: Tensor) -> Tensor:
        """The images of the numbers `x`, int64 from 0 to n - 1."""
        y = self._network(x)
        while (outside := y >= self.n).any():
            y[outside] = self._network(y[outside])
        return y

    def _network(self, x: Tensor) -> Tensor:
        left, right = torch.div(x, self.side, rounding_mode="floor"), x % self.side
        for key in self.keys:
            left, right = right, (left + _mixed(right ^ key)) % self.side
        return left * self.side + right


def _mixed(x: Tensor) -> Tensor:
    """62 bits, each of which depends on all 64 bits of `x`: the finaliser of splitmix64 (Steele et al. 2014)."""
    x = (x ^ (x >> 30 & (1 << 34) - 1)) * -0x40A7B892E31B1A47  # 0xBF58476D1CE4E5B9 as a signed number
    x = (x ^ (x >> 27 & (1 << 37) - 1)) * -0x6B2FB644ECCEEE15  # 0x94D049BB133111EB
    return (x ^ (x >> 31)) & (1 << 62) - 1
