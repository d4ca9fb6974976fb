"""Counts: integers from 0 on, such as molecules of a cell, words of a document, or what a user has watched."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from distae.config.models import ModelConfig
from distae.losses.divergences import soft_bound, upcast
from distae.losses.likelihoods.base import Likelihood, register_likelihood

SMALLEST_TOTAL = 1e-8
"""A sample without any count has this total, so that its logarithm is finite."""


class Counts(Likelihood):
    """Expected counts are softmax(raw) times the sample's observed total, or exp(raw) with --model.count-rate exp."""

    def __init__(self, cfg: ModelConfig, shape: tuple[int, ...] = ()) -> None:
        super().__init__(cfg, shape)
        self.shares, self.total = cfg.count_rate == "softmax", cfg.total

    def log_shares(self, raw: Tensor) -> Tensor:
        """Logarithm of the expected counts of a sample of total 1, or with exp of any sample: `[B, *shape]`."""
        logits = upcast(raw.chunk(self.factor, 1)[0])
        return F.log_softmax(logits.flatten(1), 1).view_as(logits) if self.shares else soft_bound(logits, 20.0)

    def log_rate(self, raw: Tensor, x: Tensor) -> Tensor:
        """Logarithm of the expected counts, `[B, *shape]`."""
        return self.log_shares(raw) + (_total(x).clamp_min(SMALLEST_TOTAL).log() if self.shares else 0.0)

    def mean(self, raw: Tensor) -> Tensor:
        return self.log_shares(raw).exp() * (self.total if self.shares else 1.0)

    def matched(self, mean: Tensor, x: Tensor) -> Tensor:
        return mean * (_total(x) / self.total) if self.shares else mean


@register_likelihood("poisson")
class Poisson(Counts):
    """Independent Poisson counts."""

    def per_value(self, raw: Tensor, x: Tensor) -> Tensor:
        x, log_rate = upcast(x), self.log_rate(raw, x)
        return log_rate.exp() - x * log_rate + torch.lgamma(x + 1)


@register_likelihood("nb")
class NegativeBinomial(Counts):
    """Negative binomial counts of mean mu and inverse dispersion theta, variance mu + mu^2 / theta (Lopez 2018, eq. 3).

    log theta is a parameter per feature, or an output of the decoder (--model.dispersion), bounded to (-10, 10).
    """

    def __init__(self, cfg: ModelConfig, shape: tuple[int, ...] = ()) -> None:
        super().__init__(cfg, shape)
        own = cfg.dispersion == "feature"
        self.log_theta = nn.Parameter(torch.zeros(shape)) if own else None
        self.factor = type(self).factor + (not own)

    def log_dispersion(self, raw: Tensor) -> Tensor:
        """log theta, `[*shape]` or `[B, *shape]`."""
        return soft_bound(upcast(raw.chunk(self.factor, 1)[-1] if self.log_theta is None else self.log_theta))

    def log_prob(self, raw: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        """log NB(x) and log NB(0), each `[B, *shape]`."""
        log_mu, log_theta = self.log_rate(raw, x), self.log_dispersion(raw)
        theta, log_sum = log_theta.exp(), torch.logaddexp(log_mu, log_theta)
        log_zero = theta * (log_theta - log_sum)
        constant = torch.lgamma(x + theta) - torch.lgamma(theta) - torch.lgamma(x + 1)
        return constant + log_zero + x * (log_mu - log_sum), log_zero

    def per_value(self, raw: Tensor, x: Tensor) -> Tensor:
        return -self.log_prob(raw, upcast(x))[0]


@register_likelihood("zinb")
class ZeroInflatedNegativeBinomial(NegativeBinomial):
    """A negative binomial count, or 0 with probability pi, whose logit is a further output (Lopez 2018, eq. 4)."""

    factor = 2

    def mean(self, raw: Tensor) -> Tensor:
        return super().mean(raw) * torch.sigmoid(-self._logit(raw))

    def per_value(self, raw: Tensor, x: Tensor) -> Tensor:
        x, logit = upcast(x), self._logit(raw)
        log_nb, log_zero = self.log_prob(raw, x)
        return F.softplus(logit) - torch.where(x > 0, log_nb, torch.logaddexp(logit, log_zero))

    def _logit(self, raw: Tensor) -> Tensor:
        return upcast(raw.chunk(self.factor, 1)[1])


@register_likelihood("multinomial")
class Multinomial(Counts):
    """The sample's counts, given their total: log n! - sum log x_j! + sum x_j log softmax(raw)_j.

    Liang 2018, eq. 2 (Mult-VAE), which leaves out the first two terms; they do not depend on the model.
    """

    def __init__(self, cfg: ModelConfig, shape: tuple[int, ...] = ()) -> None:
        super().__init__(cfg, shape)
        self.shares = True

    def per_value(self, raw: Tensor, x: Tensor) -> Tensor:
        """log n! is shared by the values in equal parts."""
        x = upcast(x)
        return torch.lgamma(x + 1) - x * self.log_shares(raw) - torch.lgamma(_total(x) + 1) / x[0].numel()


def _total(x: Tensor) -> Tensor:
    """Sum of each sample, `[B, 1, ...]`."""
    return upcast(x).flatten(1).sum(1).view(-1, *[1] * (x.ndim - 1))
