"""95% confidence intervals."""

import math
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from distae.noise import Noise

Z = 1.959963984540054
"""Normal quantile at 97.5%."""
RESAMPLES = 1000


def wilson(share: float, n: int) -> tuple[float, float]:
    """Of a share of `n` independent samples (Wilson 1927)."""
    centre, width = share + Z**2 / (2 * n), Z * math.sqrt(share * (1 - share) / n + Z**2 / (4 * n**2))
    return (centre - width) / (1 + Z**2 / n), (centre + width) / (1 + Z**2 / n)


def bootstrap(
    statistic: Callable[[NDArray[np.int64]], float], n: int, seed: int, resamples: int = RESAMPLES
) -> tuple[float, float]:
    """The percentiles of `statistic(rows)`, `rows` being `n` of `n` samples drawn with replacement (Efron 1979)."""
    draws = Noise.seeded(seed, n)
    low, high = np.nanpercentile([statistic(draws.integers(n, n).numpy()) for _ in range(resamples)], [2.5, 97.5])
    return float(low), float(high)
