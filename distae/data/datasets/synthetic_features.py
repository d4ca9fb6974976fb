"""Samples made of known sparse features."""

from collections.abc import Iterator

import torch
from torch import Tensor

from distae.config.data.synthetic_features import SyntheticFeaturesConfig
from distae.data.datasets.base import register_dataset
from distae.data.source import Tensors
from distae.data.splits import Split, hold_out
from distae.data.transform import Transform
from distae.noise import Noise, Rows

CHUNK = 4096
"""Samples that are made at once: a multiple of the blocks in which noise is drawn."""


class Features:
    """The dictionary that the samples are made of, and which of its vectors each has."""

    def __init__(self, cfg: SyntheticFeaturesConfig) -> None:
        self.cfg = cfg
        drawn = self._noise("vectors", 1).common(cfg.features + 1, cfg.dim)
        drawn = drawn / drawn.norm(dim=1, keepdim=True)
        self.vectors, self.bias = drawn[:-1], cfg.bias * drawn[-1]
        rates = torch.tensor(cfg.rates, dtype=torch.float64)
        self.least = torch.special.ndtri(1 - rates).float()  # what a standard normal variable exceeds at that rate

    def activations(self, rows: Tensor) -> Tensor:
        """How much of each vector the samples `rows` `[n]`, rising, have: `[n, features]` float32, mostly 0."""
        found = [made[rows[(rows >= start) & (rows < start + len(made))] - start] for start, made in self.chunks()]
        return torch.cat(found)

    def chunks(self) -> Iterator[tuple[int, Tensor]]:
        """The activations of all samples, `CHUNK` at a time, with the number of the first. They depend on the number alone."""
        for start in range(0, self.cfg.samples, CHUNK):
            yield start, self._made(start, min(CHUNK, self.cfg.samples - start))

    def _made(self, start: int, count: int) -> Tensor:
        c, own, common = self.cfg, torch.empty(count, self.cfg.features), torch.empty(count, self.cfg.groups)
        level = self._noise("active", count, start).normal(own)
        if c.correlation:
            shared = self._noise("groups", count, start).normal(common)[:, torch.arange(c.features) % c.groups]
            level = c.correlation**0.5 * shared + (1 - c.correlation) ** 0.5 * level
        size = (c.magnitude + c.magnitude_std * self._noise("magnitudes", count, start).normal(own)).abs()
        return torch.where(level > self.least, size, 0.0)

    def _noise(self, name: str, count: int, start: int = 0) -> Noise:
        return Noise(self.cfg.seed, ("synthetic_features", name), Rows(count, start), torch.device("cpu"))


@register_dataset(SyntheticFeaturesConfig)
def load(cfg: SyntheticFeaturesConfig) -> tuple[Split, Split]:
    features = Features(cfg)
    source = Tensors(torch.cat([made @ features.vectors + features.bias for _, made in features.chunks()]), None)
    source.features = features
    return hold_out(Split(source, Transform()), cfg.test_fraction)
