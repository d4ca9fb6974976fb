"""Variational autoencoders with a gaussian posterior and a standard normal prior."""

from abc import abstractmethod
from typing import NamedTuple

import torch
from torch import Tensor

from distae.config.models import (
    BetaTCVAEConfig,
    BetaVAEConfig,
    CapacityVAEConfig,
    DIPVAEConfig,
    InfoVAEConfig,
    VAEConfig,
)
from distae.config.models.vae import GaussianConfig
from distae.losses import kl_by_dimension, kl_standard_normal, log_normal, log_standard_normal, soft_bound, upcast
from distae.models.base import Batch, Codes, NetAutoencoder, Objective, Output, output, register
from distae.noise import Noise


class Posterior(NamedTuple):
    """q(z|x) = N(mu, diag exp logvar) and one sample of it, all `[B, code_size]`."""

    z: Tensor
    mu: Tensor
    logvar: Tensor

    @staticmethod
    def draw(mu: Tensor, logvar: Tensor, noise: Noise) -> "Posterior":
        return Posterior(mu + noise.normal(mu) * torch.exp(0.5 * logvar), mu, logvar)


class GaussianAutoencoder(NetAutoencoder):
    """A gaussian posterior q(z|x) from the encoder, a standard normal prior; the objective is left to subclasses."""

    cfg: GaussianConfig
    normal_prior = True
    latent_factor = 2

    def encode(self, x: Tensor, label: Tensor | None = None) -> Codes:
        mu, logvar = self.posterior(x, None)
        return Codes(mu, mu, logvar)

    def kl_of_dimensions(self, codes: Codes) -> Tensor | None:
        assert codes.mu is not None
        assert codes.logvar is not None
        return kl_by_dimension(codes.mu, codes.logvar)

    def log_weights(self, batch: Batch, k: int, noise: Noise) -> Tensor | None:
        codes = self.encode(batch.x, batch.label)
        assert codes.mu is not None
        assert codes.logvar is not None
        mu, logvar = codes.mu[:, None], codes.logvar[:, None]
        z = mu + noise.normal(mu.expand(-1, k, -1)) * torch.exp(0.5 * logvar)
        x, label = (None if t is None else t.repeat_interleave(k, 0) for t in (batch.x, batch.label))
        nll = self.likelihood(self.decode_raw(z.flatten(0, 1), label), x)
        log_q: Tensor = log_normal(z, mu, logvar).sum(2)
        log_joint: Tensor = (self.log_prior(z.flatten(0, 1)) - nll).view(-1, k)
        return log_joint - log_q

    def log_prior(self, z: Tensor) -> Tensor:
        """log p(z) in nats, `[B]` from `[B, code_size]`."""
        return log_standard_normal(z)

    def sample(self, n: int, noise: Noise) -> Tensor:
        return self.decode(self.prior(n, noise))

    def prior(self, n: int, noise: Noise) -> Tensor:
        """`n` codes from the prior: `[n, code_size]`."""
        return self.normal_codes(n, noise)

    def posterior(self, x: Tensor, noise: Noise | None) -> tuple[Tensor, Tensor]:
        """mu and logvar of q(z|x), each `[B, code_size]`."""
        mu, logvar = upcast(self.encoder(x, noise)).chunk(2, dim=1)
        return mu, soft_bound(logvar)


class GaussianVAE(GaussianAutoencoder):
    """-log p(x|z) + penalty(q(z|x)), one posterior sample; the family differs in the penalty."""

    def forward(self, batch: Batch, phase: str, noise: Noise) -> Output:
        return output(*self.objective(batch, noise))

    def objective(self, batch: Batch, noise: Noise) -> Objective:
        q = Posterior.draw(*self.posterior(batch.x, noise), noise)
        recon = self.decoder(q.z, noise)
        nll = self.likelihood(recon, batch.x)
        penalty, terms = self.penalty(q, batch, noise)
        return Objective(nll + penalty, recon, {"recon": nll, **terms})

    @abstractmethod
    def penalty(self, q: Posterior, batch: Batch, noise: Noise) -> tuple[Tensor, dict[str, Tensor]]:
        """The term added to -log p(x|z), and the terms to report of it, each `[B]` or a scalar over the global batch."""


@register(VAEConfig)
class VAE(GaussianVAE):
    """Kingma & Welling 2014, eq. 10, one posterior sample: -log p(x|z) + beta * KL(q(z|x) || N(0, I)), in nats per sample.

    With beta = 1 the negative ELBO; other weights are the beta-VAE of Higgins et al. 2017, eq. 4. With free bits, the sum over
    dimensions of max(free_bits, mean KL) replaces the KL (Kingma et al. 2016, eq. 15); the reported `kl` is still the KL.
    """

    cfg: VAEConfig

    def penalty(self, q: Posterior, batch: Batch, noise: Noise) -> tuple[Tensor, dict[str, Tensor]]:
        by_dimension = kl_by_dimension(q.mu, q.logvar)
        kl = by_dimension.sum(1)
        penalty = batch.mean(by_dimension).clamp_min(self.cfg.free_bits).sum() if self.cfg.free_bits else kl
        return batch.weight(self.cfg.beta) * penalty, {"kl": kl}


@register(BetaVAEConfig)
class BetaVAE(VAE):
    """Higgins et al. 2017, eq. 4: -log p(x|z) + beta * KL(q(z|x) || N(0, I))."""


@register(CapacityVAEConfig)
class CapacityVAE(GaussianVAE):
    """Burgess et al. 2018, eq. 8: -log p(x|z) + gamma * |KL - C|; KL is the mean over the global batch, C grows over training."""

    cfg: CapacityVAEConfig

    def penalty(self, q: Posterior, batch: Batch, noise: Noise) -> tuple[Tensor, dict[str, Tensor]]:
        kl = kl_standard_normal(q.mu, q.logvar)
        distance = (batch.mean(kl) - batch.weight(self.cfg.capacity)).abs()
        return batch.weight(self.cfg.gamma) * distance, {"kl": kl}


def log_stratified_weights(rows: Tensor, n: int, dataset_size: int) -> Tensor:
    """log of the weights `[B, n]` that estimate q(z) from a global batch of n, for the rows with indices `rows` `[B]` in it.

    Chen et al. 2018, eq. S6: 1/N for the sample itself, (N-M)/(NM) for one other, 1/M for the rest; M = n - 1, N = `dataset_size`.
    """
    if n == 1:
        return rows.new_zeros(len(rows), 1, dtype=torch.float64)
    others, total = n - 1, max(dataset_size, n)
    weights = torch.full((len(rows), n), 1 / others, dtype=torch.float64, device=rows.device)
    weights.scatter_(1, (rows % n)[:, None], 1 / total)
    weights.scatter_(1, ((rows + 1) % n)[:, None], (total - others) / (total * others))
    return weights.log()


@register(BetaTCVAEConfig)
class BetaTCVAE(GaussianVAE):
    """Chen et al. 2018, eq. 4: -log p(x|z) + alpha * I(z; n) + beta * TC(z) + gamma * sum_j KL(q(z_j) || p(z_j)).

    q(z) is estimated by minibatch stratified sampling over the global batch (app. C.2). Common code fills columns of the weight
    matrix where the equation has the diagonal (rtqichen/beta-tcvae, pull request 1); this follows the equation.
    """

    cfg: BetaTCVAEConfig

    def penalty(self, q: Posterior, batch: Batch, noise: Noise) -> tuple[Tensor, dict[str, Tensor]]:
        mu, logvar = batch.pool(q.mu), batch.pool(q.logvar)
        weights = log_stratified_weights(batch.global_indices, len(mu), batch.dataset_size).to(q.z.dtype)
        each = log_normal(q.z[:, None], mu, logvar)
        joint = torch.logsumexp(weights + each.sum(2), 1)
        product = torch.logsumexp(weights[:, :, None] + each, 1).sum(1)
        posterior, prior = log_normal(q.z, q.mu, q.logvar).sum(1), log_standard_normal(q.z)
        terms = {"mutual_information": posterior - joint, "total_correlation": joint - product, "dimension_kl": product - prior}
        weighed = zip((self.cfg.alpha, self.cfg.beta, self.cfg.gamma), terms.values(), strict=True)
        penalty = torch.stack([batch.weight(w) * t for w, t in weighed]).sum(0)
        return penalty, {"kl": kl_standard_normal(q.mu, q.logvar), **terms}


@register(DIPVAEConfig)
class DIPVAE(GaussianVAE):
    """Kumar et al. 2018, eq. 6 and 7: the negative ELBO + off_diagonal * sum_{i!=j} C_ij^2 + diagonal * sum_i (C_ii - 1)^2.

    C is the covariance of the posterior means over the global batch (variant I); II adds the mean posterior variance.
    """

    cfg: DIPVAEConfig

    def penalty(self, q: Posterior, batch: Batch, noise: Noise) -> tuple[Tensor, dict[str, Tensor]]:
        centred = q.mu - batch.mean(q.mu)
        covariance = batch.mean(centred[:, :, None] * centred[:, None, :])
        if self.cfg.variant == "II":
            covariance = covariance + torch.diag(batch.mean(q.logvar.exp()))
        variance = covariance.diagonal()
        off, diagonal = covariance.square().sum() - variance.square().sum(), (variance - 1).square().sum()
        kl = kl_standard_normal(q.mu, q.logvar)
        penalty = kl + batch.weight(self.cfg.off_diagonal) * off + batch.weight(self.cfg.diagonal) * diagonal
        return penalty, {"kl": kl, "off_diagonal": off, "diagonal": diagonal}


@register(InfoVAEConfig)
class InfoVAE(GaussianVAE):
    """Zhao et al. 2019, eq. 6: -log p(x|z) + (1 - alpha) * KL(q(z|x) || p(z)) + (alpha + lambda - 1) * MMD(q(z), p(z)).

    The MMD is between the codes of the global batch and as many samples of the prior.
    """

    cfg: InfoVAEConfig

    def penalty(self, q: Posterior, batch: Batch, noise: Noise) -> tuple[Tensor, dict[str, Tensor]]:
        kl = kl_standard_normal(q.mu, q.logvar)
        distance = batch.mmd(q.z, noise.normal(q.z), self.cfg.kernel, self.cfg.bandwidths)
        alpha, scale = batch.weight(self.cfg.alpha), batch.weight(self.cfg.lambda_)
        return (1 - alpha) * kl + (alpha + scale - 1) * distance, {"kl": kl, "mmd": distance}
