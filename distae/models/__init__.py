"""The variants, one file per family."""

from distae import deprecation
from distae.config.registry import import_all
from distae.models import (
    adversarial,
    ae,
    categorical,
    conditional,
    flow,
    hierarchy,
    importance,
    masked,
    quantized,
    similarity,
    smooth,
    sparse_dictionary,
    sparse_penalty,
    sphere,
    vae,
    vamp,
    wasserstein,
)
from distae.models.base import Autoencoder, Batch, Codes, NetAutoencoder, Output, Phase, build, output, register, registry

__all__ = [
    "Autoencoder",
    "Batch",
    "Codes",
    "NetAutoencoder",
    "Output",
    "Phase",
    "adversarial",
    "ae",
    "build",
    "categorical",
    "conditional",
    "flow",
    "hierarchy",
    "importance",
    "masked",
    "output",
    "quantized",
    "register",
    "registry",
    "similarity",
    "smooth",
    "sparse_dictionary",
    "sparse_penalty",
    "sphere",
    "vae",
    "vamp",
    "wasserstein",
]

__getattr__ = deprecation.renamed(__name__, {"Turn": ("Phase", Phase)})

import_all(__name__)
