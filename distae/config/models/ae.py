"""Plain, linear, denoising and sparse autoencoders."""

from dataclasses import dataclass
from math import prod
from typing import ClassVar, Literal

from distae.config.fields import Count, Fraction, Positive
from distae.config.models.base import ModelConfig
from distae.config.names import LikelihoodName
from distae.config.nets import NetConfig
from distae.config.weights import Weight
from distae.errors import UserError


@dataclass(frozen=True, kw_only=True)
class AEConfig(ModelConfig):
    """Autoencoder: reconstruction alone."""

    name: ClassVar[str] = "ae"

    code_activation: Literal["none", "relu", "sigmoid", "tanh"] = "none"
    """Activation on the code."""


@dataclass(frozen=True, kw_only=True)
class LinearAEConfig(ModelConfig):
    """Linear autoencoder: one linear layer each way, regardless of --net; its optimum spans PCA's subspace."""

    name: ClassVar[str] = "linear_ae"

    likelihood: LikelihoodName = "gaussian"
    """p(x|z); PCA is the optimum of gaussian with a fixed scale."""


@dataclass(frozen=True, kw_only=True)
class DenoisingAEConfig(AEConfig):
    """Denoising autoencoder (Vincent 2008): reconstructs the clean input from a corrupted one, in evaluation too."""

    name: ClassVar[str] = "denoising_ae"

    corruption: Literal["gaussian", "masking", "salt_pepper"] = "gaussian"
    """gaussian: adds noise; masking: sets values to 0; salt_pepper: sets values to 0 or 1, with equal probability."""
    std: Positive = 0.3
    """Standard deviation of the gaussian noise, in the data's units."""
    rate: Fraction = 0.3
    """Probability that masking or salt_pepper changes a value."""


@dataclass(frozen=True, kw_only=True)
class SparseAEConfig(AEConfig):
    """Sparse autoencoder: few code values are active."""

    name: ClassVar[str] = "sparse_ae"
    terms: ClassVar[tuple[str, ...]] = ("recon", "sparsity")

    sparsity: Literal["l1", "kl", "topk"] = "l1"
    """l1: sum of |z|; kl: KL from the target rate to each unit's mean activation over the global batch (Ng 2011), with
    --model.code-activation sigmoid; topk: keeps the k largest values of each code (Makhzani & Frey 2014)."""
    weight: Weight = 0.1
    """Weight of the l1 or kl term."""
    target: Fraction = 0.05
    """Target rate of kl."""
    k: Count = 4
    """Values kept by topk."""

    @property
    def couples_samples(self) -> bool:
        return self.sparsity == "kl"

    def check(self, shape: tuple[int, ...], net: NetConfig) -> None:
        if self.sparsity == "kl" and self.code_activation != "sigmoid":
            raise UserError("--model.sparsity kl compares rates: it needs --model.code-activation sigmoid")
        if self.sparsity == "kl" and self.target == 0:
            raise UserError("--model.target 0: the target rate of kl must be above 0")
        values = prod(net.code_shape(shape, self.latent_dim))
        if self.sparsity == "topk" and self.k > values:
            raise UserError(f"--model.k {self.k} is too large: at most the values of a code (--model.latent-dim), {values}")
