"""Operations of sparse codes, with the same results at every world size."""

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from distae import distributed as dist

MEDIAN_STEPS = 50
"""Iterations of Weiszfeld's algorithm: the distance to the median falls by a constant factor in each."""


def geometric_median(x: Tensor) -> Tensor:
    """The point `[D]` whose distances to the rows of `[N, D]` have the smallest sum (Weiszfeld 1937), in float64."""
    x = x.double()
    median = x.mean(0)
    for _ in range(MEDIAN_STEPS):
        weight = 1 / (x - median).norm(dim=1).clamp_min(1e-12)
        median = weight @ x / weight.sum()
    return median


def global_kth(x: Tensor, k: int, parts: int = 1) -> Tensor:
    """The smallest of the `k` times rows largest values of `[B, L]` of all ranks, or 0 if it is below 0.

    With `parts`, so many ranks have the same rows, and each L of their columns. A scalar, the same bits on every rank and at every
    world size.
    """
    count = k * len(x) * dist.world().world_size // parts
    positive = x.relu().abs().flatten()  # without -0
    return _by_digits(positive, count) if x.is_cpu and not torch.compiler.is_compiling() else _by_rows(positive, count)


def _by_rows(x: Tensor, count: int) -> Tensor:
    """Each rank sends as many values as it can have among the largest `count`, not all."""
    mine = x.topk(min(count, x.numel()), sorted=False).values
    return dist.gather_rows(mine).topk(count, sorted=False).values.min()


DIGIT = 11
"""Bits of a digit."""


def _by_digits(x: Tensor, count: int) -> Tensor:
    """By the digits of the numbers' bits, whose order is that of positive numbers: ranks add up how many have each digit.

    Five times as fast on a CPU as `topk` of a million values; the first digit leaves few of them.
    """
    whole = torch.int32 if x.dtype == torch.float32 else torch.int64
    bits, below = x.view(whole), 8 * x.itemsize - 1
    found = 0
    while below:
        width = min(DIGIT, below)
        below -= width
        digits = (bits >> below) - (found << width) if found else bits >> below
        many = dist.all_reduce_(torch.bincount(digits, minlength=1 << width)).flip(0).cumsum(0)
        rank = int(torch.searchsorted(many, count))
        digit = (1 << width) - 1 - rank
        count -= int(many[rank - 1]) if rank else 0
        bits, found = bits[digits == digit], found << width | digit
    return torch.tensor(found, dtype=whole).view(x.dtype)


class _JumpReLU(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, threshold: Tensor, bandwidth: float) -> Tensor:
        ctx.save_for_backward(x, threshold)
        ctx.bandwidth = bandwidth
        return torch.where(x > threshold, x, 0.0)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, None]:
        x, threshold = ctx.saved_tensors
        grad, near = grads[0], (x - threshold).abs() < ctx.bandwidth / 2
        return grad * (x > threshold), -(threshold / ctx.bandwidth) * (grad * near).sum(0), None


class _Step(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, threshold: Tensor, bandwidth: float) -> Tensor:
        ctx.save_for_backward(x, threshold)
        ctx.bandwidth = bandwidth
        return (x > threshold).to(x.dtype)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[None, Tensor, None]:
        x, threshold = ctx.saved_tensors
        near = (x - threshold).abs() < ctx.bandwidth / 2
        return None, -(grads[0] * near).sum(0) / ctx.bandwidth, None


def jump_relu(x: Tensor, threshold: Tensor, bandwidth: float) -> Tensor:
    """`x` `[B, L]` where it is above `threshold` `[L]`, else 0.

    The gradient of a threshold is -threshold / bandwidth for each value within half a bandwidth of it: a kernel estimate
    (Rajamanoharan et al. 2024, arXiv 2407.14435, eq. 11) that takes pre-activations, below the threshold too.
    """
    result: Tensor = _JumpReLU.apply(x, threshold, bandwidth)
    return result


def step(x: Tensor, threshold: Tensor, bandwidth: float) -> Tensor:
    """1 where `x` `[B, L]` is above `threshold` `[L]`, else 0; the gradient of a threshold is
    estimated by the same kernel (eq. 12)."""
    result: Tensor = _Step.apply(x, threshold, bandwidth)
    return result


class DenseCode(NamedTuple):
    """Activations of latents, most of them 0, multiplied as they are."""

    z: Tensor
    """`[B, L]`."""

    def decode(self, vectors: Tensor) -> Tensor:
        """Sums `[B, D]` of the vectors `[L, D]`, each times its activation."""
        return self.z @ vectors

    def first(self, width: int) -> "DenseCode":
        """The same of the first latents alone: the others are 0."""
        return DenseCode(torch.where(torch.arange(self.z.shape[1], device=self.z.device) < width, self.z, 0.0))

    def counts(self) -> tuple[Tensor, Tensor]:
        """How many latents are active in each sample, `[B]`, and samples each latent is active in, `[L]`: int64."""
        active = self.z > 0
        return active.sum(1), active.sum(0)


class Places(NamedTuple):
    """Which latents of which samples are looked at, sample by sample, and the same latent by latent."""

    shape: tuple[int, int]
    rows: Tensor
    latents: Tensor
    row_starts: Tensor
    by_latent: Tensor
    """The order of `latents`."""
    latent_starts: Tensor

    @classmethod
    def of(cls, choice: Tensor, width: int) -> "Places":
        """Of latents `[B, k]` int64, or of a mask `[B, width]` bool."""
        if choice.dtype == torch.bool:
            rows, latents = choice.nonzero(as_tuple=True)
            in_rows = torch.bincount(rows, minlength=len(choice))
        else:
            rows = torch.arange(len(choice), device=choice.device).repeat_interleave(choice.shape[1])
            latents, in_rows = choice.flatten(), torch.full_like(choice[:, 0], choice.shape[1])
        in_latents = torch.bincount(latents, minlength=width)
        row_starts, latent_starts = (n.cumsum(0) - n for n in (in_rows, in_latents))
        return cls((len(choice), width), rows, latents, row_starts, latents.argsort(stable=True), latent_starts)

    def to_latents(self, x: Tensor, weights: Tensor) -> Tensor:
        """`[L, D]`: sums of the rows `[B, D]` of the samples that a latent is looked at in, each times its weight, of `[n]`."""
        return _bags(x, self.rows[self.by_latent], self.latent_starts, weights[self.by_latent])


def _bags(x: Tensor, rows: Tensor, starts: Tensor, weights: Tensor) -> Tensor:
    return F.embedding_bag(rows, x, starts, mode="sum", per_sample_weights=weights)


class SparseCode(NamedTuple):
    """Activations of latents at the places that may not be 0: nothing of `[B, L]` is multiplied."""

    values: Tensor
    """`[n]`."""
    places: Places

    def decode(self, vectors: Tensor) -> Tensor:
        """Sums `[B, D]` of the vectors `[L, D]`, each times its activation."""
        sums = _bags(vectors.detach(), self.places.latents, self.places.row_starts, self.values)
        result: Tensor = _ToVectors.apply(sums, vectors, self.values.detach(), self.places)
        return result

    def first(self, width: int) -> "SparseCode":
        """The same of the first latents alone: the others are 0."""
        return SparseCode(torch.where(self.places.latents < width, self.values, 0.0), self.places)

    def counts(self) -> tuple[Tensor, Tensor]:
        """How many latents are active in each sample, `[B]`, and samples each latent is active in, `[L]`: int64."""
        active, (rows, latents) = self.values > 0, self.places.shape
        return (torch.bincount(of[active], minlength=n) for of, n in ((self.places.rows, rows), (self.places.latents, latents)))  # type: ignore[return-value]


class _ToVectors(torch.autograd.Function):
    """Adds to `sums` the gradient of the vectors that they are sums of."""

    @staticmethod
    def forward(ctx: Any, sums: Tensor, vectors: Tensor, values: Tensor, places: Places) -> Tensor:
        ctx.save_for_backward(values)
        ctx.places = places
        return sums.view_as(sums)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, None, None]:
        (values,) = ctx.saved_tensors
        return grads[0], ctx.places.to_latents(grads[0], values), None, None


class _Chosen(torch.autograd.Function):
    """Pre-activations (x - center) encoder + bias at some places, of which `pre` has all."""

    @staticmethod
    def forward(ctx: Any, pre: Tensor, x: Tensor, center: Tensor, encoder: Tensor, bias: Tensor, places: Places) -> Tensor:
        ctx.save_for_backward(x, center, encoder)
        ctx.places = places
        return pre[places.rows, places.latents]

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[None, None, Tensor, Tensor, Tensor, None]:
        x, center, encoder = ctx.saved_tensors
        to_bias = torch.zeros_like(encoder[:, 0]).index_add_(0, ctx.places.latents, grads[0])
        return None, None, -(to_bias @ encoder), ctx.places.to_latents(x - center, grads[0]), to_bias, None


def sparse_code(pre: Tensor, choice: Tensor, x: Tensor, center: Tensor, encoder: Tensor, bias: Tensor) -> SparseCode:
    """The positive pre-activations `pre` `[B, L]` at the places of `choice`: latents `[B, k]` or a mask `[B, L]`.

    `pre` is (x - center) encoder + bias of `x` `[B, D]`, `center` `[D]`, `encoder` `[L, D]` and `bias` `[L]`. It needs no gradient:
    theirs are computed at these places alone.
    """
    places = Places.of(choice, pre.shape[1])
    return SparseCode(_Chosen.apply(pre, x, center, encoder, bias, places).relu(), places)


def dense_code(pre: Tensor, choice: Tensor) -> DenseCode:
    """The same as a matrix, with gradients through `pre`."""
    if choice.dtype == torch.bool:
        return DenseCode(torch.where(choice, pre, 0.0).relu())
    return DenseCode(torch.zeros_like(pre).scatter(1, choice, pre.gather(1, choice).relu()))
