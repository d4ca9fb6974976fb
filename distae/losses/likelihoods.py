"""Reconstruction likelihoods: -log p(x|z) per sample, summed over all values of a sample, in nats, in at least float32."""

import math
from collections.abc import Callable
from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from distae.config.models import ModelConfig
from distae.config.names import LIKELIHOODS, SCALED
from distae.losses.divergences import sum_per_sample, upcast


class Likelihood(nn.Module):
    """p(x|z), its parameters being the decoder's output `raw` `[B, *shape]`."""

    def __init__(self, cfg: ModelConfig) -> None:
        super().__init__()
        self.scale = cfg.scale
        self.log_scale = nn.Parameter(torch.tensor(math.log(cfg.scale))) if cfg.learn_scale else None

    def mean(self, raw: Tensor) -> Tensor:
        """Mean of p(x|z), in the data's units: `[B, *shape]`."""
        return upcast(raw)

    def forward(self, raw: Tensor, x: Tensor) -> Tensor:
        """-log p(x|z) in nats per sample: `[B]`."""
        raise NotImplementedError

    def scale_values(self) -> tuple[float, float] | tuple[Tensor, Tensor]:
        """The logarithm of the scale, and the scale.

        Numbers where it is fixed: each operation on a scalar tensor costs a tiny step 0.3%.
        """
        if self.log_scale is None:
            return math.log(self.scale), self.scale
        log_scale = upcast(self.log_scale)
        return log_scale, log_scale.exp()


L = TypeVar("L", bound=type[Likelihood])


def register_likelihood(name: str, scaled: bool = False) -> Callable[[L], L]:
    """Make a subclass of Likelihood known as `--model.likelihood NAME`; `scaled` where it uses --model.scale."""
    if scaled:
        SCALED.add(name)
    return LIKELIHOODS.register(name)


def build_likelihood(cfg: ModelConfig) -> Likelihood:
    """The likelihood that the settings name."""
    return LIKELIHOODS[cfg.likelihood](cfg)  # type: ignore[no-any-return]


@register_likelihood("bernoulli")
class Bernoulli(Likelihood):
    """Independent values in [0, 1]; raw are logits."""

    def mean(self, raw: Tensor) -> Tensor:
        return torch.sigmoid(upcast(raw))

    def forward(self, raw: Tensor, x: Tensor) -> Tensor:
        return sum_per_sample(F.binary_cross_entropy_with_logits(upcast(raw), upcast(x), reduction="none"))


@register_likelihood("gaussian", scaled=True)
class Gaussian(Likelihood):
    """raw is the mean; one standard deviation, fixed or learned as in Rybkin 2021, eq. 5."""

    def forward(self, raw: Tensor, x: Tensor) -> Tensor:
        raw, x, (log_scale, scale) = upcast(raw), upcast(x), self.scale_values()
        squares = sum_per_sample((x - raw).square())
        return squares * (0.5 / scale**2) + x[0].numel() * (log_scale + 0.5 * math.log(2 * math.pi))


@register_likelihood("laplace", scaled=True)
class Laplace(Likelihood):
    """raw is the mean; one scale b, fixed or learned."""

    def forward(self, raw: Tensor, x: Tensor) -> Tensor:
        raw, x, (log_scale, scale) = upcast(raw), upcast(x), self.scale_values()
        return sum_per_sample((x - raw).abs()) / scale + x[0].numel() * (log_scale + math.log(2))
