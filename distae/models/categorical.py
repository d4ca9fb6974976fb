"""A variational autoencoder with categorical codes."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from distae.config.models import CategoricalVAEConfig
from distae.losses import upcast
from distae.models.base import Batch, Codes, NetAutoencoder, Output, output, register
from distae.noise import Noise


@register(CategoricalVAEConfig)
class CategoricalVAE(NetAutoencoder):
    """Jang et al. 2017, eq. 2: -log p(x|z) + beta * sum_n KL(q(z_n|x) || uniform); z is a Gumbel-softmax sample.

    The KL is the exact one of the categorical variables. `encode` returns the most probable category of each variable, one-hot.
    """

    cfg: CategoricalVAEConfig

    def forward(self, batch: Batch, phase: str, noise: Noise) -> Output:
        logits = self.logits(batch.x, noise)
        z = self.relax(logits, batch.weight(self.cfg.temperature), noise)
        recon = self.decoder(z.flatten(1), noise)
        log_q = torch.log_softmax(logits, 2)
        nll = self.likelihood(recon, batch.x)
        kl = (log_q.exp() * (log_q + math.log(self.cfg.categories))).sum((1, 2))
        return output(nll + batch.weight(self.cfg.beta) * kl, recon, {"recon": nll, "kl": kl})

    def relax(self, logits: Tensor, temperature: float, noise: Noise) -> Tensor:
        """A sample on the simplex, `[B, N, categories]`, the nearer to a corner the lower the temperature."""
        tiny = torch.finfo(logits.dtype).tiny
        gumbel = -torch.log((-torch.log(noise.uniform(logits).clamp_min(tiny))).clamp_min(tiny))
        return torch.softmax((logits + gumbel) / temperature, 2)

    def encode(self, x: Tensor, label: Tensor | None = None) -> Codes:
        indices = self.logits(x, None).argmax(2)
        return Codes(self._corners(indices), indices=indices)

    @property
    def num_codes(self) -> int:
        return self.cfg.categories

    def from_indices(self, indices: Tensor) -> Tensor:
        return self._corners(indices)

    def sample(self, n: int, noise: Noise) -> Tensor:
        like = next(self.parameters()).new_empty(n, self.code_size // self.cfg.categories)
        return self.decode(self._corners((noise.uniform(like) * self.cfg.categories).long()))

    def logits(self, x: Tensor, noise: Noise | None) -> Tensor:
        """Unnormalised log-probabilities `[B, N, categories]` of `x` `[B, *shape]`."""
        return upcast(self.encoder(x, noise)).view(x.shape[0], -1, self.cfg.categories)

    def _corners(self, indices: Tensor) -> Tensor:
        return F.one_hot(indices, self.cfg.categories).flatten(1).to(next(self.parameters()).dtype)
