"""Variational autoencoders conditioned on labels."""

from dataclasses import dataclass
from typing import ClassVar

from distae.config.fields import Count
from distae.config.models.vae import VAEConfig


@dataclass(frozen=True, kw_only=True)
class CVAEConfig(VAEConfig):
    """Conditional VAE (Sohn 2015): encoder and decoder get the sample's label as input."""

    name: ClassVar[str] = "cvae"
    conditional: ClassVar[bool] = True

    classes: Count = 10
    """Number of labels: they are 0 to classes - 1."""
