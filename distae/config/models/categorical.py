"""Categorical codes."""

from dataclasses import dataclass
from typing import Annotated, ClassVar

from msgspec import Meta

from distae.config.fields import Count
from distae.config.models.vae import WeighedKLConfig
from distae.config.nets import NetConfig
from distae.config.weights import Weight, at
from distae.errors import UserError


@dataclass(frozen=True, kw_only=True)
class CategoricalVAEConfig(WeighedKLConfig):
    """VAE with categorical codes by Gumbel-softmax (Jang 2017), uniform prior."""

    name: ClassVar[str] = "categorical_vae"
    fitted_priors: ClassVar[tuple[str, ...]] = ("pixel",)

    latent_dim: Count = 80
    """Size of the code: the number of variables times --model.categories."""
    categories: Annotated[int, Meta(ge=2)] = 8
    """Categories of each variable."""
    temperature: Weight = 1.0
    """Temperature of the softmax, above 0: 1:0.5@10000 anneals it."""

    def check(self, shape: tuple[int, ...], net: NetConfig) -> None:
        if self.latent_dim % self.categories:
            raise UserError(f"--model.latent-dim {self.latent_dim} is not a multiple of --model.categories {self.categories}")
        if min(at(self.temperature, 0), at(self.temperature, None)) <= 0:
            raise UserError(f"--model.temperature {self.temperature} is not valid; it must be above 0 throughout")
