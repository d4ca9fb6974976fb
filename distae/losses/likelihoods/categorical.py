"""Categories, one-hot; and the columns of a table, each of its own kind."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from distae.config.models import ModelConfig
from distae.losses.divergences import upcast
from distae.losses.likelihoods.base import Likelihood, register_likelihood
from distae.losses.likelihoods.continuous import gaussian


@register_likelihood("categorical")
class Categorical(Likelihood):
    """One category, all values of the sample being its one-hot code: the cross entropy with softmax(raw)."""

    def mean(self, raw: Tensor) -> Tensor:
        return self._log_probabilities(raw).exp()

    def per_value(self, raw: Tensor, x: Tensor) -> Tensor:
        return -upcast(x) * self._log_probabilities(raw)

    def _log_probabilities(self, raw: Tensor) -> Tensor:
        return F.log_softmax(upcast(raw).flatten(1), 1).view_as(raw)


@register_likelihood("mixed")
class Mixed(Likelihood):
    """Columns of --model.columns: numeric ones are gaussian, binary ones bernoulli, categories the cross entropy of a softmax.

    The form of Nazabal 2020 (HI-VAE), sec. 4.1, with one scale for all numeric columns.
    """

    def __init__(self, cfg: ModelConfig, shape: tuple[int, ...] = ()) -> None:
        super().__init__(cfg, shape)
        groups = [column.split(":") for column in cfg.columns]
        self.kinds, self.sizes = [kind for kind, _ in groups], [int(size) for _, size in groups]

    def mean(self, raw: Tensor) -> Tensor:
        of: dict[str, Callable[[Tensor], Tensor]] = {
            "numeric": upcast,
            "binary": torch.sigmoid,
            "categorical": lambda logits: torch.softmax(logits, 1),
        }
        return torch.cat([of[kind](part) for kind, part in zip(self.kinds, self._split(upcast(raw)), strict=True)], 1)

    def per_value(self, raw: Tensor, x: Tensor) -> Tensor:
        scale = self.scale_values()
        of: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
            "numeric": lambda raw, x: gaussian(raw, x, *scale),
            "binary": lambda raw, x: F.binary_cross_entropy_with_logits(raw, x, reduction="none"),
            "categorical": lambda raw, x: -x * F.log_softmax(raw, 1),
        }
        groups = zip(self.kinds, self._split(upcast(raw)), self._split(upcast(x)), strict=True)
        return torch.cat([of[kind](part, values) for kind, part, values in groups], 1)

    def _split(self, values: Tensor) -> tuple[Tensor, ...]:
        """`[B, D]` by groups of columns."""
        return torch.split(values, self.sizes, 1)
