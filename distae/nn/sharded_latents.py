"""Which latents of a dictionary a rank computes: all of them for its own samples, or with `--parallel tp` its part for all samples.

A group of ranks then gathers its samples, each rank computes its latents of them, and gets the sums over all latents of its own
samples: nothing is as large as the dictionary, or as samples times latents. All else is as if each rank had all latents.
"""

from typing import NamedTuple

import torch
import torch.distributed as td
import torch.nn.functional as F
from torch import Tensor

from distae import distributed as dist
from distae.distributed.shards import rows_held


class Latents(NamedTuple):
    """The latents `held` of `width`, for the samples of the ranks of `group`, of which each has an equal number of its own."""

    held: range
    width: int
    group: td.ProcessGroup | None = None
    """The ranks that share the latents; None if this rank has all."""

    @classmethod
    def of(cls, weights: Tensor) -> "Latents":
        """Of which this rank has the rows of `weights` `[L, ...]`."""
        held, group = rows_held(weights)
        return cls(held, len(weights), group)

    @property
    def parts(self) -> int:
        """Into how many the latents are divided."""
        return self.group.size() if self.group else 1

    def samples(self, x: Tensor) -> Tensor:
        """The samples `[B, ...]` whose latents are computed here, of this rank's own. No gradients."""
        return dist.rows_of(x, self.group) if self.group else x

    def summed(self, x: Tensor) -> Tensor:
        """Sums over all latents for this rank's own samples, of `[B, ...]`, sums over those held. Half precision becomes single."""
        if self.group is None:
            return x
        return dist.sum_rows(x if x.element_size() > 2 else x.float(), self.group)

    def mine(self, x: Tensor) -> Tensor:
        """`[held, ...]` of `[L, ...]`."""
        return x[self.held.start : self.held.stop] if self.group else x

    def among_all(self, x: Tensor) -> Tensor:
        """`[L]` of `[held]`, 0 for latents that are not held."""
        return F.pad(x, (self.held.start, self.width - self.held.stop)) if self.group else x

    def even(self, x: Tensor) -> Tensor:
        """`[B, M]` of `[B, held]`, with 0 after it where another rank holds more latents."""
        return F.pad(x, (0, self._most - x.shape[1])) if x.shape[1] < self._most else x

    @property
    def _most(self) -> int:
        return -(-self.width // self.parts)

    def largest(self, x: Tensor, k: int) -> Tensor:
        """The `k` largest latents of each sample, by values `[B, held]`: latents `[B, k]`, or of those held a mask `[B, held]`.

        Of equal values on several ranks the first rank's are taken. The ranks exchange k values of each sample.
        """
        if self.group is None:
            return x.topk(k, dim=1, sorted=False).indices
        values, places = x.detach().topk(min(k, x.shape[1]), dim=1)
        sent = min(k, self._most)
        values = F.pad(values, (0, sent - values.shape[1]), value=-torch.inf)
        everyone = dist.rows_of(values, self.group).view(self.parts, *values.shape).transpose(0, 1).flatten(1)
        first = everyone.sort(dim=1, descending=True, stable=True).indices[:, :k]
        chosen = torch.zeros_like(everyone, dtype=torch.bool).scatter(1, first, True)
        start = self.group.rank() * sent
        return torch.zeros_like(x, dtype=torch.bool).scatter(1, places, chosen[:, start : start + places.shape[1]])
