"""Reconstruction likelihoods: -log p(x|z) per sample, summed over all values of a sample, in nats, in at least float32."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from distae.config.models import ModelConfig
from distae.losses.divergences import sum_per_sample, upcast


class Likelihood(nn.Module):
    """p(x|z), its parameters being the decoder's output `raw` `[B, *shape]`.

    bernoulli: raw are logits. gaussian and laplace: raw is the mean, with one scale (fixed, or learned as in Rybkin 2021, eq. 5).
    """

    def __init__(self, cfg: ModelConfig) -> None:
        super().__init__()
        self.kind, self.scale = cfg.likelihood, cfg.scale
        self.log_scale = nn.Parameter(torch.tensor(math.log(cfg.scale))) if cfg.learn_scale else None

    def _scale(self) -> tuple[float, float] | tuple[Tensor, Tensor]:
        """Its logarithm, and itself. Numbers where it is fixed: each operation on a scalar tensor costs a tiny step 0.3%."""
        if self.log_scale is None:
            return math.log(self.scale), self.scale
        log_scale = upcast(self.log_scale)
        return log_scale, log_scale.exp()

    def mean(self, raw: Tensor) -> Tensor:
        """Mean of p(x|z), in the data's units: `[B, *shape]`."""
        return torch.sigmoid(upcast(raw)) if self.kind == "bernoulli" else upcast(raw)

    def forward(self, raw: Tensor, x: Tensor) -> Tensor:
        """-log p(x|z) in nats per sample: `[B]`."""
        raw, x = upcast(raw), upcast(x)
        if self.kind == "bernoulli":
            return sum_per_sample(F.binary_cross_entropy_with_logits(raw, x, reduction="none"))
        size = x[0].numel()
        log_scale, scale = self._scale()
        if self.kind == "gaussian":
            squares = sum_per_sample((x - raw).square())
            return squares * (0.5 / scale**2) + size * (log_scale + 0.5 * math.log(2 * math.pi))
        return sum_per_sample((x - raw).abs()) / scale + size * (log_scale + math.log(2))
