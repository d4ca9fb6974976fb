"""The variants, one file per family."""

from distae.models import ae, vae
from distae.models.base import Autoencoder, Batch, Codes, Output, Turn, build, register, registry

__all__ = ["Autoencoder", "Batch", "Codes", "Output", "Turn", "ae", "build", "register", "registry", "vae"]
