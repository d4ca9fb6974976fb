"""Densities of sequences of indices, one index after another."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from distae.noise import Noise


class CausalIndices(nn.Module):
    """log p(i) = sum over n of log p(i_n | i_1 … i_n-1), by a recurrent network over the positions.

    What a PixelCNN is to grids (van den Oord 2017, sec. 3.2 of VQ-VAE), for sequences of any kind: every index sees all before it.
    """

    def __init__(self, size: int, positions: int, hidden: int) -> None:
        """`size` indices to choose from at each of the `positions`."""
        super().__init__()
        self.size = size
        self.index, self.position = nn.Embedding(size + 1, hidden), nn.Embedding(positions, hidden)  # index `size`: the beginning
        self.recurrent, self.last = nn.GRU(hidden, hidden, batch_first=True), nn.Linear(hidden, size)

    def forward(self, indices: Tensor) -> Tensor:
        """Unnormalised log-probabilities `[B, N, size]` of each of `indices` `[B, N]` int64, given those before it."""
        before = F.pad(indices[:, :-1], (1, 0), value=self.size)
        hidden, _ = self.recurrent(self.index(before) + self.position.weight)
        logits: Tensor = self.last(hidden)
        return logits

    def log_prob(self, indices: Tensor) -> Tensor:
        """log p of sequences `[B, N]` in nats, `[B]`."""
        return -F.cross_entropy(self(indices).transpose(1, 2), indices, reduction="none").sum(1)

    @torch.no_grad()
    def sample(self, n: int, noise: Noise) -> Tensor:
        """`n` sequences `[n, N]` int64."""
        uniform = noise.uniform(self.position.weight.new_empty(n, len(self.position.weight), dtype=torch.float64))
        chosen, state = torch.full((n, 1), self.size, device=uniform.device), None
        found = []
        for position in range(uniform.shape[1]):
            hidden, state = self.recurrent(self.index(chosen) + self.position.weight[position], state)
            cumulative = torch.softmax(self.last(hidden[:, 0]).double(), 1).cumsum(1)
            at = torch.searchsorted(cumulative / cumulative[:, -1:], uniform[:, position, None].contiguous(), right=True)
            chosen = at.clamp_max(self.size - 1)
            found.append(chosen)
        return torch.cat(found, 1)
