"""Settings of the optimizer and of the learning rate over time."""

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

from msgspec import Meta

from distae.config.fields import SMALLEST, Count, Fraction, Index, NonNegative, Positive, Variant

Decay = Annotated[float, Meta(ge=SMALLEST, le=1)]


@dataclass(frozen=True, kw_only=True)
class OptimConfig:
    """The optimizer."""

    name: Literal["adam", "adamw", "sgd"] = "adam"
    """adam, adamw (decoupled weight decay) or sgd."""
    lr: Positive = 2e-3
    """Peak learning rate, reached after warm-up. It is not scaled with the world size, because the global batch is fixed."""
    blr: Positive | None = None
    """Base learning rate, instead of lr: the peak is blr * --global-batch-size / 256 (Goyal 2017; He 2022, app. A.1)."""
    layer_decay: Decay = 1.0
    """Rate of each block of the encoder, as a share of that of the next one (BEiT, MAE: 0.75); what follows the last block has all
    of it. For fine-tuning, with --init-from."""
    momentum: Fraction = 0.0
    """Momentum of sgd."""
    betas: tuple[Fraction, Fraction] = (0.9, 0.999)
    """Decay rates of Adam's averages."""
    eps: Positive = 1e-8
    """Adam's epsilon."""
    weight_decay: NonNegative = 0.0
    """L2 penalty (adam, sgd) or decoupled decay (adamw) on weights; biases and normalisation parameters are excluded."""
    l1: NonNegative = 0.0
    """L1 penalty on weights: its subgradient l1*sign(w) is added to the gradient, the reported loss is without it."""
    max_grad_norm: Positive | None = None
    """Clip the gradient to this global L2 norm."""


@dataclass(frozen=True, kw_only=True)
class ScheduleConfig(Variant):
    """Learning rate over time; all start with the warm-up."""

    warmup_steps: Index = 0
    """Optimizer steps of linear warm-up from lr/warmup_steps to lr."""


@dataclass(frozen=True, kw_only=True)
class ConstantConfig(ScheduleConfig):
    """The peak rate throughout."""

    name: ClassVar[str] = "constant"


@dataclass(frozen=True, kw_only=True)
class CosineConfig(ScheduleConfig):
    """Half a cosine from the peak rate to final_factor of it at the last step (Loshchilov & Hutter 2017)."""

    name: ClassVar[str] = "cosine"

    final_factor: Fraction = 0.0
    """Rate at the end, as a share of the peak."""


@dataclass(frozen=True, kw_only=True)
class StepConfig(ScheduleConfig):
    """Multiplied by gamma every step_size epochs, as torch's StepLR."""

    name: ClassVar[str] = "step"

    step_size: Count = 10
    """Epochs between two decays."""
    gamma: Positive = 0.1
    """Factor of each decay."""


@dataclass(frozen=True, kw_only=True)
class ExponentialConfig(ScheduleConfig):
    """Multiplied by gamma every epoch, as torch's ExponentialLR."""

    name: ClassVar[str] = "exponential"

    gamma: Positive = 0.95
    """Factor per epoch."""


@dataclass(frozen=True, kw_only=True)
class PlateauConfig(ScheduleConfig):
    """Multiplied by factor when --best-metric has not improved for patience evaluations, as torch's ReduceLROnPlateau."""

    name: ClassVar[str] = "plateau"

    factor: Fraction = 0.1
    """Factor of each decay."""
    patience: Index = 10
    """Evaluations without improvement before a decay."""
    min_factor: Fraction = 0.0
    """Lower bound of the rate, as a share of the peak."""
