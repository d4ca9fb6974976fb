"""Autoencoders whose encoder or decoder is kept smooth."""

from dataclasses import dataclass
from typing import ClassVar, Literal

from distae.config.models.ae import AEConfig
from distae.config.models.base import ModelConfig
from distae.config.weights import Weight


@dataclass(frozen=True, kw_only=True)
class ContractiveAEConfig(AEConfig):
    """Contractive autoencoder (Rifai 2011): penalises the encoder's Jacobian, computed exactly with --net mlp and an empty
    --net.hidden, else estimated by one random projection per sample."""

    name: ClassVar[str] = "contractive_ae"
    terms: ClassVar[tuple[str, ...]] = ("recon", "contraction")
    compiles: ClassVar[bool] = False
    shards: ClassVar[bool] = False

    code_activation: Literal["none", "relu", "sigmoid", "tanh"] = "sigmoid"
    """Activation on the code."""
    weight: Weight = 0.1
    """Weight of the squared Frobenius norm of the Jacobian."""


@dataclass(frozen=True, kw_only=True)
class RAEL2Config(ModelConfig):
    """Regularized autoencoder (Ghosh 2020) with an L2 penalty on the decoder's weights."""

    name: ClassVar[str] = "rae_l2"
    terms: ClassVar[tuple[str, ...]] = ("recon", "code", "decoder")

    code_weight: Weight = 0.1
    """Weight of the code's size, half its squared norm."""
    decoder_weight: Weight = 1e-3
    """Weight of the sum of the decoder's squared weights."""


@dataclass(frozen=True, kw_only=True)
class RAEGPConfig(ModelConfig):
    """Regularized autoencoder (Ghosh 2020) with a gradient penalty on the decoder."""

    name: ClassVar[str] = "rae_gp"
    terms: ClassVar[tuple[str, ...]] = ("recon", "code", "decoder")
    compiles: ClassVar[bool] = False
    shards: ClassVar[bool] = False

    code_weight: Weight = 0.1
    """Weight of the code's size, half its squared norm."""
    decoder_weight: Weight = 1e-2
    """Weight of the squared Frobenius norm of the decoder's Jacobian, estimated by one random projection per sample."""
