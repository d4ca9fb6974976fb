"""Columns of a table, as stored and as a model sees them: normalised numbers, one-hot categories, missing values."""

from dataclasses import dataclass
from typing import Annotated, Any

import torch
from msgspec import Meta
from torch import Tensor

from distae.config.fields import Positive
from distae.config.tables import Feature

MOST_QUANTILES, EXTREME = 1000, 1e-7
"""Maximum length of a column's table of quantiles, and the probability at which its ends are clipped (both as scikit-learn)."""


@dataclass(frozen=True)
class Scaled(Feature):
    """A column and how it is normalised; the model sees (value - offset) / scale, or the normal score of its rank."""

    offset: float = 0.0
    scale: Positive = 1.0
    quantiles: Annotated[tuple[float, ...], Meta(max_length=MOST_QUANTILES)] = ()
    """Ascending, at equally spaced probabilities from 0 to 1; empty unless numbers are normalised by rank."""
    fill: float | None = None
    """Stored value that replaces a missing one; None leaves NaN."""


def check_columns(columns: tuple[Scaled, ...]) -> None:
    """Raises ValueError if no table can have these columns: the file may have been changed."""
    order = [("numeric", "binary", "categorical").index(c.kind) for c in columns]
    if order != sorted(order):
        raise ValueError("its columns are not in the order numeric, binary, categorical")
    for c in columns:
        if not (c.kind == "numeric" or len(c.categories) == 2 or (c.kind == "categorical" and c.categories)):
            raise ValueError(f"column {c.name!r} has {len(c.categories)} categories")
        if c.quantiles and (len(c.quantiles) < 2 or list(c.quantiles) != sorted(c.quantiles)):
            raise ValueError(f"the quantiles of column {c.name!r} do not ascend")
    if len({len(c.quantiles) for c in columns if c.quantiles}) > 1:
        raise ValueError("its columns have different numbers of quantiles")


class Columns:
    """The transform of all columns, on one device."""

    def __init__(self, columns: tuple[Scaled, ...], device: torch.device) -> None:
        def numbers(values: list[Any]) -> Tensor:
            return torch.tensor(values, dtype=torch.float64, device=device)

        self.single = sum(c.kind != "categorical" for c in columns)
        self.columns = columns
        self.offset, self.scale = (numbers([getattr(c, k) for c in columns[: self.single]]) for k in ("offset", "scale"))
        self.fill = numbers([float("nan") if c.fill is None else c.fill for c in columns])
        self.ranked = [i for i, c in enumerate(columns) if c.quantiles]
        self.quantiles = numbers([list(columns[i].quantiles) for i in self.ranked])
        widths = [c.width for c in columns[self.single :]]
        self.group = torch.repeat_interleave(torch.tensor(widths, dtype=torch.int64)).to(device)
        self.level = torch.cat([torch.arange(w) for w in (0, *widths)]).to(device)

    @property
    def width(self) -> int:
        return self.single + len(self.group)

    def apply(self, x: Tensor) -> Tensor:
        """Stored rows `[B, columns]` as the model's `[B, width]`, float64; NaN stays in columns without `fill`."""
        x = torch.where(x.isnan(), self.fill, x.double())
        single, codes = x[:, : self.single], x[:, self.single :]
        seen = (single - self.offset) / self.scale
        if self.ranked:
            seen[:, self.ranked] = normal_scores(single[:, self.ranked], self.quantiles)
        of_value = codes[:, self.group]
        onehot = torch.where(of_value.isnan(), of_value, (of_value == self.level).double())
        return torch.cat([seen, onehot], 1)

    def invert(self, x: Tensor) -> Tensor:
        """The model's values `[B, width]` as stored, `[B, columns]`: the likeliest code of a category, float64."""
        x = x.double()
        single = x[:, : self.single] * self.scale + self.offset
        if self.ranked:
            single[:, self.ranked] = from_normal_scores(x[:, self.ranked], self.quantiles)
        binary = [i for i, c in enumerate(self.columns) if c.kind == "binary"]
        single[:, binary] = (x[:, binary] > 0.5).double().where(x[:, binary].isfinite(), x[:, binary])
        widths = [c.width for c in self.columns[self.single :]]
        parts = torch.split(x[:, self.single :], widths, 1)
        codes = [torch.where(part.isnan().any(1), torch.nan, part.argmax(1)) for part in parts]
        return torch.cat([single, *(code.unsqueeze(1) for code in codes if code.numel())], 1) if widths else single


def normal_scores(x: Tensor, quantiles: Tensor) -> Tensor:
    """Normal scores of `x` `[B, C]` by tables `[C, Q]`: Phi^-1 of the mean rank.

    As scikit-learn's QuantileTransformer, except that a repeated smallest or largest value gets its mean rank, too.
    """
    low = _rank(x.T.contiguous(), quantiles)
    high = 1 - _rank(-x.T.contiguous(), -quantiles.flip(1))
    score = torch.special.ndtri((0.5 * (low + high)).clamp(EXTREME, 1 - EXTREME))
    return score.T  # type: ignore[no-any-return]


def _rank(x: Tensor, quantiles: Tensor) -> Tensor:
    """Probability `[C, B]` by linear interpolation in ascending tables `[C, Q]`; the last of equal quantiles counts."""
    last = quantiles.shape[1] - 1
    at = (torch.searchsorted(quantiles, x, right=True) - 1).clamp(0, last - 1)
    below, above = quantiles.gather(1, at), quantiles.gather(1, at + 1)
    part = ((x - below) / torch.where(above > below, above - below, 1.0)).clamp(0, 1)
    whole = (x >= above) & (above <= below)
    return torch.where(x.isnan(), x, (at + torch.where(whole, 1.0, part)) / last)


def from_normal_scores(score: Tensor, quantiles: Tensor) -> Tensor:
    """The inverse of `normal_scores`; beyond its ends, the smallest and the largest quantile."""
    last = quantiles.shape[1] - 1
    probability = torch.special.ndtr(score).T
    probability = torch.where(probability <= EXTREME, 0.0, torch.where(probability >= 1 - EXTREME, 1.0, probability))
    at = (probability.nan_to_num(0) * last).floor().long().clamp(0, last - 1)
    below, above = quantiles.gather(1, at), quantiles.gather(1, at + 1)
    return (below + (above - below) * (probability * last - at)).T
