"""Sources that are read in units, such as row groups or shards: recently read units are kept."""

import functools
import threading
from abc import abstractmethod
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

import torch
from torch import Tensor

from distae.data.source import BadRowsError, Source, put_rows

KEPT_BYTES = 256 << 20
"""Minimum total bytes, as decoded, of the units of a source that are kept."""


class UnitSource(Source):
    """A source whose rows are read in units. Subclasses set `shape`, `dtype` and `units`, and define the two methods below."""

    units: Tensor

    @abstractmethod
    def read_unit(self, number: int) -> Any:
        """Read what is kept of a unit in memory, best as it is stored, before decoding. Called by any thread.

        Raises BadRowsError, with rows numbered as in the source; or OSError, which makes all rows of the unit bad.
        """

    @abstractmethod
    def decode(self, unit: Any, rows: Tensor) -> Tensor:
        """The samples `[B, *shape]` at the rows `[B]` of a unit, numbered from 0 in the unit, also in a BadRowsError."""

    def __len__(self) -> int:
        return int(self._ends[-1]) if len(self.units) else 0

    def read(self, rows: Tensor) -> Tensor:
        of_row, by_unit = torch.sort(torch.searchsorted(self._ends, rows, right=True), stable=True)
        within = rows[by_unit] - (self._ends - self.units)[of_row]
        numbers, counts = torch.unique_consecutive(of_row, return_counts=True)
        samples = torch.empty((len(rows), *self.shape), dtype=self.dtype)
        bad: dict[int, str] = {}
        sizes = counts.tolist()
        for number, at, here in zip(numbers.tolist(), torch.split(by_unit, sizes), torch.split(within, sizes), strict=True):
            try:
                put_rows(samples, at, self._decoded(number, here))
            except BadRowsError as error:
                bad |= error.reasons
        if bad:
            raise BadRowsError(bad)
        return samples

    @functools.cached_property
    def _ends(self) -> Tensor:
        return self.units.cumsum(0)

    @functools.cached_property
    def _cache(self) -> "Kept":
        per_unit = max(1, len(self) * self.row_bytes // max(1, len(self.units)))
        return Kept(self.read_unit, max(8, KEPT_BYTES // per_unit))

    def _decoded(self, number: int, within: Tensor) -> Tensor:
        """Samples of one unit. Raises BadRowsError, its rows numbered as in the source."""
        first = int(self._ends[number] - self.units[number])
        try:
            unit = self._cache.get(number, self.units_kept)
        except OSError as error:
            raise BadRowsError({row: f"{self.name_of(row)}: {error}" for row in (within + first).tolist()}) from error
        try:
            return self.decode(unit, within)
        except BadRowsError as error:
            raise BadRowsError({row + first: reason for row, reason in error.reasons.items()}) from error


class Kept:
    """A cache of the most recently used results of a function; one thread computes each, while others that need it wait."""

    def __init__(self, read: Callable[[int], Any], least: int) -> None:
        self.read, self.least, self.reads = read, least, 0
        self.lock = threading.Lock()
        self.futures: dict[int, Future[Any]] = {}
        """By number, the one used last at the end."""

    def get(self, number: int, most: int) -> Any:
        """The result for a number; keeps `most` results. Raises what the function raises, and does not keep that."""
        with self.lock:
            known = self.futures.pop(number, None)
            future: Future[Any] = known or Future()
            self.futures[number] = future
            while len(self.futures) > max(most, self.least):
                self.futures.pop(next(iter(self.futures)))
            self.reads += known is None
        if known is None:
            try:
                future.set_result(self.read(number))
            except BaseException as error:
                with self.lock:
                    self.futures.pop(number, None)
                future.set_exception(error)
        return future.result()
