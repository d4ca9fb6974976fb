"""The variants, one file per family."""

from distae.models import adversarial, ae, conditional, importance, quantized, smooth, vae, wasserstein
from distae.models.base import Autoencoder, Batch, Codes, Output, Turn, build, output, register, registry

__all__ = [
    "Autoencoder",
    "Batch",
    "Codes",
    "Output",
    "Turn",
    "adversarial",
    "ae",
    "build",
    "conditional",
    "importance",
    "output",
    "quantized",
    "register",
    "registry",
    "smooth",
    "vae",
    "wasserstein",
]
