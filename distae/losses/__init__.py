"""Likelihoods and divergences."""

from distae import deprecation
from distae.losses.divergences import (
    KERNELS,
    kl_by_dimension,
    kl_normal,
    kl_standard_normal,
    log_normal,
    log_normal_pairs,
    log_standard_normal,
    mmd,
    sliced_wasserstein,
    soft_bound,
    squared_distances,
    sum_per_sample,
    upcast,
)
from distae.losses.likelihoods import Likelihood, build_likelihood, register_likelihood

__all__ = [
    "KERNELS",
    "Likelihood",
    "build_likelihood",
    "kl_by_dimension",
    "kl_normal",
    "kl_standard_normal",
    "log_normal",
    "log_normal_pairs",
    "log_standard_normal",
    "mmd",
    "register_likelihood",
    "sliced_wasserstein",
    "soft_bound",
    "squared_distances",
    "sum_per_sample",
    "upcast",
]

__getattr__ = deprecation.renamed(__name__, {"wide": ("upcast", upcast)})
