"""Variants that train a critic with the autoencoder."""

from dataclasses import dataclass
from typing import ClassVar

from distae.config.fields import Count, Positive
from distae.config.models.base import ModelConfig
from distae.config.models.vae import GaussianConfig
from distae.config.models.wasserstein import CodePriorConfig
from distae.config.names import TRAITS, Traits
from distae.config.nets import NetConfig
from distae.config.weights import Weight
from distae.errors import UserError


@dataclass(frozen=True, kw_only=True)
class CriticConfig(ModelConfig):
    """What the variants with a critic share."""

    critic_hidden: tuple[Count, ...] = (256, 256)
    """Hidden sizes of the critic."""
    critic_lr: Positive | None = None
    """Peak learning rate of the critic; by default that of the other parameters."""


@dataclass(frozen=True, kw_only=True)
class WAEGANConfig(CriticConfig, CodePriorConfig):
    """Wasserstein autoencoder (Tolstikhin 2018) with a critic that distinguishes codes from prior samples."""

    name: ClassVar[str] = "wae_gan"
    terms: ClassVar[tuple[str, ...]] = ("recon", "adversarial", "critic_loss", "critic_accuracy")

    weight: Weight = 10.0
    """Weight of the adversarial term."""


@dataclass(frozen=True, kw_only=True)
class AAEConfig(CriticConfig, CodePriorConfig):
    """Adversarial autoencoder (Makhzani 2016): a reconstruction phase, then critic and encoder are trained against each other."""

    name: ClassVar[str] = "aae"
    terms: ClassVar[tuple[str, ...]] = ("recon", "adversarial", "critic_loss", "critic_accuracy")

    critic_lr: Positive = 2e-4
    """Peak learning rate of the critic."""
    adversarial_lr: Positive = 2e-4
    """Peak learning rate of the encoder against the critic: about a fifth of --optim.lr. At equal rates the codes fit the prior
    worse and the reconstruction suffers."""


@dataclass(frozen=True, kw_only=True)
class FactorVAEConfig(CriticConfig, GaussianConfig):
    """FactorVAE (Kim & Mnih 2018): penalises the total correlation, by a critic that distinguishes codes from permuted codes."""

    name: ClassVar[str] = "factor_vae"
    terms: ClassVar[tuple[str, ...]] = ("recon", "kl", "total_correlation", "critic_loss", "critic_accuracy")

    gamma: Weight = 10.0
    """Weight of the total correlation."""

    @property
    def couples_samples(self) -> bool:
        return True


@dataclass(frozen=True, kw_only=True)
class VAEGANConfig(GaussianConfig):
    """VAE/GAN (Larsen 2016): the reconstruction error is on a discriminator's features, and the decoder is trained against it."""

    name: ClassVar[str] = "vaegan"
    terms: ClassVar[tuple[str, ...]] = ("recon", "kl", "features", "decoder_loss", "critic_loss", "critic_accuracy")

    gamma: Weight = 1.0
    """Weight of the feature distance in the decoder's loss, relative to the adversarial term."""
    features: Count = 64
    """Width of the discriminator's layer on which reconstructions are compared. Its network is the encoder's (--net)."""
    critic_lr: Positive | None = None
    """Peak learning rate of the discriminator; by default that of the other parameters."""

    def check(self, shape: tuple[int, ...], net: NetConfig) -> None:
        if self.learn_scale:
            raise UserError("--model.learn-scale: vaegan has no likelihood with a scale; leave it out")
        if not TRAITS.get(self.likelihood, Traits(plain=True)).plain or self.missing:
            plain = ", ".join(name for name, traits in TRAITS.items() if traits.plain)
            raise UserError(f"--model vaegan: valid with --model.likelihood {plain}, and no missing values")
