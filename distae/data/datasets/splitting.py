"""Which rows are for training, validation and test: by a column, by groups, or by time. Functions of the values alone."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from distae.config.data.paths import SPLIT_NAMES
from distae.data.splits import SPLIT_SEED, held_out
from distae.errors import UserError
from distae.noise import split_order

Rows = dict[str, Tensor]
"""`train`, `val` and `test`: ascending row numbers `[n]` int64."""


def at_random(n: int, test: float, val: float) -> Rows:
    """Fixed fractions of `n` rows: `test` of all, and `val` of the others, as by `hold_out` twice."""
    rest, tested = held_out(n, test)
    train, held = held_out(len(rest), val)
    return {"train": rest[train], "val": rest[held], "test": tested}


def by_name(names: Sequence[Any] | NDArray[Any], where: str) -> Rows:
    """Rows by their split's name. Raises UserError on any other name; `where` names the source and the column in messages."""
    words = [SPLIT_NAMES.get(str(name).strip().lower()) for name in names]
    if None in words:
        row = words.index(None)
        raise UserError(f"{where}, row {row + 1} is {str(names[row])!r}; valid: train, val and test")
    found = np.array(words)
    rows = {name: torch.from_numpy(np.flatnonzero(found == name)) for name in ("train", "val", "test")}
    if not len(rows["train"]):
        raise UserError(f"{where} has no row for training; valid: train, val and test")
    return rows


def by_group(groups: Sequence[Any] | NDArray[Any], test: float, val: float, where: str) -> Rows:
    """About these fractions of the rows, and no group in two splits. Raises UserError if there are too few groups."""
    texts = [str(g) for g in groups]
    index = {text: i for i, text in enumerate(sorted(set(texts)))}
    of_row = torch.tensor([index[text] for text in texts])
    if len(index) < 1 + (test > 0) + (val > 0):
        needed = 1 + (test > 0) + (val > 0)
        raise UserError(f"{where} has {len(index)} groups; splits that share no group need at least {needed}")
    order = split_order(len(index), SPLIT_SEED)
    ends = of_row.bincount(minlength=len(index))[order].cumsum(0)
    tested = _groups_up_to(ends, len(texts) * test, len(index) - 1 - (val > 0))
    rows_tested = int(ends[tested - 1]) if tested else 0
    held = max(tested + (val > 0), _groups_up_to(ends, rows_tested + (len(texts) - rows_tested) * val, len(index) - 1))
    split = torch.zeros(len(index), dtype=torch.int64)
    split[order[:tested]], split[order[tested:held]] = 2, 1
    return {name: (split[of_row] == i).nonzero().squeeze(1) for i, name in enumerate(("train", "val", "test"))}


def _groups_up_to(ends: Tensor, rows: float, most: int) -> int:
    """Number of groups, in order, that have about this number of rows: at least one if `rows` is not 0, at most `most`."""
    return min(most, int((ends - rows).abs().argmin()) + 1) if rows > 0 else 0


def by_time(times: NDArray[Any], test: float, val: float) -> Rows:
    """The last rows in time are the test split, those before them the validation split; ties keep the order of the rows."""
    order = torch.from_numpy(np.argsort(times, kind="stable"))
    tested = round(len(order) * test)
    held = round((len(order) - tested) * val)
    ends = len(order) - tested - held, len(order) - tested
    parts = order.tensor_split(ends)
    return {name: part.sort().values for name, part in zip(("train", "val", "test"), parts, strict=True)}
