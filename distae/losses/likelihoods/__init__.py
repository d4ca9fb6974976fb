"""Reconstruction likelihoods, a file for each family: -log p(x|z) per sample, in nats."""

from distae.config.registry import import_all
from distae.losses.likelihoods import binary, categorical, continuous, counts, mixture
from distae.losses.likelihoods.base import Likelihood, build_likelihood, register_likelihood

__all__ = [
    "Likelihood",
    "binary",
    "build_likelihood",
    "categorical",
    "continuous",
    "counts",
    "mixture",
    "register_likelihood",
]

import_all(__name__)
