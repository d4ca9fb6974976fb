"""Settings of the masked autoencoder."""

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

from msgspec import Meta

from distae.config.fields import SMALLEST, Count
from distae.config.models.base import ModelConfig
from distae.config.names import TRAITS, Traits
from distae.config.nets import NetConfig
from distae.errors import UserError

Share = Annotated[float, Meta(ge=SMALLEST, lt=1)]
NORMAL = ("gaussian", "laplace")
"""Likelihoods of values of any sign, whose mean the decoder's output is."""


@dataclass(frozen=True, kw_only=True)
class MaskedAEConfig(ModelConfig):
    """Masked autoencoder (He 2022): a transformer sees a few patches of an image, a smaller one predicts the others. It has its
    own networks: --net is not used."""

    name: ClassVar[str] = "masked_ae"

    latent_dim: Count = 64
    """Width of the encoder: values of the code per patch."""
    patch: Count = 4
    """Side of a patch, in pixels; it divides the image's sides."""
    mask: Share = 0.75
    """Share of the patches that are hidden in training."""
    depth: Count = 4
    """Blocks of the encoder."""
    heads: Count = 4
    """Attention heads of the encoder; divides its width."""
    decoder_dim: Count = 32
    """Width of the decoder."""
    decoder_depth: Count = 1
    """Blocks of the decoder."""
    decoder_heads: Count | None = None
    """Attention heads of the decoder; divides its width. By default those of the encoder."""
    norm_pix: bool = False
    """Predict patches of mean 0 and variance 1 (He 2022, sec. 3, norm_pix_loss): better features. Reconstructions then have the
    mean and the variance of the patches themselves."""
    class_token: bool = False
    """Add a learned token before the patches, as ViTs have it; it is the first position of the code."""
    pool: Literal["mean", "token"] = "mean"
    """What kNN and probes see of a code: the mean of all patches, or the class token."""

    @property
    def prefix(self) -> int:
        """Positions of a code before its patches."""
        return int(self.class_token)

    def patches(self, shape: tuple[int, ...]) -> int:
        """Patches per image."""
        return (shape[1] // self.patch) * (shape[2] // self.patch)

    def visible(self, shape: tuple[int, ...]) -> int:
        """Patches that the encoder sees in training."""
        return max(1, int(self.patches(shape) * (1 - self.mask)))

    def check(self, shape: tuple[int, ...], net: NetConfig) -> None:
        if len(shape) != 3 or shape[1] % self.patch or shape[2] % self.patch or self.patches(shape) < 2:
            raise UserError(
                f"--model.patch {self.patch} does not divide the data's images into two or more patches: shape {list(shape)}"
            )
        if not TRAITS.get(self.likelihood, Traits(plain=True)).plain or self.other_input:
            plain = ", ".join(name for name, traits in TRAITS.items() if traits.plain)
            others = "--model.input as_is, no --model.input-dropout and no missing values"
            raise UserError(f"--model masked_ae: valid with --model.likelihood {plain}, {others}")
        self._check_widths()
        if self.pool == "token" and not self.class_token:
            raise UserError("--model.pool token: there is none; add --model.class-token, or use --model.pool mean")
        if self.norm_pix and (self.likelihood not in NORMAL or shape[0] * self.patch**2 < 2):
            raise UserError(
                f"--model.norm-pix: valid with --model.likelihood {' or '.join(NORMAL)}, and two or more values per patch"
            )

    def _check_widths(self) -> None:
        """Raises UserError if heads do not divide a width, or 4 does not."""
        of_decoder = "decoder-heads" if self.decoder_heads else "heads"
        for key, width, of, heads in (
            ("latent-dim", self.latent_dim, "heads", self.heads),
            ("decoder-dim", self.decoder_dim, of_decoder, self.decoder_heads or self.heads),
        ):
            if width % heads or width % 4:
                raise UserError(f"--model.{key} {width} is not valid; expected a multiple of --model.{of} {heads} and of 4")
