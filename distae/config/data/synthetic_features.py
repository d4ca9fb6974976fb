"""Settings of samples made of known sparse features."""

from dataclasses import dataclass
from typing import ClassVar

from distae.config.data.base import DataConfig
from distae.config.fields import Count, Fraction, Index, NonNegative, Positive
from distae.errors import UserError

VALUES = 1 << 32
"""Of all samples together, at most: each takes 4 bytes in memory."""


@dataclass(frozen=True, kw_only=True)
class SyntheticFeaturesConfig(DataConfig):
    """Samples that are sums of a few vectors of a known dictionary, which sparse autoencoders should find (Sharkey 2022). There are
    more vectors than values: they are in superposition (Elhage 2022). Nothing is downloaded."""

    name: ClassVar[str] = "synthetic_features"

    samples: Count = 50000
    """Number of samples; each depends on its index alone."""
    features: Count = 512
    """Vectors of the dictionary, random ones of length 1."""
    dim: Count = 64
    """Values of a sample."""
    active: Positive = 8.0
    """Mean number of active features of a sample."""
    zipf: NonNegative = 0.5
    """A feature of rank r is active with a probability in proportion to r^-zipf."""
    magnitude: Positive = 1.0
    """Mean of the normal distribution whose absolute values active features have."""
    magnitude_std: NonNegative = 0.25
    """Its standard deviation."""
    correlation: Fraction = 0.0
    """Correlation, within a group, of the normal variables that decide which features are active."""
    groups: Count = 16
    """Groups of features with that correlation: every groups-th feature is of one."""
    bias: NonNegative = 0.5
    """Length of a vector that is part of every sample."""
    seed: Index = 0
    """Seed of the dictionary and the samples."""
    test_fraction: Fraction = 0.1
    """Share of the samples held out for the test split."""

    @property
    def rates(self) -> tuple[float, ...]:
        """Probability that each feature is active, falling."""
        shares = [(rank + 1) ** -self.zipf for rank in range(self.features)]
        return tuple(self.active * share / sum(shares) for share in shares)

    def shape(self) -> tuple[int, ...]:
        if self.rates[0] >= 1:
            raise UserError(
                f"--data.active {self.active:g}: the most frequent of {self.features} features would be active with probability "
                f"{self.rates[0]:.3g}; give a lower one, more --data.features or a lower --data.zipf"
            )
        if self.samples * self.dim > VALUES:
            raise UserError(f"--data.samples {self.samples} of --data.dim {self.dim}: at most {VALUES} values in all")
        return (self.dim,)
