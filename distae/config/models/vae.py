"""Variational autoencoders with a Gaussian posterior."""

from dataclasses import dataclass
from typing import ClassVar, Literal

from distae.config.fields import NonNegative, Positive
from distae.config.models.base import ModelConfig
from distae.config.weights import Ramp, Weight


@dataclass(frozen=True, kw_only=True)
class GaussianConfig(ModelConfig):
    """What they share."""

    terms: ClassVar[tuple[str, ...]] = ("recon", "kl")
    generative: ClassVar[bool] = True


@dataclass(frozen=True, kw_only=True)
class WeighedKLConfig(GaussianConfig):
    """A KL term with a weight."""

    beta: Weight = 1.0
    """Weight of the KL term; 1 is the ELBO in nats per sample."""


@dataclass(frozen=True, kw_only=True)
class VAEConfig(GaussianConfig):
    """Variational autoencoder with a standard normal prior and a diagonal gaussian posterior."""

    name: ClassVar[str] = "vae"

    beta: Weight = 1.0
    """Weight of the KL term; 1 is the ELBO in nats per sample. 0:1@1000 warms it up over 1,000 steps, 0:1@1000x4 in
    four cycles (Fu 2019)."""
    free_bits: NonNegative = 0.0
    """Lower bound in nats of each dimension's KL in the loss, on the mean over the global batch (Kingma 2016, eq. 15)."""

    @property
    def couples_samples(self) -> bool:
        return self.free_bits > 0


@dataclass(frozen=True, kw_only=True)
class BetaVAEConfig(VAEConfig):
    """beta-VAE (Higgins 2017): a larger weight of the KL, for disentangled codes."""

    name: ClassVar[str] = "beta_vae"

    beta: Weight = 4.0
    """Weight of the KL term."""


@dataclass(frozen=True, kw_only=True)
class CapacityVAEConfig(GaussianConfig):
    """beta-VAE with controlled capacity (Burgess 2018): the batch's mean KL is kept at a growing target."""

    name: ClassVar[str] = "capacity_vae"

    gamma: Weight = 10.0
    """Weight of the absolute difference between KL and capacity."""
    capacity: Weight = Ramp("0:25@10000")
    """Target of the KL in nats."""

    @property
    def couples_samples(self) -> bool:
        return True


@dataclass(frozen=True, kw_only=True)
class BetaTCVAEConfig(GaussianConfig):
    """beta-TCVAE (Chen 2018): the KL in three parts, estimated over the global batch; with all weights 1 it is the ELBO."""

    name: ClassVar[str] = "beta_tc_vae"
    terms: ClassVar[tuple[str, ...]] = ("recon", "kl", "mutual_information", "total_correlation", "dimension_kl")

    alpha: Weight = 1.0
    """Weight of the mutual information between code and sample."""
    beta: Weight = 6.0
    """Weight of the total correlation of the code."""
    gamma: Weight = 1.0
    """Weight of the KL of each dimension from the prior."""

    @property
    def couples_samples(self) -> bool:
        return True


@dataclass(frozen=True, kw_only=True)
class DIPVAEConfig(GaussianConfig):
    """DIP-VAE (Kumar 2018): penalises the distance of the codes' covariance from the identity."""

    name: ClassVar[str] = "dip_vae"
    terms: ClassVar[tuple[str, ...]] = ("recon", "kl", "off_diagonal", "diagonal")

    variant: Literal["I", "II"] = "II"
    """I: covariance of the posterior means; II: of the codes themselves."""
    off_diagonal: Weight = 10.0
    """Weight of the squared covariances."""
    diagonal: Weight = 5.0
    """Weight of the squared distances of the variances from 1."""

    @property
    def couples_samples(self) -> bool:
        return True


@dataclass(frozen=True, kw_only=True)
class InfoVAEConfig(GaussianConfig):
    """InfoVAE (Zhao 2019): part of the KL is replaced by the maximum mean discrepancy of codes and prior."""

    name: ClassVar[str] = "info_vae"
    terms: ClassVar[tuple[str, ...]] = ("recon", "kl", "mmd")

    alpha: Weight = 0.5
    """Weight of the mutual information between code and sample; the KL keeps 1 - alpha."""
    lambda_: Weight = 100.0
    """Scale of the divergence of the codes from the prior: the MMD has weight alpha + lambda - 1."""
    kernel: Literal["rbf", "imq"] = "rbf"
    """Kernel of the MMD: gaussian, or inverse multiquadratic."""
    bandwidths: tuple[Positive, ...] = (1.0,)
    """Widths of the kernels that are summed, in standard deviations of the prior."""

    @property
    def couples_samples(self) -> bool:
        return True
