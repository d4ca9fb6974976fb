"""Autoencoders with a critic: each opponent has its own phase of the step, and its own optimizer."""

from math import prod

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from distae.config.models import AAEConfig, FactorVAEConfig, ModelConfig, VAEGANConfig, WAEGANConfig
from distae.config.nets import MLPConfig, NetConfig
from distae.losses import kl_standard_normal, upcast
from distae.models.base import Batch, Output, Phase, output, parameters_except, register
from distae.models.vae import GaussianAutoencoder, GaussianVAE, Posterior
from distae.models.wasserstein import CodePrior
from distae.nn import build_encoder
from distae.nn.layers import ACTIVATIONS
from distae.noise import Noise


def make_critic(hidden: tuple[int, ...], code_size: int) -> nn.Module:
    """A module from codes `[B, code_size]` to logits `[B, 1]`."""
    return build_encoder(MLPConfig(hidden=hidden, activation="leaky_relu"), (code_size,), 1)


def discriminator_loss(real: Tensor, fake: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    """-log D(real) - log(1 - D(fake)) in nats (Goodfellow 2014, eq. 1) and the critic's accuracy, each `[B]`, from logits `[B]`."""
    right = ((real > 0).to(real.dtype) + (fake < 0).to(real.dtype)) / 2
    return F.softplus(-real) + F.softplus(fake), {"critic_accuracy": right}


class LatentDiscriminator(CodePrior):
    """A critic D that is trained to separate samples of the prior from codes."""

    cfg: WAEGANConfig | AAEConfig

    def __init__(self, cfg: ModelConfig, net: NetConfig, shape: tuple[int, ...]) -> None:
        super().__init__(cfg, net, shape)
        self.critic = make_critic(self.cfg.critic_hidden, self.code_size)

    def phases(self) -> list[Phase]:
        critic = list(self.critic.parameters())
        return [Phase("autoencoder", parameters_except(self, critic)), Phase("critic", critic, self.cfg.critic_lr)]

    def judge(self, batch: Batch, noise: Noise) -> Output:
        z = upcast(self.encoder(batch.x, noise))
        loss, terms = discriminator_loss(self.logits(noise.normal(z)), self.logits(z))
        return output(loss, batch.x, terms, "critic_loss")

    def logits(self, z: Tensor) -> Tensor:
        """log D(z) / (1 - D(z)): `[B]`, above 0 where the critic takes z for a sample of the prior."""
        return upcast(self.critic(z, None))[:, 0]


@register(WAEGANConfig)
class WAEGAN(LatentDiscriminator):
    """Tolstikhin et al. 2018, algorithm 1. autoencoder: -log p(x|z) - weight * log D(z). critic: -log D(prior) - log(1 - D(z))."""

    cfg: WAEGANConfig

    def forward(self, batch: Batch, phase: str, noise: Noise) -> Output:
        if phase == "critic":
            return self.judge(batch, noise)
        z = upcast(self.encoder(batch.x, noise))
        recon = self.decoder(z, noise)
        nll, fooled = self.likelihood(recon, batch.x), F.softplus(-self.logits(z))
        return output(nll + batch.weight(self.cfg.weight) * fooled, recon, {"recon": nll, "adversarial": fooled})


@register(AAEConfig)
class AAE(LatentDiscriminator):
    """Makhzani et al. 2016, sec. 2. autoencoder: -log p(x|z). critic: -log D(prior) - log(1 - D(z)). encoder: -log D(z)."""

    cfg: AAEConfig

    def phases(self) -> list[Phase]:
        return [*super().phases(), Phase("encoder", list(self.encoder.parameters()), self.cfg.adversarial_lr)]

    def forward(self, batch: Batch, phase: str, noise: Noise) -> Output:
        if phase == "critic":
            return self.judge(batch, noise)
        z = upcast(self.encoder(batch.x, noise))
        if phase == "encoder":
            return output(F.softplus(-self.logits(z)), batch.x, {}, "adversarial")
        recon = self.decoder(z, noise)
        nll = self.likelihood(recon, batch.x)
        return output(nll, recon, {"recon": nll})


@register(FactorVAEConfig)
class FactorVAE(GaussianVAE):
    """Kim & Mnih 2018, algorithm 2. autoencoder: -log p(x|z) + KL + gamma * log D(z) / (1 - D(z)), the total correlation if D is
    optimal. critic: (-log D(z) - log(1 - D(z'))) / 2; z' are the codes of the global batch, each dimension permuted on its own.

    The paper permutes the codes of a second batch; like most code, this draws new codes of the same batch instead.
    """

    cfg: FactorVAEConfig

    def __init__(self, cfg: ModelConfig, net: NetConfig, shape: tuple[int, ...]) -> None:
        super().__init__(cfg, net, shape)
        self.critic = make_critic(self.cfg.critic_hidden, self.code_size)

    def phases(self) -> list[Phase]:
        critic = list(self.critic.parameters())
        return [Phase("autoencoder", parameters_except(self, critic)), Phase("critic", critic, self.cfg.critic_lr)]

    def forward(self, batch: Batch, phase: str, noise: Noise) -> Output:
        return super().forward(batch, phase, noise) if phase == "autoencoder" else self.judge(batch, noise)

    def penalty(self, q: Posterior, batch: Batch, noise: Noise) -> tuple[Tensor, dict[str, Tensor]]:
        kl, correlation = kl_standard_normal(q.mu, q.logvar), self.logits(q.z)
        return kl + batch.weight(self.cfg.gamma) * correlation, {"kl": kl, "total_correlation": correlation}

    def judge(self, batch: Batch, noise: Noise) -> Output:
        z = Posterior.draw(*self.posterior(batch.x, noise), noise).z
        pooled = batch.pool(z)
        columns = [column[noise.permutation(len(pooled))] for column in pooled.unbind(1)]
        permuted = torch.stack(columns, 1)[batch.global_indices % len(pooled)]
        loss, terms = discriminator_loss(self.logits(z), self.logits(permuted))
        return output(loss / 2, batch.x, terms, "critic_loss")

    def logits(self, z: Tensor) -> Tensor:
        """log D(z) / (1 - D(z)): `[B]`, above 0 where the critic takes z for a code, below 0 for a permuted one."""
        return upcast(self.critic(z, None))[:, 0]


class Discriminator(nn.Module):
    """Features from a network like the encoder, `[B, features]` (or `features` per position), and a logit `[B]` computed from them,
    above 0 for real samples."""

    def __init__(self, net: NetConfig, shape: tuple[int, ...], features: int) -> None:
        super().__init__()
        self.body, self.head = build_encoder(net, shape, features), nn.Linear(prod(net.code_shape(shape, features)), 1)
        self.activation = ACTIVATIONS[net.activation]

    def forward(self, x: Tensor, noise: Noise) -> tuple[Tensor, Tensor]:
        features = self.body(x, noise)
        return upcast(features), upcast(self.head(self.activation(features)))[:, 0]


@register(VAEGANConfig)
class VAEGAN(GaussianAutoencoder):
    """Larsen et al. 2016, algorithm 1, d = |f(x) - f(y)|^2 / 2. encoder: KL + d. decoder: gamma * d - log D(y) - log D(s).
    critic: -log D(x) - log(1 - D(y)) - log(1 - D(s)).

    y is the reconstruction, s a decoded sample of the prior, f a layer of the critic D. The decoder uses the non-saturating form of
    the adversarial loss (Goodfellow 2014). `recon` is only reported.
    """

    cfg: VAEGANConfig

    def __init__(self, cfg: ModelConfig, net: NetConfig, shape: tuple[int, ...]) -> None:
        super().__init__(cfg, net, shape)
        self.critic = Discriminator(net, shape, self.cfg.features)

    def phases(self) -> list[Phase]:
        encoder, critic = list(self.encoder.parameters()), list(self.critic.parameters())
        return [
            Phase("encoder", encoder),
            Phase("decoder", list(self.decoder.parameters())),
            Phase("critic", critic, self.cfg.critic_lr),
        ]

    def forward(self, batch: Batch, phase: str, noise: Noise) -> Output:
        q = Posterior.draw(*self.posterior(batch.x, noise), noise)
        recon = self.decoder(q.z, noise)
        real_features, real_logits = self.critic(batch.x, noise)
        recon_features, recon_logits = self.critic(self.likelihood.mean(recon), noise)
        distance = 0.5 * (real_features - recon_features).square().sum(1)
        if phase == "encoder":
            kl, nll = kl_standard_normal(q.mu, q.logvar), self.likelihood(recon, batch.x)
            return output(kl + distance, recon, {"recon": nll, "kl": kl, "features": distance})
        _, sample_logits = self.critic(self.likelihood.mean(self.decoder(noise.normal(q.z), noise)), noise)
        if phase == "decoder":
            fooled = F.softplus(-recon_logits) + F.softplus(-sample_logits)
            return output(batch.weight(self.cfg.gamma) * distance + fooled, recon, {}, "decoder_loss")
        loss, terms = discriminator_loss(real_logits, recon_logits)
        return output(loss + F.softplus(sample_logits), recon, terms, "critic_loss")
