"""Real values."""

import math

import torch
from torch import Tensor

from distae.losses.divergences import soft_bound, sum_per_sample, upcast
from distae.losses.likelihoods.base import Likelihood, register_likelihood


def gaussian(mean: Tensor, x: Tensor, log_scale: float | Tensor, scale: float | Tensor) -> Tensor:
    """-log N(x; mean, scale^2) of each value, in nats."""
    return (upcast(x) - upcast(mean)).square() * (0.5 / scale**2) + (log_scale + 0.5 * math.log(2 * math.pi))


@register_likelihood("gaussian")
class Gaussian(Likelihood):
    """raw is the mean; one standard deviation, fixed or learned as in Rybkin 2021, eq. 5."""

    def forward(self, raw: Tensor, x: Tensor) -> Tensor:
        mean, x, (log_scale, scale) = self.mean(raw), upcast(x), self.scale_values()
        squares = sum_per_sample((x - mean).square())
        return squares * (0.5 / scale**2) + x[0].numel() * (log_scale + 0.5 * math.log(2 * math.pi))

    def per_value(self, raw: Tensor, x: Tensor) -> Tensor:
        return gaussian(self.mean(raw), x, *self.scale_values())


@register_likelihood("sigmoid_gaussian")
class SigmoidGaussian(Gaussian):
    """The mean is sigmoid(raw): the squared error of an output in [0, 1], as many tutorials train it."""

    def mean(self, raw: Tensor) -> Tensor:
        return torch.sigmoid(upcast(raw))


@register_likelihood("gaussian_per_value")
class GaussianPerValue(Likelihood):
    """raw are a mean and a log-variance for each value (Kingma & Welling 2014, app. C.2), the latter bounded to (-10, 10)."""

    factor = 2

    def mean(self, raw: Tensor) -> Tensor:
        return upcast(raw.chunk(2, 1)[0])

    def per_value(self, raw: Tensor, x: Tensor) -> Tensor:
        mean, logvar = upcast(raw).chunk(2, 1)
        logvar = soft_bound(logvar)
        return 0.5 * ((upcast(x) - mean).square() * torch.exp(-logvar) + logvar + math.log(2 * math.pi))


@register_likelihood("laplace")
class Laplace(Likelihood):
    """raw is the mean; one scale b, fixed or learned."""

    def forward(self, raw: Tensor, x: Tensor) -> Tensor:
        raw, x, (log_scale, scale) = upcast(raw), upcast(x), self.scale_values()
        return sum_per_sample((x - raw).abs()) / scale + x[0].numel() * (log_scale + math.log(2))

    def per_value(self, raw: Tensor, x: Tensor) -> Tensor:
        log_scale, scale = self.scale_values()
        return (upcast(x) - upcast(raw)).abs() / scale + (log_scale + math.log(2))
