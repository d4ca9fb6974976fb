"""Settings of sparse autoencoders with a wide dictionary."""

from dataclasses import dataclass
from math import prod
from typing import ClassVar, Literal

from distae.config.fields import Count, Fraction, Positive
from distae.config.models.base import ModelConfig
from distae.config.names import TRAITS, LikelihoodName, Traits
from distae.config.nets import NetConfig
from distae.config.weights import Ramp, Weight, at
from distae.errors import UserError


@dataclass(frozen=True, kw_only=True)
class DictionaryConfig(ModelConfig):
    """What sparse autoencoders share: one layer each way, so --net is not used."""

    terms: ClassVar[tuple[str, ...]] = ("recon", "l0", "dead")
    divides_latents: ClassVar[bool] = True

    latent_dim: Count = 1024
    """Latents of the dictionary."""
    likelihood: LikelihoodName = "gaussian"
    """p(x|z): gaussian is half the squared error; valid are those of one output per value that is its mean."""
    dead_after: Count = 1_000_000
    """A latent that was not active in this many samples in a row is dead."""
    unit_norm: bool = True
    """Decoder vectors of length 1: gradients along them are removed, and each step ends with it."""
    scale_input: bool = False
    """Multiply samples by the number that makes their mean norm in the first batch the root of their number of values; losses are
    of these, so that settings fit data of any scale."""

    inputs: Count | None = None
    """A transcoder (Dunefsky 2024): the first values of a sample are encoded, this many, and the others are reconstructed of them.
    It follows from --data.target."""
    skip: bool = False
    """Of a transcoder: its output is that of the dictionary and a linear map of the input (Paulo 2025)."""
    layers: Count = 1
    """A crosscoder (Lindsey 2024): a sample is as many layers of a network, one after the other. Norms of decoder vectors in
    penalties are sums of those of the layers."""

    def sides(self, values: int) -> tuple[int, int]:
        """How many values of a sample of that many are encoded, and reconstructed."""
        return (values, values) if self.inputs is None else (self.inputs, values - self.inputs)

    def check(self, shape: tuple[int, ...], net: NetConfig) -> None:
        if self.inputs is not None and len(shape) != 1:
            raise UserError(f"--model.inputs: samples of transcoders are vectors, the inputs and the target, not {list(shape)}")
        if self.inputs is not None and self.inputs >= prod(shape):
            raise UserError(
                f"--model.inputs {self.inputs}: a sample has {prod(shape)} values, and some must be left to reconstruct"
            )
        if self.skip and self.inputs is None:
            raise UserError("--model.skip is for transcoders, which have --data.target or --model.inputs")
        if self.sides(prod(shape))[1] % self.layers:
            raise UserError(f"--model.layers {self.layers}: {self.sides(prod(shape))[1]} values are not as many of each layer")
        if not _plain(TRAITS.get(self.likelihood, Traits(plain=True))) or self.other_input:
            plain = ", ".join(name for name, traits in TRAITS.items() if _plain(traits))
            others = "--model.input as_is, no --model.input-dropout and no missing values"
            raise UserError(f"--model {self.name}: valid with --model.likelihood {plain}, {others}")


def _plain(traits: Traits) -> bool:
    return traits.plain and traits.support == "real"


@dataclass(frozen=True, kw_only=True)
class OfKConfig(DictionaryConfig):
    """What variants with a given number of active latents share."""

    k: Count | Ramp = 32
    """Active latents of a sample (topk_sae), or their mean over samples. 128:32@1000 begins with more."""

    @property
    def final_k(self) -> int:
        """In use."""
        return round(at(self.k, None))

    def check(self, shape: tuple[int, ...], net: NetConfig) -> None:
        super().check(shape, net)
        if not all(1 <= at(self.k, step) <= self.latent_dim for step in (0, None)):
            raise UserError(f"--model.k {self.k}: valid from 1 to --model.latent-dim, which is {self.latent_dim}")


@dataclass(frozen=True, kw_only=True)
class AuxKConfig(OfKConfig):
    """What variants share that keep the largest latents."""

    terms: ClassVar[tuple[str, ...]] = ("recon", "auxiliary", "l0", "dead")

    aux_weight: Weight = 1 / 32
    """Weight of AuxK, the squared error of the residual as the largest dead latents reconstruct it."""
    aux_k: Count | None = None
    """Dead latents that reconstruct the residual; by default half the values of a sample."""


@dataclass(frozen=True, kw_only=True)
class TopKSAEConfig(AuxKConfig):
    """Sparse autoencoder that keeps the k largest latents of each sample (Gao 2024); dead latents are revived by AuxK."""

    name: ClassVar[str] = "topk_sae"

    multi_weight: Weight = 0.0
    """Weight of Multi-TopK, the reconstruction from 4 k latents: 0.125 keeps it good where another k is used later (Gao 2024)."""


@dataclass(frozen=True, kw_only=True)
class BatchTopKSAEConfig(AuxKConfig):
    """Sparse autoencoder that keeps the k x batch largest latents of the whole batch (Bussmann 2024), and in use those above a
    threshold that training has averaged."""

    name: ClassVar[str] = "batch_topk_sae"

    threshold_decay: Fraction = 0.99
    """Decay of that average; it is lower in the first steps."""

    @property
    def couples_samples(self) -> bool:
        return True


@dataclass(frozen=True, kw_only=True)
class MatryoshkaSAEConfig(BatchTopKSAEConfig):
    """BatchTopK whose first latents alone must reconstruct too (Bussmann 2025), so that they stay general."""

    name: ClassVar[str] = "matryoshka_sae"
    terms: ClassVar[tuple[str, ...]] = ("recon", "prefixes", "auxiliary", "l0", "dead")

    prefixes: tuple[Fraction, ...] = (1 / 32, 3 / 32, 7 / 32, 15 / 32)
    """Shares of the latents that must reconstruct alone, rising; all of them are the last."""

    @property
    def widths(self) -> tuple[int, ...]:
        """Latents of each prefix, rising; the last has all."""
        return (*(round(share * self.latent_dim) for share in self.prefixes), self.latent_dim)

    def check(self, shape: tuple[int, ...], net: NetConfig) -> None:
        super().check(shape, net)
        if any(a >= b for a, b in zip((0, *self.widths), self.widths, strict=False)):
            raise UserError(
                f"--model.prefixes {' '.join(map(str, self.prefixes))}: of {self.latent_dim} latents these are {self.widths[:-1]}; "
                "valid are rising shares of at least one more latent each"
            )


@dataclass(frozen=True, kw_only=True)
class JumpReLUSAEConfig(OfKConfig):
    """Sparse autoencoder with a learned threshold for each latent (Rajamanoharan 2024), trained towards k active latents."""

    name: ClassVar[str] = "jumprelu_sae"
    terms: ClassVar[tuple[str, ...]] = ("recon", "sparsity", "l0", "dead")

    weight: Weight = 1.0
    """Weight of (mean number of active latents / k - 1)^2."""
    unit_norm: bool = False
    """Decoder vectors of length 1; free ones find features better here."""
    threshold: Positive = 0.1
    """Initial thresholds."""
    bandwidth: Positive = 0.5
    """Width of the window around a threshold in which values move it."""
    l0_from: Literal["pre_activations", "activations"] = "pre_activations"
    """What moves thresholds by the number of active latents: activations are 0 below the threshold, which leaves half the window
    (as in the library dictionary_learning)."""

    @property
    def couples_samples(self) -> bool:
        return True


@dataclass(frozen=True, kw_only=True)
class L1SAEConfig(DictionaryConfig):
    """Sparse autoencoder with an L1 penalty on latents, each weighed by the norm of its decoder vector (Anthropic, April 2024)."""

    name: ClassVar[str] = "l1_sae"
    terms: ClassVar[tuple[str, ...]] = ("recon", "sparsity", "l0", "dead")

    weight: Weight = 1.0
    """Weight of the penalty: 0:1@1000 warms it up."""
    unit_norm: bool = False
    """Decoder vectors of length 1; the norms in the penalty keep free ones from growing."""


@dataclass(frozen=True, kw_only=True)
class GatedSAEConfig(DictionaryConfig):
    """Sparse autoencoder that decides by one path which latents are active, and by another how much (Rajamanoharan 2024)."""

    name: ClassVar[str] = "gated_sae"
    terms: ClassVar[tuple[str, ...]] = ("recon", "sparsity", "gate_recon", "l0", "dead")

    weight: Weight = 1.0
    """Weight of the L1 penalty on the gates: 0:1@1000 warms it up."""
