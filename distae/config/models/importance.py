"""Importance-weighted bounds."""

from dataclasses import dataclass
from typing import ClassVar

from distae.config.fields import Count, Fraction
from distae.config.models.vae import GaussianConfig


@dataclass(frozen=True, kw_only=True)
class IWAEConfig(GaussianConfig):
    """Importance weighted autoencoder (Burda 2016): a bound that is tighter with more samples."""

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
