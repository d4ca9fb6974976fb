"""Settings of samples made of known sparse features."""

from dataclasses import dataclass
from typing import ClassVar, Literal

from distae.config.data.base import DataConfig
from distae.config.fields import Count, Fraction, Index, NonNegative, Positive
from distae.errors import UserError


@dataclass(frozen=True, kw_only=True)
class SyntheticFeaturesConfig(DataConfig):
    """Samples that are sums of a few vectors of a known dictionary, which sparse autoencoders should find (Sharkey 2022). There are
    more vectors than values: they are in superposition (Elhage 2022). Nothing is downloaded. `--config
    recipe:sae/synth_sae_bench_16k` is a published benchmark."""

    name: ClassVar[str] = "synthetic_features"

    samples: Count = 50000
    """Number of samples; each depends on its index alone. More than 256 MB are made as they are read."""
    features: Count = 512
    """Vectors of the dictionary, random ones of length 1."""
    dim: Count = 64
    """Values of a sample."""
    active: Positive = 8.0
    """Mean number of active features of a sample; not used with --data.rate-range."""
    zipf: NonNegative = 0.5
    """A feature of rank r is active with a probability in proportion to r^-zipf."""
    rate_range: tuple[Fraction, Fraction] | None = None
    """Lowest and highest of these probabilities: r^-zipf is stretched to it linearly."""
    magnitude: Positive = 1.0
    """Mean of the normal distribution that magnitudes of active features are drawn from."""
    magnitude_last: Positive | None = None
    """The mean of the rarest feature, --data.magnitude then being that of the most frequent one: linear in the rank between."""
    magnitude_std: NonNegative = 0.25
    """Standard deviation of that distribution."""
    magnitude_std_std: NonNegative = 0.0
    """If not 0, each feature has a standard deviation of its own: the absolute value of a normal one of mean --data.magnitude-std
    and this standard deviation."""
    magnitude_below: Literal["folded", "zero"] = "folded"
    """What negative magnitudes become. folded: their absolute value; zero: 0, so that the feature is not active."""
    correlation: Fraction = 0.0
    """Correlation, within a group, of the normal variables that decide which features are active."""
    groups: Count = 16
    """Groups of features with that correlation: every groups-th feature is of one."""
    correlation_rank: Index = 0
    """If not 0, correlations are those of this many normal factors instead, with random weights of each feature."""
    correlation_scale: NonNegative = 0.1
    """Standard deviation of these weights; the squares of those of a feature add up to 0.99 at most."""
    roots: Index = 0
    """Trees of features: a feature can be active only where its parent is. The first features are the roots, the next ones their
    children, and so on. Rates are raised for that, as far as probabilities go; 0: no trees."""
    children: Count = 4
    """Children of each feature of a tree."""
    depth: Count = 3
    """Levels of a tree below its root."""
    exclusive: bool = True
    """At most one child of a feature is active: a random one of several."""
    scale_children: bool = False
    """Magnitudes of children are multiplied by their parent's, divided by its mean."""
    orthogonal_steps: Index = 0
    """Steps of Adam that make the vectors more orthogonal."""
    bias: NonNegative = 0.5
    """Length of a vector that is part of every sample."""
    seed: Index = 0
    """Seed of the dictionary and the samples."""
    test_fraction: Fraction = 0.1
    """Share of the samples held out for the test split."""

    @property
    def rates(self) -> tuple[float, ...]:
        """Probability that each feature is active, falling; with trees, what their rates are raised for."""
        shares = [(rank + 1) ** -self.zipf for rank in range(self.features)]
        if self.rate_range is None:
            total = sum(shares)
            return tuple(self.active * share / total for share in shares)
        (low, high), least = self.rate_range, shares[-1]
        return tuple(low + (high - low) * (share - least) / (1 - least) for share in shares)

    def shape(self) -> tuple[int, ...]:
        if self.rate_range is not None:
            self._check_range(*self.rate_range)
        elif self.rates[0] >= 1:
            raise UserError(
                f"--data.active {self.active:g}: the most frequent of {self.features} features would be active with probability "
                f"{self.rates[0]:.3g}; give a lower one, more --data.features or a lower --data.zipf"
            )
        if self.correlation and self.correlation_rank:
            raise UserError("--data.correlation is of --data.groups, --data.correlation-rank of factors: give one of the two")
        if self.roots > self.features:
            raise UserError(f"--data.roots {self.roots}: valid up to --data.features, which is {self.features}")
        return (self.dim,)

    def _check_range(self, low: float, high: float) -> None:
        if not 0 < low < high or self.zipf == 0 or self.features < 2:
            raise UserError(
                f"--data.rate-range {low:g} {high:g}: valid are a lower and a higher probability above 0, with two --data.features "
                "or more and --data.zipf above 0"
            )
