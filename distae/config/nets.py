"""Settings of the encoder and decoder networks."""

from dataclasses import dataclass
from typing import ClassVar, Literal

from distae.config.fields import Count, Fraction, Variant

Norm = Literal["none", "batch", "group", "layer"]
Activation = Literal["relu", "leaky_relu", "elu", "gelu", "silu", "tanh", "sigmoid", "softplus"]


@dataclass(frozen=True, kw_only=True)
class NetConfig(Variant):
    """What all networks share."""

    norm: Norm = "none"
    """Normalisation after each hidden layer. batch uses the statistics of the global batch over all ranks."""
    groups: Count = 8
    """Groups of --net.norm group; divides every hidden width."""
    activation: Activation = "relu"
    """Activation of the hidden layers."""
    dropout: Fraction = 0.0
    """Probability of dropping a hidden value in training."""

    @property
    def widths(self) -> tuple[int, ...]:
        """Hidden widths from the input to the code."""
        raise NotImplementedError

    def code_shape(self, shape: tuple[int, ...], latent_dim: int) -> tuple[int, ...]:
        """Shape of the code of a sample of `shape`: positions, then channels, `latent_dim` values in all. Here, no positions."""
        return (latent_dim,)


@dataclass(frozen=True, kw_only=True)
class MLPConfig(NetConfig):
    """Fully connected layers; the decoder mirrors the encoder. Any input shape."""

    name: ClassVar[str] = "mlp"

    hidden: tuple[Count, ...] = (256,)
    """Hidden sizes from the input to the code; none gives a single linear layer."""

    @property
    def widths(self) -> tuple[int, ...]:
        return self.hidden


@dataclass(frozen=True, kw_only=True)
class ConvConfig(NetConfig):
    """Strided 4x4 convolutions, each halving the image, then one linear layer; the decoder mirrors it."""

    name: ClassVar[str] = "conv"

    channels: tuple[Count, ...] = (32, 64)
    """Channels after each halving of the image; its sides must be divisible by 2 to the power of their number."""

    @property
    def widths(self) -> tuple[int, ...]:
        return self.channels


@dataclass(frozen=True, kw_only=True)
class ResNetConfig(NetConfig):
    """Pre-activation residual blocks (He 2016), each stage halving the image; the decoder mirrors it."""

    name: ClassVar[str] = "resnet"

    channels: tuple[Count, ...] = (32, 64)
    """Channels of each stage; the image is halved once per stage."""
    blocks: Count = 1
    """Residual blocks per stage."""

    @property
    def widths(self) -> tuple[int, ...]:
        return self.channels
