"""Names that settings may hold, known before torch is imported; plugins add theirs when they are loaded."""

from typing import Annotated, Any

from distae.config.fields import OneOf
from distae.registry import Registry

LIKELIHOODS: Registry[str, Any] = Registry("likelihood", ("bernoulli", "gaussian", "laplace"))
SCALED = {"gaussian", "laplace"}
"""Likelihoods that --model.scale and --model.learn-scale are for."""
METRICS: Registry[str, Any] = Registry("metric", ("mse",))
"""What an evaluation reports besides the terms of the model."""

LikelihoodName = Annotated[str, OneOf(LIKELIHOODS)]
