"""The variants, one file per family."""

from distae.models import ae, conditional, importance, smooth, vae
from distae.models.base import Autoencoder, Batch, Codes, Output, Turn, build, output, register, registry

__all__ = [
    "Autoencoder",
    "Batch",
    "Codes",
    "Output",
    "Turn",
    "ae",
    "build",
    "conditional",
    "importance",
    "output",
    "register",
    "registry",
    "smooth",
    "vae",
]
