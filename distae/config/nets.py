"""Settings of the encoder and decoder networks."""

from dataclasses import dataclass
from math import gcd
from typing import Annotated, ClassVar, Literal

from msgspec import Meta

from distae.config.fields import Count, Fraction, Index, Variant

Norm = Literal["none", "batch", "group", "layer"]
Activation = Literal["relu", "leaky_relu", "elu", "gelu", "silu", "tanh", "sigmoid", "softplus"]


def shared_groups(groups: int, width: int) -> int:
    """Groups of at least two of `width` channels each: as many as divide both numbers."""
    shared = gcd(groups, width)
    if shared < width or shared == 1:
        return shared
    return shared // 2 if shared % 2 == 0 else 1


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

    norm_eps: ClassVar[float] = 1e-5
    """What group and layer norms add to the variance."""

    @property
    def widths(self) -> tuple[int, ...]:
        """Hidden widths from the input to the code."""
        raise NotImplementedError

    def groups_of(self, width: int) -> int:
        """Groups of a group norm of a layer of this width."""
        return self.groups

    def code_shape(self, shape: tuple[int, ...], latent_dim: int) -> tuple[int, ...]:
        """Shape of the code of a sample of `shape`: positions, if the network keeps any, then `latent_dim` channels."""
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
class HalvingConfig(NetConfig):
    """What the networks share that halve an image several times."""

    levels_key: ClassVar[str] = "channels"
    """The setting whose length says how often."""

    @property
    def halvings(self) -> int:
        """How often the image is halved: its sides are divisible by 2 to this number."""
        return len(self.widths)

    def map_shape(self, shape: tuple[int, ...], channels: int) -> tuple[int, ...]:
        """Shape of a code with a vector of `channels` at each position of the smallest map: `(rows, columns, channels)`."""
        return (shape[1] >> self.halvings, shape[2] >> self.halvings, channels)


@dataclass(frozen=True, kw_only=True)
class StagesConfig(HalvingConfig):
    """What the networks share whose codes may keep their place."""

    spatial: bool = False
    """Codes keep their place: --model.latent-dim channels at each position of the last map, instead of one linear layer."""

    def code_shape(self, shape: tuple[int, ...], latent_dim: int) -> tuple[int, ...]:
        return self.map_shape(shape, latent_dim) if self.spatial else (latent_dim,)


@dataclass(frozen=True, kw_only=True)
class ConvConfig(StagesConfig):
    """Strided 4x4 convolutions, each halving the image, then one linear layer; the decoder mirrors it."""

    name: ClassVar[str] = "conv"

    channels: tuple[Count, ...] = (32, 64)
    """Channels after each halving of the image; its sides must be divisible by 2 to the power of their number."""

    @property
    def widths(self) -> tuple[int, ...]:
        return self.channels


@dataclass(frozen=True, kw_only=True)
class ResNetConfig(StagesConfig):
    """Pre-activation residual blocks (He 2016), each stage halving the image; the decoder mirrors it."""

    name: ClassVar[str] = "resnet"

    channels: tuple[Count, ...] = (32, 64)
    """Channels of each stage; the image is halved once per stage."""
    blocks: Count = 1
    """Residual blocks per stage."""

    @property
    def widths(self) -> tuple[int, ...]:
        return self.channels


@dataclass(frozen=True, kw_only=True)
class ImageConfig(HalvingConfig):
    """Encoder and decoder of latent diffusion (Rombach 2022): residual blocks, attention, codes that keep their place."""

    name: ClassVar[str] = "image"
    levels_key: ClassVar[str] = "multipliers"
    norm_eps: ClassVar[float] = 1e-6

    norm: Norm = "group"
    """Normalisation before each convolution of a block. batch uses the statistics of the global batch over all ranks."""
    groups: Count = 32
    """Groups of --net.norm group; fewer at small widths, where a group of one channel would lose the channel's mean."""
    activation: Activation = "silu"
    """Activation before each convolution of a block."""
    channels: Count = 128
    """Width of the first level; the others are multiples of it."""
    multipliers: tuple[Count, ...] = (1, 2, 4, 4)
    """Multiples of --net.channels, one per level. The image is halved between levels, so n of them give codes of 1/2^(n-1) of its
    sides: 1 2 4 4 is f8."""
    blocks: Count = 2
    """Residual blocks per level of the encoder; the decoder has one more."""
    attention: tuple[Count, ...] = ()
    """Levels (1 is the full resolution) whose blocks are each followed by attention."""
    middle_attention: bool = True
    """Attention between the two blocks on the smallest map."""
    inner_channels: Count | None = None
    """Channels between the last 3x3 convolution and the 1x1 convolution that gives the code, and the reverse in the decoder; by
    default those of the code. LlamaGen has 256 for codes of 8."""

    @property
    def widths(self) -> tuple[int, ...]:
        return tuple(m * self.channels for m in self.multipliers)

    @property
    def halvings(self) -> int:
        return len(self.multipliers) - 1

    def groups_of(self, width: int) -> int:
        return shared_groups(self.groups, width)

    def code_shape(self, shape: tuple[int, ...], latent_dim: int) -> tuple[int, ...]:
        return self.map_shape(shape, latent_dim)


@dataclass(frozen=True, kw_only=True)
class ViTConfig(NetConfig):
    """Transformers over patches (Dosovitskiy 2021): a code at each patch, or at tokens without a place (TiTok, Yu 2024)."""

    name: ClassVar[str] = "vit"

    norm: Literal["layer"] = "layer"
    """Normalisation before attention and MLP."""
    activation: Literal["gelu"] = "gelu"
    """Activation of the MLPs."""
    dropout: Annotated[float, Meta(ge=0, le=0)] = 0.0
    """Not supported by this network."""
    patch: Count = 8
    """Side of a patch in pixels; it divides the image's sides."""
    width: Annotated[int, Meta(ge=4, multiple_of=4)] = 192
    """Width of the tokens."""
    depth: Count = 6
    """Blocks of the encoder, and of the decoder."""
    heads: Count = 3
    """Attention heads; they divide --net.width."""
    tokens: Index = 0
    """Codes are at this number of learned tokens, which attend to all patches; 0: at the patches themselves."""

    @property
    def widths(self) -> tuple[int, ...]:
        return (self.width,) * self.depth

    def grid(self, shape: tuple[int, ...]) -> tuple[int, int]:
        """Rows and columns of patches."""
        return shape[1] // self.patch, shape[2] // self.patch

    def code_shape(self, shape: tuple[int, ...], latent_dim: int) -> tuple[int, ...]:
        return (self.tokens, latent_dim) if self.tokens else (*self.grid(shape), latent_dim)
