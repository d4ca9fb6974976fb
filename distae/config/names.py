"""Valid names in settings, known before torch is imported; plugins add theirs when they are loaded."""

from typing import Annotated, Any

from distae.config.fields import OneOf
from distae.registry import Registry

LIKELIHOODS: Registry[str, Any] = Registry("likelihood", ("bernoulli", "gaussian", "laplace"))
SCALED = {"gaussian", "laplace"}
"""Likelihoods that have --model.scale and --model.learn-scale."""
METRICS: Registry[str, Any] = Registry("metric", ("mse",))
"""Metrics that an evaluation reports besides the model's terms."""

LikelihoodName = Annotated[str, OneOf(LIKELIHOODS)]
