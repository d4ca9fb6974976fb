"""What the settings of all variants share."""

import re
from dataclasses import dataclass
from typing import ClassVar, Literal, Self

from distae.config.fields import Count, Fraction, Positive, Variant
from distae.config.names import TRAITS, LikelihoodName, Traits
from distae.config.nets import NetConfig
from distae.errors import UserError


@dataclass(frozen=True, kw_only=True)
class ModelConfig(Variant):
    """What all variants share."""

    terms: ClassVar[tuple[str, ...]] = ("recon",)
    """Names of the terms that the variant's phases report besides `loss`."""
    generative: ClassVar[bool] = False
    """Has a prior to sample from."""
    prior: ClassVar[str] = "normal"
    """The name of that prior, as a sampler."""
    fitted_priors: ClassVar[tuple[str, ...]] = ("gmm", "two_stage", "flow")
    """Samplers that can be fitted to its codes."""
    conditional: ClassVar[bool] = False
    """Needs data with labels."""
    compiles: ClassVar[bool] = True
    """torch.compile supports its forward: it needs no double backward."""
    shards: ClassVar[bool] = True
    """Its blocks can be sharded, and their activations checkpointed: their backward pass is not differentiated."""
    divides_latents: ClassVar[bool] = False
    """`--parallel tp` supports it: a rank computes some of its latents."""

    latent_dim: Count = 16
    """Size of the code z."""
    likelihood: LikelihoodName = "bernoulli"
    """p(x|z), summed over all values of a sample, in nats. bernoulli needs data in [0, 1] (grey values count as
    probabilities unless --data.binarize); gaussian is the squared error in nats; laplace the absolute error (l1).
    docs/variants.md has all of them: for images, tables, counts."""
    scale: Positive = 1.0
    """Standard deviation of the gaussian likelihoods, or b of the laplace likelihood."""
    learn_scale: bool = False
    """Learn that scale as one parameter shared by all values (Rybkin 2021, sigma-VAE)."""
    count_rate: Literal["softmax", "exp"] = "softmax"
    """Expected counts of poisson, nb and zinb: softmax of the decoder's output times the sample's total, or its exponential."""
    dispersion: Literal["feature", "cell", "constant"] = "feature"
    """Inverse dispersion of nb and zinb: a parameter for each value, an output of the decoder, or one parameter."""
    total: Positive = 10000.0
    """Total of a sample of counts that is decoded or sampled without an input."""
    mixtures: Count = 10
    """Components of the logistic_mixture likelihood."""
    columns: tuple[str, ...] = ()
    """Kinds and numbers of a table's values, for the mixed likelihood, such as numeric:5 binary:2 categorical:3; --data table
    fills it in."""
    input: Literal["as_is", "log1p", "l2"] = "as_is"
    """What the encoder sees of x: as_is, log(1 + x), or x scaled to length 1 (as Mult-VAE does)."""
    input_dropout: Fraction = 0.0
    """Probability that a value of x is dropped from the encoder's input in training, the others scaled up (Mult-VAE: 0.5)."""
    missing: bool = False
    """Samples may have missing values (NaN): 0 to the encoder, left out of the likelihood. Set by --data.missing mask."""

    @property
    def couples_samples(self) -> bool:
        """Whether a sample's loss depends on the others of its batch: then gradient accumulation changes the objective."""
        return False

    @property
    def other_input(self) -> bool:
        """Whether the encoder sees something other than x."""
        return self.input != "as_is" or self.input_dropout > 0 or self.missing

    def completed(self) -> Self:
        """The settings with those filled in that follow from files. Raises UserError."""
        return self

    def check(self, shape: tuple[int, ...], net: NetConfig) -> None:
        """Raises UserError if settings conflict with each other, the data's shape or the network."""

    def check_likelihood(self, shape: tuple[int, ...]) -> None:
        """Raises UserError if the likelihood's settings conflict with each other or the data's shape."""
        traits = TRAITS.get(self.likelihood, Traits())
        if self.learn_scale and not traits.scaled:
            valid = " and ".join(sorted(name for name, known in TRAITS.items() if known.scaled))
            raise UserError(f"--model.learn-scale: the {self.likelihood} likelihood has no scale; valid with {valid}")
        if self.likelihood == "mixed":
            self._check_columns(shape)
        if self.likelihood == "logistic_mixture" and (len(shape) != 3 or shape[0] not in (1, 3)):
            raise UserError(
                f"--model.likelihood logistic_mixture requires images of 1 or 3 channels; the data has shape {list(shape)}"
            )
        if self.missing and (why := self._needs_whole_samples(traits)):
            raise UserError(f"--model.missing: the {self.likelihood} likelihood does not support missing values: {why}")

    def _needs_whole_samples(self, traits: Traits) -> str | None:
        """Why no value of a sample may be missing, if so."""
        if self.likelihood == "logistic_mixture":
            return "the channels of a pixel depend on each other"
        if traits.support == "onehot":
            return "a sample is one category"
        if traits.support == "counts" and (self.count_rate == "softmax" or self.likelihood == "multinomial"):
            other = "" if self.likelihood == "multinomial" else "; valid with --model.count-rate exp"
            return f"it needs the sample's total{other}"
        return None

    def _check_columns(self, shape: tuple[int, ...]) -> None:
        found = [re.fullmatch(r"(numeric|binary|categorical):(\d{1,6})", c) for c in self.columns]
        if not found or not all(found) or len(shape) != 1 or sum(int(m[2]) for m in found if m) != shape[0]:
            raise UserError(
                f"--model.columns: {' '.join(self.columns) or 'none'} for data of shape {list(shape)}; "
                "valid: a list of numeric:N, binary:N and categorical:N whose numbers sum to the values of a row; "
                "--data table fills it in"
            )
