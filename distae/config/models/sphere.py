"""Codes on a sphere."""

from dataclasses import dataclass
from typing import Annotated, ClassVar

from msgspec import Meta

from distae.config.models.vae import WeighedKLConfig


@dataclass(frozen=True, kw_only=True)
class SVAEConfig(WeighedKLConfig):
    """Hyperspherical VAE (Davidson 2018): codes of length 1, von Mises-Fisher posterior, uniform prior."""

    name: ClassVar[str] = "svae"
    fitted_priors: ClassVar[tuple[str, ...]] = ()  # whose codes would be off the sphere

    latent_dim: Annotated[int, Meta(ge=2)] = 10
    """Size of the code, a point of the sphere in that many dimensions."""
