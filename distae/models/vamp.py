"""A variational autoencoder with a learned prior."""

import math

import torch
from torch import Tensor, nn

from distae.config.models import ModelConfig, VampVAEConfig
from distae.config.nets import NetConfig
from distae.losses import log_normal
from distae.models.base import Batch, Codes, register
from distae.models.vae import GaussianVAE, Posterior
from distae.noise import Noise


@register(VampVAEConfig)
class VampVAE(GaussianVAE):
    """Tomczak & Welling 2018, eq. 9: -log p(x|z) + beta * (log q(z|x) - log 1/K sum_k q(z|u_k)), K learned pseudo-inputs u_k.

    `kl` is the term that beta weights: a one-sample estimate.
    """

    cfg: VampVAEConfig
    normal_prior = False

    def __init__(self, cfg: ModelConfig, net: NetConfig, shape: tuple[int, ...]) -> None:
        super().__init__(cfg, net, shape)
        self.raw_inputs = nn.Parameter(torch.empty(self.cfg.components, *self.likelihood.raw_shape))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        nn.init.normal_(self.raw_inputs)

    def penalty(self, q: Posterior, batch: Batch, noise: Noise) -> tuple[Tensor, dict[str, Tensor]]:
        kl = log_normal(q.z, q.mu, q.logvar).sum(1) - self.log_prior(q.z)
        return batch.weight(self.cfg.beta) * kl, {"kl": kl}

    def kl_of_dimensions(self, codes: Codes) -> Tensor | None:
        return None  # the prior is a mixture

    def log_prior(self, z: Tensor) -> Tensor:
        each = log_normal(z[:, None], *self.posterior(self.pseudo_inputs(), None)).sum(2)
        return torch.logsumexp(each, 1) - math.log(self.cfg.components)

    def pseudo_inputs(self) -> Tensor:
        """u, `[K, *shape]` in the data's units."""
        return self.likelihood.mean(self.raw_inputs)

    def prior(self, n: int, noise: Noise) -> Tensor:
        mu, logvar = self.posterior(self.pseudo_inputs(), None)
        which = (noise.uniform(mu.new_empty(n, 1))[:, 0] * len(mu)).long()
        return Posterior.draw(mu[which], logvar[which], noise).z
