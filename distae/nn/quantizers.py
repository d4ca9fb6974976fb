"""Quantizers: vectors to discrete codes, with the same results at every world size."""

import torch
from torch import Tensor, nn

from distae import distributed as dist
from distae.losses import squared_distances
from distae.noise import Noise


def straight_through(z: Tensor, quantized: Tensor) -> Tensor:
    """`quantized` in the forward pass; in the backward pass its gradient goes to `z` (Bengio 2013). Both of one shape."""
    return z + (quantized - z).detach()


class Codebook(nn.Module):
    """Nearest-vector quantization (van den Oord 2017, eq. 1-2), codes learned by gradient or as moving averages (app. A.1).

    Averages are of frequencies and mean vectors over the global batch. A code whose average frequency falls below
    `restart_below / size` restarts at a vector of the last batch (Dhariwal 2020, app. B.1). Frequencies start at that threshold,
    and return to it at a restart, so the next batch shows which codes are unused. If `depth` levels share the codes, each offers
    its vectors to every depth-th code.
    """

    codes: Tensor
    frequency: Tensor
    total: Tensor
    seen: Tensor
    seen_total: Tensor
    candidates: Tensor
    offered: Tensor

    def __init__(self, size: int, dim: int, learned: bool, decay: float, restart_below: float, depth: int = 1) -> None:
        super().__init__()
        self.size, self.learned, self.decay, self.restart_below, self.depth = size, learned, decay, restart_below, depth
        self.start = (restart_below or 1) / size
        if learned:
            self.codes = nn.Parameter(torch.empty(size, dim))
        else:
            self.register_buffer("codes", torch.empty(size, dim))
            self.register_buffer("total", torch.empty(size, dim))
        self.register_buffer("frequency", torch.full((size,), self.start))
        for name, shape in {"seen": (size,), "seen_total": (size, dim), "candidates": (size, dim)}.items():
            self.register_buffer(name, torch.zeros(shape), persistent=False)
        self.register_buffer("offered", torch.zeros(size, dtype=torch.bool), persistent=False)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        nn.init.uniform_(self.codes, -1 / self.size, 1 / self.size)
        if not self.learned:
            self.total.copy_(self.codes * self.start)

    def forward(self, z: Tensor, noise: Noise | None, level: int = 0) -> tuple[Tensor, Tensor]:
        """Nearest codes `[B, N, dim]` of `z` `[B, N, dim]`, and their indices `[B, N]`; training also collects statistics.

        `level`, below `depth`, is which of the quantizers that share the codes this is.
        """
        index = squared_distances(z.flatten(0, 1), self.codes).argmin(1).view(z.shape[:2])
        if self.training and noise is not None:
            self._observe(z.detach(), index, noise, level)
        return self.codes[index], index

    @torch.no_grad()
    def _observe(self, z: Tensor, index: Tensor, noise: Noise, level: int) -> None:
        rows = z.flatten(0, 1)
        self.seen.index_add_(0, index.flatten(), torch.ones_like(rows[:, 0]))
        self.seen_total.index_add_(0, index.flatten(), rows)
        if self.restart_below and level < self.size:
            slots = slice(level, None, self.depth)
            self.candidates[slots], self.offered[slots] = self._draw(z, len(self.codes[slots]), noise)

    def _draw(self, z: Tensor, n: int, noise: Noise) -> tuple[Tensor, Tensor]:
        """`n` random vectors of the global batch, `[n, dim]`, 0 where another rank has it; and `[n]` bool, which of them exist.

        Each is drawn from a different n-th of the batch, so none is drawn twice; with fewer than n vectors, some parts are empty.
        Two equal codes would be a tie, which rounding breaks differently at each world size.
        """
        samples = len(z) * dist.world().world_size
        vectors = samples * z.shape[1]
        drawn = noise.integers(n + 1, vectors)
        part = (torch.arange(n, device=z.device) + drawn[-1]) % n
        begin, end = part * vectors // n, (part + 1) * vectors // n
        chosen = begin + drawn[:-1] % (end - begin).clamp_min(1)
        row_of = chosen.new_full((samples,), -1)
        row_of[dist.local_rows(torch.arange(samples, device=z.device))] = torch.arange(len(z), device=z.device)
        row = row_of[chosen // z.shape[1]]
        return torch.where((row >= 0)[:, None], z[row, chosen % z.shape[1]], 0.0), end > begin

    def kept_whole(self) -> list[nn.Parameter]:
        """Codes that are learned: `update` restarts them outside of a forward pass."""
        return list(self.parameters())

    @torch.no_grad()
    def update(self) -> None:
        """Move averages, codes and dead codes after an optimizer step; a step with non-finite vectors changes nothing."""
        both = dist.all_reduce_(torch.cat([self.seen[:, None], self.seen_total, self.candidates], 1))
        seen, (seen_total, candidates) = both[:, 0], both[:, 1:].chunk(2, 1)
        finite = seen_total.isfinite().all() & candidates.isfinite().all()
        rate = torch.where(finite, 1 - self.decay, 0.0)
        self._average(self.frequency, seen / seen.sum(), rate)
        if not self.learned:
            self._average(self.total, torch.where(finite, seen_total, 0.0) / seen.sum(), rate)
            self.codes.copy_(self.total / self.frequency.clamp_min(1e-12)[:, None])
        dead = finite & self.offered & (self.frequency < self.restart_below / self.size)
        self.frequency.copy_(torch.where(dead, self.start, self.frequency))
        self.codes.copy_(torch.where(dead[:, None], candidates, self.codes))
        if not self.learned:
            self.total.copy_(torch.where(dead[:, None], self.codes * self.start, self.total))
        self.seen.zero_()
        self.seen_total.zero_()

    def _average(self, mean: Tensor, new: Tensor, rate: Tensor) -> None:
        mean.copy_(torch.lerp(mean, new, rate.to(mean.dtype)))


def usage(index: Tensor, size: int, valid_mask: Tensor | None) -> Tensor:
    """Relative frequency of each of `size` codes over all ranks, `[size]`, from `index` `[B, N]`, only of rows in `valid_mask`."""
    weight = torch.ones(index.shape, dtype=torch.float64, device=index.device)
    weight = weight if valid_mask is None else weight * valid_mask[:, None]
    counts = dist.all_reduce_(weight.new_zeros(size).index_add_(0, index.flatten(), weight.flatten()))
    return counts / counts.sum()


def describe(frequency: Tensor) -> dict[str, Tensor]:
    """Perplexity of the codes in use, at most their number, and the share of codes that are used. Scalars."""
    entropy = -torch.special.xlogy(frequency, frequency).sum()
    return {"perplexity": entropy.exp(), "live": (frequency > 0).double().mean()}


def fsq(z: Tensor, levels: Tensor) -> tuple[Tensor, Tensor]:
    """Finite scalar quantization (Mentzer 2023, sec. 3.1 and app. A.1) of `z` `[..., len(levels)]`.

    Returns values in [-1, 1] of its shape, with straight-through gradients, and the index `[...]` of each vector's code. Even
    levels are shifted by half a step; the shift is atanh, as it must be for 0 to stay 0 (the paper's listing has tan). With 2
    levels neither is 0, and that shift would be undefined: they are -1 and 1, the sign.
    """
    two = levels == 2
    half = (levels - 1) * (1 - 1e-3) / 2
    offset = torch.where(levels % 2 == 0, 0.5, 0.0).to(z.dtype)
    shift = torch.atanh(torch.where(two, 0.0, offset / half))
    bounded = torch.tanh(z + shift) * half - offset
    width = levels // 2
    rounded = straight_through(bounded, bounded.round())
    digits = rounded.detach().round().long() + width
    return torch.where(two, 2 * rounded + 1, rounded / width), (digits * _basis(levels)).sum(-1)


def fsq_values(index: Tensor, levels: Tensor) -> Tensor:
    """The values `[..., len(levels)]` float64 in [-1, 1] of the codes of `fsq` with these indices `[...]`."""
    width = levels // 2
    rounded = (index[..., None] // _basis(levels) % levels - width).double()
    return torch.where(levels == 2, 2 * rounded + 1, rounded / width)


def _basis(levels: Tensor) -> Tensor:
    """What a digit of each level counts: the product of the levels before it, without cumprod, which ONNX lacks."""
    before = torch.ones(len(levels), len(levels), dtype=torch.bool, device=levels.device).tril(-1)
    return torch.where(before, levels, 1).prod(1)
