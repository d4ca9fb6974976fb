"""Values in [0, 1]."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from distae.losses.divergences import upcast
from distae.losses.likelihoods.base import Likelihood, register_likelihood


@register_likelihood("bernoulli")
class Bernoulli(Likelihood):
    """Independent values in {0, 1}; raw are logits. For grey values in between it is the cross entropy, not a density."""

    def mean(self, raw: Tensor) -> Tensor:
        return torch.sigmoid(upcast(raw))

    def per_value(self, raw: Tensor, x: Tensor) -> Tensor:
        return F.binary_cross_entropy_with_logits(upcast(raw), upcast(x), reduction="none")


@register_likelihood("continuous_bernoulli")
class ContinuousBernoulli(Bernoulli):
    """A density over [0, 1]: C(p) p^x (1-p)^(1-x) (Loaiza-Ganem & Cunningham 2019, eq. 5-8); raw are the logits of p."""

    def mean(self, raw: Tensor) -> Tensor:
        """1 / (1 - exp(-raw)) - 1 / raw, near 0 by its series; from |raw|, as exp(-raw) overflows for large negative raw."""
        raw = upcast(raw)
        small, safe = self._small(raw)
        upper = -1 / torch.expm1(-safe.abs()) - 1 / safe.abs()
        return torch.where(small, 0.5 + raw / 12 - raw**3 / 720, torch.where(raw > 0, upper, 1 - upper))

    def per_value(self, raw: Tensor, x: Tensor) -> Tensor:
        return super().per_value(raw, x) - self._log_normalizer(upcast(raw))

    def _log_normalizer(self, raw: Tensor) -> Tensor:
        """log C = log(raw / tanh(raw / 2)), an even function."""
        small, safe = self._small(raw)
        size, squares = safe.abs(), torch.where(small, raw, 0.0).square()
        far = size.log() - torch.log1p(-torch.exp(-size)) + torch.log1p(torch.exp(-size))
        return torch.where(small, math.log(2) + torch.log1p(squares / 12 - squares.square() / 720), far)

    def _small(self, raw: Tensor) -> tuple[Tensor, Tensor]:
        """Where the series is used, and `raw` with 1 there, so that no gradient becomes NaN."""
        small = raw.abs() < 0.1
        return small, torch.where(small, 1.0, raw)
