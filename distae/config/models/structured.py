"""Settings of the variational autoencoders with another prior, another posterior, several layers, or another likelihood."""

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

from msgspec import Meta

from distae.config.fields import Count
from distae.config.models.variational import GaussianConfig, VAEConfig
from distae.config.nets import NetConfig
from distae.config.weights import Weight, at
from distae.errors import UserError


@dataclass(frozen=True, kw_only=True)
class WeighedKLConfig(GaussianConfig):
    """A KL term with a weight."""

    beta: Weight = 1.0
    """Weight of the KL term; 1 is the ELBO in nats per sample."""


@dataclass(frozen=True, kw_only=True)
class VampVAEConfig(WeighedKLConfig):
    """VampPrior (Tomczak & Welling 2018): the prior is the mean posterior of learned pseudo-inputs."""

    name: ClassVar[str] = "vamp_vae"

    components: Count = 50
    """Number of pseudo-inputs."""

    def check(self, shape: tuple[int, ...], net: NetConfig) -> None:
        if net.norm == "batch":
            raise UserError("--net.norm batch: vamp_vae encodes its pseudo-inputs too; valid: none, group, layer")


@dataclass(frozen=True, kw_only=True)
class LinNFVAEConfig(WeighedKLConfig):
    """VAE with planar or radial flows (Rezende & Mohamed 2015)."""

    name: ClassVar[str] = "lin_nf_vae"

    flow: Literal["planar", "radial"] = "planar"
    """Kind of flow."""
    flows: Count = 8
    """Number of flows, one after the other."""


@dataclass(frozen=True, kw_only=True)
class IAFVAEConfig(WeighedKLConfig):
    """VAE with inverse autoregressive flows (Kingma 2016)."""

    name: ClassVar[str] = "iaf_vae"

    flows: Count = 2
    """Number of flows; every second one has its dimensions in reverse."""
    flow_hidden: Count = 128
    """Hidden size of each flow's masked network."""


@dataclass(frozen=True, kw_only=True)
class SVAEConfig(WeighedKLConfig):
    """Hyperspherical VAE (Davidson 2018): codes of length 1, von Mises-Fisher posterior, uniform prior."""

    name: ClassVar[str] = "svae"

    latent_dim: Annotated[int, Meta(ge=2)] = 10
    """Size of the code, a point of the sphere in that many dimensions."""


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
            raise UserError("--model.upper: one or more sizes; with none, use --model vae")


@dataclass(frozen=True, kw_only=True)
class CategoricalVAEConfig(WeighedKLConfig):
    """VAE with categorical codes by Gumbel-softmax (Jang 2017), uniform prior."""

    name: ClassVar[str] = "categorical_vae"

    latent_dim: Count = 80
    """Size of the code: categories times their number."""
    categories: Annotated[int, Meta(ge=2)] = 8
    """Categories of each variable."""
    temperature: Weight = 1.0
    """Temperature of the softmax, above 0: 1:0.5@10000 anneals it."""

    def check(self, shape: tuple[int, ...], net: NetConfig) -> None:
        if self.latent_dim % self.categories:
            raise UserError(f"--model.latent-dim {self.latent_dim} is no multiple of --model.categories {self.categories}")
        if min(at(self.temperature, 0), at(self.temperature, None)) <= 0:
            raise UserError(f"--model.temperature {self.temperature}: above 0 throughout")


@dataclass(frozen=True, kw_only=True)
class MSSSIMVAEConfig(VAEConfig):
    """VAE whose reconstruction is judged by structural similarity at several scales (Snell 2017)."""

    name: ClassVar[str] = "msssim_vae"
    terms: ClassVar[tuple[str, ...]] = ("recon", "similarity", "kl")

    weight: Weight = 100.0
    """Weight of 1 - MS-SSIM, in place of -log p(x|z)."""
    window: Annotated[int, Meta(ge=3)] = 7
    """Side of the gaussian window, in pixels, odd; halving the image stops before it is smaller."""

    def check(self, shape: tuple[int, ...], net: NetConfig) -> None:
        if len(shape) != 3 or min(shape[1:]) < self.window or self.window % 2 == 0:
            raise UserError(
                f"--model.window {self.window}: odd, and at most a side of the images; the data has shape {list(shape)}"
            )
        if self.likelihood != "bernoulli" or self.learn_scale:
            raise UserError("--model.likelihood: msssim_vae compares images in [0, 1]; valid: bernoulli, whose mean is there")
