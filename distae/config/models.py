"""Settings of every model variant. The class in distae/models bound to one by @register holds its equations."""

from dataclasses import dataclass
from typing import ClassVar, Literal

from distae.config.fields import Count, NonNegative, Positive, Variant


@dataclass(frozen=True, kw_only=True)
class ModelConfig(Variant):
    """What all variants share."""

    terms: ClassVar[tuple[str, ...]] = ("recon",)
    """Names of the loss terms that the variant reports besides `loss`."""
    generative: ClassVar[bool] = False
    """Has a prior to sample from."""

    latent_dim: Count = 16
    """Size of the code z."""
    likelihood: Literal["bernoulli", "gaussian", "laplace"] = "bernoulli"
    """p(x|z), summed over all values of a sample, in nats. bernoulli needs data in [0, 1] (grey values count as
    probabilities unless --data.binarize); gaussian is the squared error in nats; laplace the absolute error (l1)."""
    scale: Positive = 1.0
    """Standard deviation of the gaussian, or b of the laplace likelihood."""
    learn_scale: bool = False
    """Learn that scale as one parameter shared by all values (Rybkin 2021, sigma-VAE)."""


@dataclass(frozen=True, kw_only=True)
class AEConfig(ModelConfig):
    """Autoencoder: reconstruction alone."""

    name: ClassVar[str] = "ae"

    code_activation: Literal["none", "relu", "sigmoid", "tanh"] = "none"
    """Activation on the code."""


@dataclass(frozen=True, kw_only=True)
class VAEConfig(ModelConfig):
    """Variational autoencoder with a standard normal prior and a diagonal gaussian posterior."""

    name: ClassVar[str] = "vae"
    terms: ClassVar[tuple[str, ...]] = ("recon", "kl")
    generative: ClassVar[bool] = True

    beta: NonNegative = 1.0
    """Weight of the KL term; 1 is the ELBO in nats per sample."""
