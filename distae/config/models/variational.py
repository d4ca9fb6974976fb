"""Settings of the variational autoencoders whose posterior is a diagonal gaussian and whose prior is standard normal."""

from dataclasses import dataclass
from typing import ClassVar, Literal

from distae.config.fields import Count, Fraction, NonNegative, Positive
from distae.config.models.base import ModelConfig
from distae.config.weights import Ramp, Weight


@dataclass(frozen=True, kw_only=True)
class GaussianConfig(ModelConfig):
    """What they share."""

    terms: ClassVar[tuple[str, ...]] = ("recon", "kl")
    generative: ClassVar[bool] = True


@dataclass(frozen=True, kw_only=True)
class VAEConfig(GaussianConfig):
    """Variational autoencoder with a standard normal prior and a diagonal gaussian posterior."""

    name: ClassVar[str] = "vae"

    beta: Weight = 1.0
    """Weight of the KL term; 1 is the ELBO in nats per sample. 0:1@1000 warms it up over 1,000 steps, 0:1@1000x4 in
    four cycles (Fu 2019)."""
    free_bits: NonNegative = 0.0
    """Nats per code dimension, on the mean over the global batch, below which the KL costs the same (Kingma 2016, eq. 15)."""

    @property
    def couples_samples(self) -> bool:
        return self.free_bits > 0


@dataclass(frozen=True, kw_only=True)
class BetaVAEConfig(VAEConfig):
    """beta-VAE (Higgins 2017): a KL term of more weight, for disentangled codes."""

    name: ClassVar[str] = "beta_vae"

    beta: Weight = 4.0
    """Weight of the KL term."""


@dataclass(frozen=True, kw_only=True)
class CapacityVAEConfig(GaussianConfig):
    """beta-VAE with controlled capacity (Burgess 2018): the batch's mean KL is held at a value that grows."""

    name: ClassVar[str] = "capacity_vae"

    gamma: Weight = 10.0
    """Weight of the distance between KL and capacity."""
    capacity: Weight = Ramp("0:25@10000")
    """Nats of KL aimed at."""

    @property
    def couples_samples(self) -> bool:
        return True


@dataclass(frozen=True, kw_only=True)
class BetaTCVAEConfig(GaussianConfig):
    """beta-TCVAE (Chen 2018): the KL term in three parts, estimated over the global batch; all weights 1 is the ELBO."""

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
    """DIP-VAE (Kumar 2018): the covariance of the codes is drawn to the identity."""

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
    """Scale of the divergence of the codes from the prior: the MMD weighs alpha + lambda - 1."""
    kernel: Literal["rbf", "imq"] = "rbf"
    """Kernel of the MMD: gaussian, or inverse multiquadratic."""
    bandwidths: tuple[Positive, ...] = (1.0,)
    """Widths of the kernels that are summed, in standard deviations of the prior."""

    @property
    def couples_samples(self) -> bool:
        return True


@dataclass(frozen=True, kw_only=True)
class CVAEConfig(VAEConfig):
    """Conditional VAE (Sohn 2015): encoder and decoder are given the sample's label."""

    name: ClassVar[str] = "cvae"
    conditional: ClassVar[bool] = True

    classes: Count = 10
    """Number of labels: they are 0 to classes - 1."""


@dataclass(frozen=True, kw_only=True)
class IWAEConfig(GaussianConfig):
    """Importance weighted autoencoder (Burda 2016): a bound that is tighter the more samples it takes."""

    name: ClassVar[str] = "iwae"

    samples: Count = 5
    """Posterior samples K of the bound."""


@dataclass(frozen=True, kw_only=True)
class MIWAEConfig(IWAEConfig):
    """Mean of several IWAE bounds (Rainforth 2018)."""

    name: ClassVar[str] = "miwae"

    bounds: Count = 4
    """Number M of bounds, each of --model.samples samples."""


@dataclass(frozen=True, kw_only=True)
class PIWAEConfig(MIWAEConfig):
    """Partially importance weighted autoencoder (Rainforth 2018): the decoder is trained on one IWAE bound of all samples, the
    encoder on the mean of several."""

    name: ClassVar[str] = "piwae"
    terms: ClassVar[tuple[str, ...]] = ("recon", "kl", "encoder_loss")


@dataclass(frozen=True, kw_only=True)
class CIWAEConfig(IWAEConfig):
    """Combination of ELBO and IWAE bound (Rainforth 2018)."""

    name: ClassVar[str] = "ciwae"

    elbo_share: Fraction = 0.5
    """Share of the ELBO; the IWAE bound has the rest."""
