"""Variational autoencoders with a gaussian posterior."""

import torch
from torch import Tensor

from distae.config.models import VAEConfig
from distae.losses import kl_standard_normal, soft_bound, wide
from distae.models.base import Autoencoder, Batch, Codes, Output, register
from distae.noise import Noise


@register(VAEConfig)
class VAE(Autoencoder):
    """Kingma & Welling 2014, eq. 10, one posterior sample: -log p(x|z) + beta * KL(q(z|x) || N(0, I)), in nats per sample.

    With beta = 1 the negative ELBO; other weights are the beta-VAE of Higgins et al. 2017, eq. 4.
    """

    cfg: VAEConfig
    latent_factor = 2

    def forward(self, batch: Batch, turn: str, noise: Noise) -> Output:
        mu, logvar = self._posterior(batch.x, noise)
        z = mu + noise.normal(mu) * torch.exp(0.5 * logvar)
        recon = self.decoder(z, noise)
        nll, kl = self.likelihood(recon, batch.x), kl_standard_normal(mu, logvar)
        loss = nll + self.cfg.beta * kl
        return Output(loss.mean(), {"loss": loss, "recon": nll, "kl": kl}, {}, recon)

    def encode(self, x: Tensor) -> Codes:
        mu, logvar = self._posterior(x, None)
        return Codes(mu, mu, logvar)

    def sample(self, n: int, noise: Noise) -> Tensor:
        like = next(self.parameters()).new_empty(n, self.cfg.latent_dim)
        return self.decode(noise.normal(like))

    def _posterior(self, x: Tensor, noise: Noise | None) -> tuple[Tensor, Tensor]:
        mu, logvar = wide(self.encoder(x, noise)).chunk(2, dim=1)
        return mu, soft_bound(logvar)
