"""Settings of the autoencoders whose codes are discrete."""

from dataclasses import dataclass
from math import prod
from typing import Annotated, ClassVar, Literal

from msgspec import Meta

from distae.config.fields import Count, Fraction, Positive
from distae.config.models.base import ModelConfig
from distae.config.nets import NetConfig
from distae.config.weights import Weight
from distae.errors import UserError


@dataclass(frozen=True, kw_only=True)
class QuantizedConfig(ModelConfig):
    """What they share: the encoder's latent_dim values are split into vectors, and each vector becomes one of a set of codes."""

    terms: ClassVar[tuple[str, ...]] = ("recon", "commitment", "perplexity", "live")
    fitted_priors: ClassVar[tuple[str, ...]] = ("pixel",)

    @property
    def code_dim(self) -> int:
        """Values per code vector."""
        raise NotImplementedError

    def check(self, shape: tuple[int, ...], net: NetConfig) -> None:
        if self.latent_dim % self.code_dim:
            raise UserError(f"--model.latent-dim {self.latent_dim} is not a multiple of {self.code_dim}, the size of a code vector")


@dataclass(frozen=True, kw_only=True)
class VQVAEConfig(QuantizedConfig):
    """VQ-VAE (van den Oord 2017): the nearest vector of a learned codebook."""

    name: ClassVar[str] = "vq_vae"

    latent_dim: Count = 64
    """Output values of the encoder, split into vectors of --model.dim."""
    dim: Count = 4
    """Values per code vector."""
    codebook_size: Count = 128
    """Vectors in the codebook."""
    learning: Literal["ema", "gradient"] = "ema"
    """ema: codes are moving averages of the vectors assigned to them; gradient: the optimizer trains them."""
    decay: Fraction = 0.99
    """Decay of the moving averages."""
    commitment: Weight = 0.25
    """Weight of the squared distance of the encoder's vectors from their codes."""
    codebook_weight: Weight = 1.0
    """Weight of that distance as a term of the codes, with learning gradient. taming-transformers' checkpoints were trained with
    commitment 1 and codebook_weight 0.25, its `legacy` form."""
    restart_below: Fraction = 0.03
    """A code whose use, as a moving average, is below this share of uniform use restarts at a vector of the batch; 0: never."""

    @property
    def code_dim(self) -> int:
        return self.dim

    @property
    def couples_samples(self) -> bool:
        return self.learning == "ema" or self.restart_below > 0


@dataclass(frozen=True, kw_only=True)
class RQVAEConfig(VQVAEConfig):
    """RQ-VAE (Lee 2022): several codes of one codebook per vector, each quantizing the residual of those before."""

    name: ClassVar[str] = "rq_vae"

    depth: Count = 4
    """Codes per vector."""


@dataclass(frozen=True, kw_only=True)
class FSQVAEConfig(QuantizedConfig):
    """Finite scalar quantization (Mentzer 2023): each value is bounded and rounded to one of a few levels; nothing is learned."""

    name: ClassVar[str] = "fsq_vae"
    terms: ClassVar[tuple[str, ...]] = ("recon", "perplexity", "live")

    latent_dim: Count = 32
    """Output values of the encoder, split into vectors of one value per entry of --model.levels."""
    levels: tuple[Annotated[int, Meta(ge=2)], ...] = (8, 5, 5, 5)
    """Levels of each value of a code vector; their product is the size of the implied codebook."""

    @property
    def code_dim(self) -> int:
        return len(self.levels)

    def check(self, shape: tuple[int, ...], net: NetConfig) -> None:
        if not self.levels or prod(self.levels) > 2**20:
            levels = " ".join(map(str, self.levels)) or "none"
            raise UserError(
                f"--model.levels {levels}: expected one or more, whose product (the codebook's size) is at most 1048576"
            )
        super().check(shape, net)


@dataclass(frozen=True, kw_only=True)
class LFQVAEConfig(QuantizedConfig):
    """Lookup-free quantization (Yu 2024): each value becomes its sign, and entropies keep all codes in use."""

    name: ClassVar[str] = "lfq_vae"
    terms: ClassVar[tuple[str, ...]] = ("recon", "commitment", "sample_entropy", "batch_entropy", "perplexity", "live")

    latent_dim: Count = 32
    """Output values of the encoder, split into vectors of --model.bits."""
    bits: Annotated[int, Meta(ge=1, le=12)] = 8
    """Values, and bits, per code vector."""
    commitment: Weight = 0.25
    """Weight of the squared distance of the encoder's values from their signs."""
    entropy: Weight = 0.1
    """Weight of the mean entropy of a sample's codes minus the entropy of the batch's codes."""
    inverse_temperature: Positive = 1.0
    """Inverse temperature of the softmax over codes in the entropies; vector_quantize_pytorch uses 100."""

    @property
    def code_dim(self) -> int:
        return self.bits

    @property
    def couples_samples(self) -> bool:
        return True


@dataclass(frozen=True, kw_only=True)
class BSQVAEConfig(LFQVAEConfig):
    """Binary spherical quantization (Zhao 2024): signs of vectors of length 1, whose bits are taken as independent groups."""

    name: ClassVar[str] = "bsq_vae"

    bits: Annotated[int, Meta(ge=1, le=20)] = 8
    """Values, and bits, per code vector."""
    group: Annotated[int, Meta(ge=1, le=12)] = 1
    """Bits that share a softmax in the entropies, a divisor of --model.bits; as published, each bit has its own."""
    commitment: Weight = 0.0
    """Weight of the squared distance of the vectors from their codes; none as published: on the sphere it is bounded."""

    def check(self, shape: tuple[int, ...], net: NetConfig) -> None:
        if self.bits % self.group:
            raise UserError(f"--model.group {self.group} is not a divisor of the {self.bits} bits of a code vector")
        super().check(shape, net)
