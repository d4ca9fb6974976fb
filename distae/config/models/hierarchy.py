"""Several layers of codes."""

from dataclasses import dataclass
from typing import ClassVar

from distae.config.fields import Count
from distae.config.models.vae import WeighedKLConfig
from distae.config.nets import NetConfig
from distae.errors import UserError


@dataclass(frozen=True, kw_only=True)
class HVAEConfig(WeighedKLConfig):
    """Ladder VAE (Sonderby 2016): two or more layers of stochastic codes."""

    name: ClassVar[str] = "hvae"
    terms: ClassVar[tuple[str, ...]] = ("recon", "kl", "kl_upper")

    upper: tuple[Count, ...] = (8,)
    """Sizes of the codes above the first one, whose size is --model.latent-dim, from bottom to top."""
    hidden: Count = 128
    """Width of the networks between the layers."""

    def check(self, shape: tuple[int, ...], net: NetConfig) -> None:
        if not self.upper:
            raise UserError("--model.upper is empty; expected one or more sizes, or use --model vae")
