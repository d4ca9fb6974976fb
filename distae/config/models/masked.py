"""Settings of the masked autoencoder."""

from dataclasses import dataclass
from typing import Annotated, ClassVar

from msgspec import Meta

from distae.config.fields import SMALLEST, Count
from distae.config.models.base import ModelConfig
from distae.config.names import TRAITS, Traits
from distae.config.nets import NetConfig
from distae.errors import UserError

Share = Annotated[float, Meta(ge=SMALLEST, lt=1)]


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
    """Attention heads of either transformer; divides both widths."""
    decoder_dim: Count = 32
    """Width of the decoder."""
    decoder_depth: Count = 1
    """Blocks of the decoder."""

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
        for key, width in (("latent-dim", self.latent_dim), ("decoder-dim", self.decoder_dim)):
            if width % self.heads or width % 4:
                raise UserError(f"--model.{key} {width} is not valid; expected a multiple of --model.heads {self.heads} and of 4")
