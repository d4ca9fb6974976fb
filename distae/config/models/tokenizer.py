"""Settings of image tokenizers as latent diffusion and autoregressive models use them."""

import hashlib
import inspect
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Annotated, ClassVar, Literal, Self

import xxhash
from msgspec import Meta

from distae.config.fields import Count, Fraction, Index, NonNegative, Positive
from distae.config.models.base import ModelConfig
from distae.config.models.quantized import BSQVAEConfig, FSQVAEConfig, LFQVAEConfig, VQVAEConfig
from distae.config.models.vae import VAEConfig
from distae.config.names import PERCEPTUAL, TRAITS, LikelihoodName, PerceptualName, Traits
from distae.config.nets import NetConfig
from distae.config.weights import Weight
from distae.errors import UserError

SMALLEST_SIDE = 6
"""Of an image that a discriminator can judge."""
MOST_BITS = {"lfq": 12, "bsq": 20}
"""Channels of the code, by bottleneck: lfq_vae's entropies are over all codes."""


class _Terms:
    """Of settings: those of the bottleneck's variant, and those of the chosen losses. Of the class: those that all have."""

    def __get__(self, settings: "TokenizerConfig | None", owner: type) -> tuple[str, ...]:
        adversarial = ("adversarial", "critic_loss", "critic_accuracy")
        if settings is None:
            return ("recon", *adversarial)
        return (*settings.codec.terms, *(() if settings.perceptual == "none" else ("perceptual",)), *adversarial)


@dataclass(frozen=True, kw_only=True)
class TokenizerConfig(ModelConfig):
    """Image tokenizer (Esser 2021, Rombach 2022): a KL, VQ, FSQ, LFQ or BSQ bottleneck, a perceptual term and a discriminator."""

    name: ClassVar[str] = "tokenizer"
    terms: ClassVar[tuple[str, ...]] = _Terms()  # type: ignore[assignment]
    compiles: ClassVar[bool] = False

    bottleneck: Literal["kl", "vq", "fsq", "lfq", "bsq"] = "kl"
    """kl: a gaussian posterior, as of vae; vq, fsq, lfq, bsq: a code of a set at each position, as of vq_vae, fsq_vae, lfq_vae,
    bsq_vae."""
    latent_dim: Count = 4
    """Channels of the code at each position. Positions are those of the network (--net image, or conv and resnet with
    --net.spatial); other networks have one."""
    likelihood: LikelihoodName = "laplace"
    """The reconstruction error: laplace is L1, gaussian L2. --model.learn-scale learns its scale (`logvar` in published code,
    which no optimizer trains there)."""
    scale: Positive = 0.5
    """Scale of the likelihood: b of laplace, the standard deviation of gaussian. 0.5 for values in [0, 1] is the sum of absolute
    errors of values in [-1, 1], as published."""

    kl_weight: Weight = 1e-6
    """kl: weight of the KL."""
    codebook_size: Count = 1024
    """vq: vectors in the codebook."""
    learning: Literal["ema", "gradient"] = "ema"
    """vq: codes are moving averages of the vectors assigned to them, or trained by the optimizer."""
    decay: Fraction = 0.99
    """vq: decay of the moving averages."""
    restart_below: Fraction = 0.03
    """vq: a code used less than this share of uniform use restarts at a vector of the batch; 0: never."""
    commitment: Weight = 0.25
    """vq, lfq and bsq: weight of the squared distance of the encoder's values from their codes, summed over a sample."""
    codebook_weight: Weight = 1.0
    """vq, learning gradient: weight of that distance as a term of the codes. The published `legacy` form exchanges the two."""
    levels: tuple[Annotated[int, Meta(ge=2)], ...] = (8, 5, 5, 5)
    """fsq: levels of each of --model.latent-dim channels."""
    entropy: Weight = 0.1
    """lfq and bsq: weight of the mean entropy of a sample's codes minus the entropy of the batch's codes."""
    inverse_temperature: Positive = 1.0
    """lfq and bsq: inverse temperature of the softmax over codes in the entropies."""

    perceptual: PerceptualName = "none"
    """A perceptual distance of sample and reconstruction: LPIPS, from weights that you give, 1 - MS-SSIM, or by features of a
    network of yours that a --plugin registers."""
    perceptual_weight: Weight = 1.0
    """Its weight, times the number of values of a sample: published code adds the distance to the error of every value."""
    lpips_weights: str | None = None
    """File of the linear layers of LPIPS (vgg.pth of its repository), or as safetensors."""
    lpips_backbone: str | None = None
    """File of torchvision's VGG16 or AlexNet weights of ImageNet."""
    lpips_checksum: str = ""
    """Checksum of the two files, filled in: a resume with other weights is rejected with an error."""
    perceptual_checksum: str = ""
    """Checksum of the file of a network of yours, filled in: a resume with another file is rejected with an error."""
    window: Annotated[int, Meta(ge=3)] = 7
    """msssim: side of the gaussian window in pixels, odd."""

    discriminator_start: Index = 0
    """Step (from 0) at which the discriminator's training and the adversarial term begin."""
    discriminator_ramp: Index = 0
    """Steps over which the adversarial term grows to its weight from there on; 0: it starts at its weight."""
    discriminator_weight: Weight = 0.5
    """Weight of the adversarial term, relative to the reconstruction."""
    adaptive_weight: bool = True
    """Multiply that weight by the ratio of the norms of both terms' gradients at the decoder's last layer, over the global batch;
    otherwise by the number of values of a sample, as published code with a fixed weight takes means over values."""
    adaptive_max: Positive = 1e4
    """Largest such ratio."""
    discriminator_channels: Count = 64
    """Width of the discriminator's first layer."""
    discriminator_layers: Count = 3
    """Strided convolutions of the discriminator; fewer are used where the image is too small for them."""
    discriminator_norm: Literal["batch", "group", "none"] = "batch"
    """Normalisation of the discriminator. batch uses the statistics of the global batch over all ranks."""
    discriminator_lr: Positive | None = None
    """Peak learning rate of the discriminator; by default that of the other parameters."""
    r1: NonNegative = 0.0
    """Weight of half the squared gradient of the discriminator at real images (Mescheder 2018, eq. 9); double backward."""
    lecam: NonNegative = 0.0
    """Weight of the LeCam regulariser of the discriminator (Tseng 2021)."""
    lecam_decay: Fraction = 0.999
    """Decay of its moving averages."""

    @property
    def couples_samples(self) -> bool:
        batch = self.adaptive_weight or self.discriminator_norm == "batch" or self.lecam > 0
        return batch or self.codec.couples_samples

    @property
    def codec(self) -> ModelConfig:
        """Settings of the variant that the bottleneck is of."""
        shared = {f.name: getattr(self, f.name) for f in fields(ModelConfig)}
        if self.bottleneck == "kl":
            return VAEConfig(**shared, beta=self.kl_weight)
        if self.bottleneck == "fsq":
            return FSQVAEConfig(**shared, levels=self.levels)
        if self.bottleneck in ("lfq", "bsq"):
            signs = {"commitment": self.commitment, "entropy": self.entropy, "inverse_temperature": self.inverse_temperature}
            return {"lfq": LFQVAEConfig, "bsq": BSQVAEConfig}[self.bottleneck](**shared, bits=self.latent_dim, **signs)
        names = ("codebook_size", "learning", "decay", "restart_below", "commitment", "codebook_weight")
        return VQVAEConfig(**shared, dim=self.latent_dim, **{name: getattr(self, name) for name in names})

    def completed(self) -> Self:
        if self.perceptual == "lpips":
            return replace(self, lpips_checksum=" ".join(_checksum(self, key) for key in ("lpips_weights", "lpips_backbone")))
        if network := PERCEPTUAL.get(self.perceptual):
            return replace(self, perceptual_checksum=_hash(inspect.getfile(network)))
        return self

    def check(self, shape: tuple[int, ...], net: NetConfig) -> None:
        if len(shape) != 3 or min(shape[1:]) < SMALLEST_SIDE:
            raise UserError(
                f"--model tokenizer needs images [C, H, W] of {SMALLEST_SIDE} pixels a side; the data has shape {list(shape)}"
            )
        if not TRAITS.get(self.likelihood, Traits(plain=True)).plain or self.missing:
            plain = ", ".join(name for name, traits in TRAITS.items() if traits.plain)
            raise UserError(f"--model tokenizer: valid with --model.likelihood {plain}, and no missing values")
        if self.perceptual == "msssim" and (min(shape[1:]) < self.window or self.window % 2 == 0):
            raise UserError(f"--model.window {self.window}: expected odd, and at most a side of the images: {list(shape)}")
        if self.perceptual == "lpips" and shape[0] not in (1, 3):
            raise UserError(f"--model.perceptual lpips needs images of 1 or 3 channels; the data has shape {list(shape)}")
        if self.latent_dim > MOST_BITS.get(self.bottleneck, self.latent_dim):
            most = f"at most {MOST_BITS[self.bottleneck]} with --model.bottleneck {self.bottleneck}"
            raise UserError(f"--model.latent-dim {self.latent_dim}: {most}")
        self.codec.check(shape, net)


def _checksum(cfg: TokenizerConfig, key: str) -> str:
    """Of a file of weights, read in parts. Raises UserError if it is not there."""
    option, path = f"--model.{key.replace('_', '-')}", getattr(cfg, key)
    if not path:
        raise UserError(f"{option}: --model.perceptual lpips needs it; see docs/image_tokenizers.md for the files")
    if not Path(path).is_file():
        raise UserError(f"{option}: no file {path}")
    return _hash(path)


def _hash(path: str) -> str:
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, xxhash.xxh3_64).hexdigest()
