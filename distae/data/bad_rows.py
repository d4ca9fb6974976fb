"""Samples that cannot be read, under --data.on-error skip: their substitutes, and the list of them.

A substitute depends only on the row's number and on which rows are bad, so every rank finds the same one on its own. The list is
merged over ranks whenever a row of metrics or a checkpoint is written: from then on a bad sample stays bad, on any rank and after a
resume.
"""

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from distae import distributed as dist
from distae.data.source import BadRowsError, Source
from distae.errors import TrainingError
from distae.noise.keyed import seed_of

if TYPE_CHECKING:
    from distae.data.splits import Split

MOST = 5000
"""Maximum number of bad rows in a split; with more the run ends: its state stays small, and there is a larger problem."""
TRIES = 1000
"""Maximum number of substitutes tried for a row."""
LONGEST = 300
"""Maximum characters of a reason."""
SHOWN = 5
"""Maximum number of reasons in one line."""
State = dict[str, dict[str, str]]
"""By split and row number: why it cannot be read."""


class BadRows:
    """Rows of one split that cannot be read, by their number in the source."""

    def __init__(self) -> None:
        self.known: dict[int, str] = {}
        """All that were found, also by reading ahead. Filled by any thread."""
        self.met: dict[int, str] = {}
        """Those that were in a batch of this rank."""
        self.agreed: dict[int, str] = {}
        """Those that all ranks know, sorted by number."""

    def read(self, source: Source, rows: Tensor, pick: Callable[[int], int]) -> tuple[Tensor, Tensor]:
        """Samples `[B, *shape]`, and their rows `[B]`: `rows`, with substitutes for bad ones.

        `pick` maps any number from 0 on to one of the split's rows. Raises TrainingError if there are too many bad ones.
        """
        while True:
            used = self._replaced(rows, pick)
            try:
                return source.read(used), used
            except BadRowsError as error:
                if not error.reasons.keys() & set(used.tolist()):
                    raise  # none of them can be replaced
                self.known.update({row: reason[:LONGEST] for row, reason in error.reasons.items()})
                if len(self.known) > MOST:
                    raise TrainingError(f"more than {MOST} samples cannot be read, such as: {error}") from error

    def among(self, rows: Tensor) -> Tensor | None:
        """`[B]` bool, which rows are bad; None if none is known."""
        return torch.tensor([row in self.known for row in rows.tolist()]) if self.known else None

    def meet(self, rows: Tensor) -> None:
        """Note the bad ones among the rows `[B]` of a batch."""
        if self.known:
            self.met.update({row: self.known[row] for row in rows.tolist() if row in self.known})

    def _replaced(self, rows: Tensor, pick: Callable[[int], int]) -> Tensor:
        bad = self.among(rows)
        if bad is None or not bad.any():
            return rows
        return torch.tensor([self._substitute(row, pick) if row in self.known else row for row in rows.tolist()])

    def _substitute(self, row: int, pick: Callable[[int], int]) -> int:
        for attempt in range(TRIES):
            candidate = pick(seed_of(("substitute", row, attempt)))
            if candidate not in self.known:
                return candidate
        raise TrainingError(f"almost no sample can be read: {self.known[row]}")


class Skipped:
    """The bad rows of all splits; those of a run with --data.on-error raise have none. All ranks call `agree` together."""

    def __init__(self, splits: "Mapping[str, Split]") -> None:
        self.sizes = {name: len(split.source) for name, split in splits.items() if split.bad is not None}
        self.splits = {name: split.bad for name, split in splits.items() if split.bad is not None}

    def agree(self) -> list[str]:
        """Merge the lists of all ranks; returns a line of text for each split that has new ones."""
        if not self.splits:
            return []
        lines = []
        of_ranks = dist.gather({name: bad.met for name, bad in self.splits.items()})
        for name, bad in self.splits.items():
            fresh = {row: why for rank in reversed(of_ranks) for row, why in rank[name].items() if row not in bad.agreed}
            self._take(name, fresh)
            if fresh:
                reasons = [fresh[row] for row in sorted(fresh)]
                more = f" and {len(fresh) - SHOWN} more" if len(fresh) > SHOWN else ""
                lines.append(f"{name}: {len(bad.agreed)} samples skipped so far; now {'; '.join(reasons[:SHOWN])}{more}")
        return lines

    def counts(self, split: str) -> dict[str, float]:
        """The metric of a split; empty if bad rows end the run."""
        return {"skipped_rows": float(len(self.splits[split].agreed))} if split in self.splits else {}

    def state(self) -> State | None:
        """What a checkpoint keeps; None if there is nothing."""
        state = {name: {str(row): why for row, why in bad.agreed.items()} for name, bad in self.splits.items() if bad.agreed}
        return state or None

    def load(self, state: State | None) -> None:
        """Load the state from a checkpoint of the same data; rows out of range are ignored."""
        for name, rows in (state or {}).items():
            if name in self.splits:
                known = {int(row): why[:LONGEST] for row, why in rows.items() if row.isdecimal()}
                self._take(name, {row: why for row, why in known.items() if row < self.sizes[name]})

    def _take(self, name: str, rows: Mapping[int, str]) -> None:
        bad = self.splits[name]
        bad.agreed = dict(sorted({**bad.agreed, **rows}.items()))
        bad.known.update(bad.agreed)
