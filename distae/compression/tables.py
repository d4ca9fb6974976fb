"""How frequent each code is, in integers: fitted on the training split's codes, kept beside the model as safetensors."""

import json
import struct
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import xxhash
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load, save

from distae.compression.coder import BITS, Ints, check_size, decode, encode
from distae.errors import UserError
from distae.runtime import files

TOTAL = 1 << BITS
MOST_SYMBOLS = 1 << 20
"""Of a table: each has a frequency of 1 at least, so that it can be coded."""
MOST_CELLS = 1 << 22
"""Of all tables; beyond that, all positions share one."""
MARGIN = 0.25
"""A grid reaches so much of the training codes' range beyond it on both sides."""
PRIOR = 32.0
"""Training samples that a position's table takes from the table of all positions."""


@dataclass(frozen=True)
class Tables:
    """Integer frequencies of the symbols at each position of a code, and what values the symbols stand for."""

    frequencies: Ints
    """`[T, K]`, T positions or 1 that all share; a row sums to 2^BITS, symbols that it does not have are 0."""
    offset: NDArray[np.float64] | None = None
    """`[T]`: the value of symbol 0, where codes are continuous."""
    step: NDArray[np.float64] | None = None
    """`[T]`: the distance of two symbols' values."""

    def symbols(self, codes: NDArray[np.floating] | Ints) -> tuple[Ints, int]:
        """`[N, D]` integers of indices, or of the nearest values on the grid; and how many values lay outside, and are its ends."""
        if self.step is None or self.offset is None:
            return codes.astype(np.int64), 0
        last = (self.frequencies > 0).sum(1) - 1
        nearest = np.rint((codes.astype(np.float64) - self.offset) / self.step)
        inside = nearest.clip(0, last)
        return inside.astype(np.int64), int((np.abs(nearest - inside) > 0).sum())

    def values(self, symbols: Ints) -> NDArray[np.float64] | Ints:
        """Indices, or values on the grid, `[N, D]`."""
        return symbols if self.step is None or self.offset is None else self.offset + symbols * self.step

    def bits(self, symbols: Ints) -> float:
        """The information content of `symbols` `[N, D]`: the sum of -log2 of their frequencies' shares."""
        of = self._table(len(symbols), symbols.shape[1])
        return float((BITS - np.log2(self.frequencies[of, symbols.ravel()])).sum())

    def encode(self, symbols: Ints) -> bytes:
        """The bytes of `symbols` `[N, D]`."""
        return encode(symbols.ravel(), self._table(*symbols.shape), self.frequencies)

    def decode(self, data: bytes, n: int, dims: int) -> Ints:
        """`[n, dims]` of `encode`. Raises ValueError on other bytes."""
        check_size(data, n * dims)
        return decode(data, self._table(n, dims), self.frequencies).reshape(n, dims)

    def _table(self, n: int, dims: int) -> Ints:
        """The number of the table of each value of n codes. Raises ValueError where there are others."""
        if len(self.frequencies) not in (1, dims):
            raise ValueError(f"the tables are of {len(self.frequencies)} values; a code has {dims}")
        return np.tile(np.arange(dims), n) if len(self.frequencies) > 1 else np.zeros(n * dims, np.int64)

    @property
    def digest(self) -> int:
        """A checksum of all the numbers, 64 bits."""
        digest = xxhash.xxh3_64()
        for array in self._arrays().values():
            digest.update(struct.pack("<q", len(array)) + array.tobytes())
        return digest.intdigest()

    def _arrays(self) -> dict[str, NDArray[np.generic]]:
        found: dict[str, NDArray[np.generic]] = {"frequencies": self.frequencies.astype("<i4")}
        if self.step is not None and self.offset is not None:
            found |= {"offset": self.offset.astype("<f8"), "step": self.step.astype("<f8")}
        return found


def fit_discrete(indices: Ints, num_codes: int) -> Tables:
    """Tables of the training split's `indices` `[N, D]`, each in [0, num_codes). Raises UserError on too many codes."""
    if num_codes > MOST_SYMBOLS:
        raise UserError(f"codes of {num_codes} kinds: at most {MOST_SYMBOLS} can be entropy-coded")
    dims = indices.shape[1]
    if dims * num_codes > MOST_CELLS:
        return Tables(_integers(np.bincount(indices.ravel(), minlength=num_codes)[None] + 0.5))
    flat = indices + np.arange(dims) * num_codes
    counts = np.bincount(flat.ravel(), minlength=dims * num_codes).reshape(dims, num_codes)
    everywhere = counts.sum(0) + 0.5
    return Tables(_integers(counts + PRIOR * (everywhere / everywhere.sum())))


def fit_grid(z: NDArray[np.floating], step: NDArray[np.float64]) -> Tables:
    """Tables of the training split's continuous codes `z` `[N, D]` on a grid of steps `[D]`, above 0, with a symbol at the mean.

    A value's frequencies are its histogram, and PRIOR samples of a gaussian of its mean and deviation, so that symbols that the
    training codes lack are coded as well. Raises UserError where the steps are too fine.
    """
    z = z.astype(np.float64)
    mean, width = z.mean(0), np.ptp(z, 0)
    step = np.where(width > 0, np.minimum(step, 2 * width), 1.0)
    low = np.floor((z.min(0) - MARGIN * width - mean) / step)
    kinds = np.ceil((z.max(0) + MARGIN * width - mean) / step) - low + 1
    if (most := int(kinds.max())) > MOST_SYMBOLS or most * len(kinds) > MOST_CELLS:
        raise UserError(f"--step-size: the finest grid would have {most} steps; give a larger one")
    symbols = np.rint((z - mean) / step) - low
    flat = (symbols + np.arange(len(kinds)) * most).astype(np.int64)
    counts = np.bincount(flat.ravel(), minlength=len(kinds) * most).reshape(len(kinds), most)
    away = (np.arange(most) + low[:, None]) * (step / np.where(width > 0, z.std(0), 1.0))[:, None]
    gaussian = np.where(np.arange(most) < kinds[:, None], np.exp(-0.5 * away**2) + 1e-6, 0.0)
    return Tables(_integers(counts + PRIOR * gaussian / gaussian.sum(1, keepdims=True)), mean + low * step, step)


def _integers(weights: NDArray[np.floating]) -> Ints:
    """`[T, K]` integers in proportion to `weights`, rows summing to TOTAL: at least 1 where the weight is above 0, else 0."""
    there = weights > 0
    free = TOTAL - there.sum(1, keepdims=True)
    made: Ints = np.floor(weights / weights.sum(1, keepdims=True) * free).astype(np.int64) + there
    made[np.arange(len(made)), made.argmax(1)] += TOTAL - made.sum(1)
    return made


def save_tables(tables: Tables, path: Path) -> None:
    """Write them whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    files.write_atomically(path, save(tables._arrays()))


def load_tables(path: Path) -> Tables:
    """Raises UserError where there are none, or they are no tables."""
    try:
        found = load(files.read_bytes(path, 16 << 20 | 8 * MOST_CELLS))
        made = Tables(found.pop("frequencies").astype(np.int64), found.pop("offset", None), found.pop("step", None))
    except (OSError, SafetensorError, KeyError, ValueError, json.JSONDecodeError) as error:
        raise UserError(f"{path} has no tables of codes ({files.in_words(error)})") from error
    if made.frequencies.ndim != 2 or (made.frequencies < 0).any() or (made.frequencies.sum(1) != TOTAL).any():
        raise UserError(f"{path} is damaged: its frequencies do not sum to {TOTAL}")
    return made
