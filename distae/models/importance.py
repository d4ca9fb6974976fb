"""Variational autoencoders with bounds from several posterior samples."""

import math

import torch
from torch import Tensor

from distae.config.models import CIWAEConfig, IWAEConfig, MIWAEConfig, PIWAEConfig
from distae.losses import kl_standard_normal, log_normal, log_standard_normal
from distae.models.base import Batch, Output, Phase, output, parameters_except, register
from distae.models.vae import GaussianAutoencoder
from distae.noise import Noise


def bound(log_weights: Tensor) -> Tensor:
    """log(1/K sum_k w_k): `[...]` from log weights `[..., K]` (Burda 2016, eq. 8)."""
    return torch.logsumexp(log_weights, -1) - math.log(log_weights.shape[-1])


@register(IWAEConfig)
class IWAE(GaussianAutoencoder):
    """Burda et al. 2016, eq. 8: -log 1/K sum_k p(x, z_k) / q(z_k|x), z_k from the posterior. `recon` + `kl` is the -ELBO."""

    cfg: IWAEConfig
    bounds = 1

    def forward(self, batch: Batch, phase: str, noise: Noise) -> Output:
        mu, logvar = self.posterior(batch.x, noise)
        k = self.bounds * self.cfg.samples
        z = mu[:, None] + noise.normal(mu[:, None].expand(-1, k, -1)) * torch.exp(0.5 * logvar)[:, None]
        recon = self.decoder(z.flatten(0, 1), noise.times(k))
        nll = self.likelihood(recon, batch.x.repeat_interleave(k, 0)).view(-1, k)
        log_weights = log_standard_normal(z) - log_normal(z, mu[:, None], logvar[:, None]).sum(2) - nll
        loss = -self.objective(log_weights.view(-1, self.bounds, self.cfg.samples), phase)
        terms = {"recon": nll.mean(1), "kl": kl_standard_normal(mu, logvar)}
        return self.report(loss, recon.view(-1, k, *recon.shape[1:])[:, 0], phase, terms)

    def objective(self, log_weights: Tensor, phase: str) -> Tensor:
        """The bound to maximise, `[B]` from log importance weights `[B, bounds, samples]`."""
        return bound(log_weights).mean(1)

    def log_bound(self, batch: Batch, noise: Noise) -> Tensor:
        """The bound that the first phase maximises."""
        return -self(batch, self.phases()[0].name, noise).per_sample["loss"]  # type: ignore[no-any-return]

    def report(self, loss: Tensor, recon: Tensor, phase: str, terms: dict[str, Tensor]) -> Output:
        return output(loss, recon, terms)


@register(MIWAEConfig)
class MIWAE(IWAE):
    """Rainforth et al. 2018, eq. 10: the mean of M IWAE bounds of K samples each."""

    cfg: MIWAEConfig

    @property
    def bounds(self) -> int:  # type: ignore[override]
        return self.cfg.bounds


@register(CIWAEConfig)
class CIWAE(IWAE):
    """Rainforth et al. 2018, eq. 11: elbo_share * ELBO + (1 - elbo_share) * IWAE bound, of the same samples."""

    cfg: CIWAEConfig

    def objective(self, log_weights: Tensor, phase: str) -> Tensor:
        share = self.cfg.elbo_share
        return share * log_weights.mean((1, 2)) + (1 - share) * bound(log_weights).mean(1)


@register(PIWAEConfig)
class PIWAE(MIWAE):
    """Rainforth et al. 2018, sec. 5: the decoder follows the IWAE bound of all M*K samples, the encoder the MIWAE bound."""

    cfg: PIWAEConfig

    def phases(self) -> list[Phase]:
        encoder = list(self.encoder.parameters())
        return [Phase("decoder", parameters_except(self, encoder)), Phase("encoder", encoder)]

    def objective(self, log_weights: Tensor, phase: str) -> Tensor:
        return super().objective(log_weights, phase) if phase == "encoder" else bound(log_weights.flatten(1))

    def report(self, loss: Tensor, recon: Tensor, phase: str, terms: dict[str, Tensor]) -> Output:
        return output(loss, recon, terms) if phase == "decoder" else output(loss, recon, {}, "encoder_loss")
