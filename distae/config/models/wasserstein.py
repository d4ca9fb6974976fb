"""Wasserstein autoencoders without a critic."""

from dataclasses import dataclass
from typing import ClassVar, Literal

from distae.config.fields import Count, Positive
from distae.config.models.base import ModelConfig
from distae.config.weights import Weight


@dataclass(frozen=True, kw_only=True)
class CodePriorConfig(ModelConfig):
    """Deterministic codes with a standard normal prior."""

    generative: ClassVar[bool] = True


@dataclass(frozen=True, kw_only=True)
class WAEMMDConfig(CodePriorConfig):
    """Wasserstein autoencoder (Tolstikhin 2018) with the maximum mean discrepancy of codes and prior."""

    name: ClassVar[str] = "wae_mmd"
    terms: ClassVar[tuple[str, ...]] = ("recon", "mmd")

    weight: Weight = 100.0
    """Weight of the MMD over the global batch."""
    kernel: Literal["rbf", "imq"] = "imq"
    """Kernel of the MMD: gaussian, or inverse multiquadratic."""
    bandwidths: tuple[Positive, ...] = (1.0,)
    """Widths of the kernels that are summed, in standard deviations of the prior."""

    @property
    def couples_samples(self) -> bool:
        return True


@dataclass(frozen=True, kw_only=True)
class SWAEConfig(CodePriorConfig):
    """Sliced Wasserstein autoencoder (Kolouri 2018): codes and prior are compared along random directions."""

    name: ClassVar[str] = "swae"
    terms: ClassVar[tuple[str, ...]] = ("recon", "sliced")

    weight: Weight = 10.0
    """Weight of the squared sliced Wasserstein distance over the global batch."""
    slices: Count = 50
    """Random directions per step."""

    @property
    def couples_samples(self) -> bool:
        return True
