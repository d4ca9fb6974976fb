"""What every variant is: the contract between the models and the trainer, which never asks which variant it holds."""

from collections.abc import Callable
from typing import Any, ClassVar, NamedTuple, TypeVar

from torch import Tensor, nn

from distae import noise as noise_
from distae.config.models import ModelConfig
from distae.config.nets import NetConfig
from distae.losses import Likelihood
from distae.nn import build_decoder, build_encoder
from distae.noise import Noise


class Batch(NamedTuple):
    """Samples as the model sees them."""

    x: Tensor
    """`[B, *shape]`, floating point."""
    label: Tensor | None = None
    """`[B]` int64, where the data has labels."""


class Codes(NamedTuple):
    """What the encoder says of a batch."""

    z: Tensor
    """`[B, latent_dim]`; the posterior's mean where there is a posterior."""
    mu: Tensor | None = None
    logvar: Tensor | None = None


class Output(NamedTuple):
    """What a forward pass gives. A NamedTuple, so that DDP finds the tensors in it."""

    loss: Tensor
    """Scalar to minimise: the mean of per_sample["loss"] over this process's rows, plus the weighted per_batch terms."""
    per_sample: dict[str, Tensor]
    """Terms `[B]` in nats per sample; "loss" is their weighted sum."""
    per_batch: dict[str, Tensor]
    """Scalar terms that are no mean over samples."""
    recon: Tensor
    """Decoder output `[B, *shape]`; `likelihood.mean` of it is the reconstruction."""


class Turn(NamedTuple):
    """One optimizer's share of a step: adversarial variants have several."""

    name: str
    parameters: list[nn.Parameter]


class Autoencoder(nn.Module):
    """Base of all variants: an encoder, a decoder and a likelihood."""

    latent_factor: ClassVar[int] = 1
    """Encoder outputs per latent dimension."""

    def __init__(self, cfg: ModelConfig, net: NetConfig, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.cfg, self.net, self.shape = cfg, net, shape
        self.encoder = build_encoder(net, shape, self.latent_factor * cfg.latent_dim)
        self.decoder = build_decoder(net, shape, cfg.latent_dim)
        self.likelihood = Likelihood(cfg)

    def forward(self, batch: Batch, turn: str, noise: Noise) -> Output:
        """The objective of `turn`, so that DDP's hooks see it."""
        raise NotImplementedError

    def encode(self, x: Tensor) -> Codes:
        """Codes of `x` `[B, *shape]`, without noise."""
        raise NotImplementedError

    def decode(self, z: Tensor) -> Tensor:
        """Mean of p(x|z) in the data's units: `[B, *shape]` from `[B, latent_dim]`."""
        return self.likelihood.mean(self.decoder(z, None))

    def reconstruct(self, x: Tensor) -> Tensor:
        """`decode(encode(x).z)`: `[B, *shape]` to the same."""
        return self.decode(self.encode(x).z)

    def sample(self, n: int, noise: Noise) -> Tensor:
        """`n` samples from the model, `[n, *shape]`. Raises NotImplementedError where the variant has no prior."""
        raise NotImplementedError(f"{self.cfg.name} has no prior to sample from")

    def turns(self) -> list[Turn]:
        """The optimizer turns of a step, in order."""
        return [Turn("autoencoder", list(self.parameters()))]

    def after_step(self, step: int) -> None:
        """Called once after each optimizer step, for codebooks and averages kept outside the optimizer."""


M = TypeVar("M", bound=type[Autoencoder])
_REGISTRY: dict[type[ModelConfig], type[Autoencoder]] = {}


def register(config: type[ModelConfig]) -> Callable[[M], M]:
    """Bind a variant to its settings class."""

    def bind(model: M) -> M:
        _REGISTRY[config] = model
        return model

    return bind


def registry() -> dict[type[ModelConfig], type[Autoencoder]]:
    """Settings class of each variant, and the variant."""
    return dict(_REGISTRY)


def build(cfg: ModelConfig, net: NetConfig, shape: tuple[int, ...], seed: int = 0, **to: Any) -> Autoencoder:
    """A new model, its weights made on the CPU from `seed`, then moved by `model.to(**to)`."""
    with noise_.initialising(seed):
        model = _REGISTRY[type(cfg)](cfg, net, shape)
    return model.to(**to)
