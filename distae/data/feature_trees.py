"""Trees of features: a feature can be active only where its parent is, and may exclude its siblings."""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad

from distae.config.data.synthetic_features import SyntheticFeaturesConfig


class Level(NamedTuple):
    """Features `first`, ..., `first + size - 1`, the children of features `parent`, `parent + 1`, ...: the same number of each."""

    first: int
    size: int
    parent: int
    parents: int


class FeatureTrees:
    """The trees that SAELens' `generate_hierarchy` makes, with exclusion in all of them or in none (Chanin and Garriga-Alonso 2026,
    arXiv 2602.14687): the first features are the roots, then level after level, until there are no more features."""

    def __init__(self, cfg: SyntheticFeaturesConfig) -> None:
        self.cfg, self.levels = cfg, list[Level]()
        parent, parents = 0, cfg.roots
        for _ in range(cfg.depth if cfg.roots else 0):
            first = parent + parents
            if (size := min(parents * cfg.children, cfg.features - first)) <= 0:
                break
            self.levels.append(Level(first, size, parent, -(-size // cfg.children)))
            parent, parents = first, size
        self.families = sum(level.parents for level in self.levels)
        """Features with children."""

    def _by_family(self, level: Level, values: Tensor) -> Tensor:
        """The values `[..., features]` of a level as `[..., parents, children]`, the last family filled with 0."""
        mine = values[..., level.first : level.first + level.size]
        padded: Tensor = pad(mine, (0, level.parents * self.cfg.children - level.size))
        return padded.view(*padded.shape[:-1], level.parents, self.cfg.children)

    def raised(self, rates: Tensor) -> Tensor:
        """At which rates `[features]` features must be active before trees are applied, to be active at `rates` after that.

        Approximate for siblings that exclude one another, and at most 1 (`compute_probability_correction_factors` of SAELens).
        """
        rates, base = rates.clone(), rates
        for level in self.levels:
            own, parent = self._by_family(level, base), base[level.parent : level.parent + level.parents, None]
            others = own.sum(1, keepdim=True) - own if self.cfg.exclusive else torch.zeros_like(own)
            raised = own / parent * (1 + others / parent)
            rates[level.first : level.first + level.size] = raised.flatten()[: level.size]
        return rates.clamp_max(1.0)

    def apply(self, z: Tensor, choice: Tensor, mean: Tensor) -> None:
        """Change activations `[n, features]` in place, level by level.

        `choice` `[n, families]`, uniform in [0, 1), decides between siblings; `mean` `[features]` is what parents are divided by.
        """
        begin = 0
        for level in self.levels:
            parent = slice(level.parent, level.parent + level.parents)
            of_parent = z[:, parent] / mean[parent] if self.cfg.scale_children else (z[:, parent] > 0).to(z.dtype)
            here = self._by_family(level, z) * of_parent[..., None]
            if self.cfg.exclusive:
                here = here * _one_of(here > 0, choice[:, begin : begin + level.parents])
            z[:, level.first : level.first + level.size] = here.flatten(1)[:, : level.size]
            begin += level.parents


def _one_of(active: Tensor, choice: Tensor) -> Tensor:
    """A mask of one active child of each family that has any: `[n, parents, children]`; `choice` `[n, parents]` in [0, 1)."""
    number = active.cumsum(2)
    chosen = torch.minimum((choice * number[..., -1]).floor() + 1, number[..., -1])  # rounding may reach the number itself
    return active & (number == chosen[..., None])
