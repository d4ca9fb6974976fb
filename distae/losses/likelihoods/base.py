"""What every likelihood is: -log p(x|z) per sample, summed over all values of a sample, in nats, in at least float32."""

import math
from collections.abc import Callable
from typing import Literal, TypeVar

import torch
from torch import Tensor, nn

from distae.config.models import ModelConfig
from distae.config.names import LIKELIHOODS, TRAITS, Traits
from distae.errors import UserError
from distae.losses.divergences import sum_per_sample, upcast


class Likelihood(nn.Module):
    """p(x|z), its parameters being the decoder's output `raw` `[B, *raw_shape]`. Define `per_value`, or `forward`."""

    factor: int = 1
    """Outputs of the decoder per value: blocks of channels, one after the other."""

    def __init__(self, cfg: ModelConfig, shape: tuple[int, ...] = ()) -> None:
        """`shape` is that of a sample."""
        super().__init__()
        self.shape, self.scale = shape, cfg.scale
        self.log_scale = nn.Parameter(torch.tensor(math.log(cfg.scale))) if cfg.learn_scale else None

    @property
    def raw_shape(self) -> tuple[int, ...]:
        """Shape of the decoder's output for a sample: `(factor * channels, ...)` unless the likelihood says otherwise."""
        return (self.factor * self.shape[0], *self.shape[1:])

    def mean(self, raw: Tensor) -> Tensor:
        """Mean of p(x|z), in the data's units: `[B, *shape]`. Of counts, for a sample that sums to --model.total."""
        return upcast(raw)

    def matched(self, mean: Tensor, x: Tensor) -> Tensor:
        """`mean` `[B, *shape]` rescaled to the totals of `x` `[B, *shape]`; only likelihoods of counts change it."""
        return mean

    def per_value(self, raw: Tensor, x: Tensor) -> Tensor:
        """-log p of each value in nats, `[B, *shape]`, which sum to `forward`."""
        raise NotImplementedError

    def forward(self, raw: Tensor, x: Tensor) -> Tensor:
        """-log p(x|z) in nats per sample: `[B]`."""
        return sum_per_sample(self.per_value(raw, x))

    def scale_values(self) -> tuple[float, float] | tuple[Tensor, Tensor]:
        """The logarithm of the scale, and the scale.

        Numbers where it is fixed: each operation on a scalar tensor costs a tiny step 0.3%.
        """
        if self.log_scale is None:
            return math.log(self.scale), self.scale
        log_scale = upcast(self.log_scale)
        return log_scale, log_scale.exp()


class Observed(Likelihood):
    """A likelihood of only the values that are not missing (NaN): -log p(observed|z) (Mattei & Frellsen 2019, eq. 1)."""

    def __init__(self, whole: Likelihood, cfg: ModelConfig) -> None:
        super().__init__(cfg, whole.shape)
        self.log_scale, self.whole = None, whole

    @property
    def raw_shape(self) -> tuple[int, ...]:
        return self.whole.raw_shape

    def mean(self, raw: Tensor) -> Tensor:
        return self.whole.mean(raw)

    def matched(self, mean: Tensor, x: Tensor) -> Tensor:
        return self.whole.matched(mean, x.nan_to_num(0.0))

    def per_value(self, raw: Tensor, x: Tensor) -> Tensor:
        return self.whole.per_value(raw, x.nan_to_num(0.0)) * ~x.isnan()


L = TypeVar("L", bound=type[Likelihood])


def register_likelihood(
    name: str, scaled: bool = False, support: Literal["real", "unit", "counts", "onehot"] = "real"
) -> Callable[[L], L]:
    """Make a subclass of Likelihood known as `--model.likelihood NAME`.

    `scaled`: whether it uses --model.scale; `support`: which values data may have (config/names.py), checked before training.
    """

    def bind(likelihood: L) -> L:
        plain = likelihood.factor == 1 and likelihood.raw_shape is Likelihood.raw_shape
        TRAITS.setdefault(name, Traits(scaled, support, plain))
        return LIKELIHOODS.register(name)(likelihood)

    return bind


def build_likelihood(cfg: ModelConfig, shape: tuple[int, ...] = ()) -> Likelihood:
    """The likelihood of the settings for samples of `shape`. Raises UserError if --model.missing is set and it cannot be used."""
    made: Likelihood = LIKELIHOODS[cfg.likelihood](cfg, shape)
    if not cfg.missing:
        return made
    if type(made).per_value is Likelihood.per_value:
        raise UserError(
            f"--model.likelihood {cfg.likelihood} cannot be used with missing values (--model.missing): it is not a sum over values"
        )
    return Observed(made, cfg)
