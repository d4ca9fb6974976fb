"""Structural similarity as the likelihood."""

from dataclasses import dataclass
from typing import Annotated, ClassVar

from msgspec import Meta

from distae.config.models.vae import VAEConfig
from distae.config.nets import NetConfig
from distae.config.weights import Weight
from distae.errors import UserError


@dataclass(frozen=True, kw_only=True)
class MSSSIMVAEConfig(VAEConfig):
    """VAE whose reconstruction loss is structural similarity at several scales (Snell 2017)."""

    name: ClassVar[str] = "msssim_vae"
    terms: ClassVar[tuple[str, ...]] = ("recon", "similarity", "kl")

    weight: Weight = 100.0
    """Weight of 1 - MS-SSIM, in place of -log p(x|z)."""
    window: Annotated[int, Meta(ge=3)] = 7
    """Side of the gaussian window in pixels, odd; the image is halved only while it is at least as large."""

    def check(self, shape: tuple[int, ...], net: NetConfig) -> None:
        if len(shape) != 3 or min(shape[1:]) < self.window or self.window % 2 == 0:
            raise UserError(
                f"--model.window {self.window}: expected odd, and at most a side of the images; the data has shape {list(shape)}"
            )
        if self.likelihood != "bernoulli" or self.learn_scale or self.missing:
            raise UserError(
                "--model.likelihood: msssim_vae compares images in [0, 1]; valid: bernoulli, whose mean is in [0, 1],"
                " and no missing values"
            )
