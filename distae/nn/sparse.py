"""Operations of sparse codes, with the same results at every world size."""

from typing import Any, NamedTuple

import numpy as np
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


def global_kth(x: Tensor, k: int, near: Tensor, parts: int = 1) -> Tensor:
    """The smallest of the `k` times rows largest values of `[B, L]` of all ranks, or 0 if it is below 0.

    A scalar, the same bits on every rank and at every world size. `near`, a scalar equal on all ranks, is about where it is
    expected: values below `MARGIN` times that are looked at only if too few are above. With `parts`, so many ranks have the same
    rows, and each L of their columns.
    """
    count = k * len(x) * dist.world().world_size // parts
    if torch.compiler.is_compiling() or not x.is_cpu:
        return _by_rows(x.relu().abs().flatten(), count)  # without -0
    found = _by_digits(x, count, MARGIN * near) if near > 0 else None
    if found is None:
        found = _by_digits(x, count, torch.zeros_like(near))
    return x.new_zeros(()) if found is None else found


def _by_rows(x: Tensor, count: int) -> Tensor:
    """Each rank sends as many values as it can have among the largest `count`, not all."""
    mine = x.topk(min(count, x.numel()), sorted=False).values
    return dist.gather_rows(mine).topk(count, sorted=False).values.min()


MARGIN = 0.8
"""A few times as many values as are kept are above so much of the smallest of them, and rarely too few."""
DIGIT = 11
"""Bits of a digit."""


def _by_digits(x: Tensor, count: int, above: Tensor) -> Tensor | None:
    """The smallest of the `count` largest values above a bound that is not below 0; None if there are fewer.

    By the digits of the numbers' bits, whose order is that of positive numbers: ranks add up how many have each digit. On a CPU
    five times as fast as `topk` of a million values, without a bound; the bound and the first digit leave few of them.
    """
    x = x.reshape(-1)[true_places(x > above)]
    bits, below = x.view(torch.int32 if x.dtype == torch.float32 else torch.int64), 8 * x.itemsize - 1
    found = 0
    while below:
        width = min(DIGIT, below)
        below -= width
        digits = (bits >> below) - (found << width) if found else bits >> below
        many = dist.all_reduce_(torch.bincount(digits, minlength=1 << width)).flip(0).cumsum(0)
        if many[-1] < count:
            return None
        rank = int(torch.searchsorted(many, count))
        digit = (1 << width) - 1 - rank
        count -= int(many[rank - 1]) if rank else 0
        bits, found = bits[digits == digit], found << width | digit
    return torch.tensor(found, dtype=bits.dtype).view(x.dtype)


def true_places(mask: Tensor) -> Tensor:
    """Where in the flattened `mask` true values are, `[n]` int64, rising. On a CPU numpy finds them in a third of torch's time."""
    if mask.is_cpu:
        return torch.from_numpy(np.flatnonzero(mask.numpy()))
    return mask.flatten().nonzero()[:, 0]


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
    in_rows: Tensor
    """How many of each sample, `[B]`."""
    in_latents: Tensor
    by_latent: Tensor
    """The order of `latents`."""

    @classmethod
    def of(cls, choice: Tensor, width: int) -> "Places":
        """Of latents `[B, k]` int64, or of a mask `[B, width]` bool."""
        if choice.dtype == torch.bool:
            flat = true_places(choice)
            rows, latents = flat // width, flat % width
            in_rows = torch.bincount(rows, minlength=len(choice))
        else:
            rows = torch.arange(len(choice), device=choice.device).repeat_interleave(choice.shape[1])
            latents, in_rows = choice.flatten(), torch.full_like(choice[:, 0], choice.shape[1])
        in_latents = torch.bincount(latents, minlength=width)
        return cls((len(choice), width), rows, latents, in_rows, in_latents, _order(latents, width))

    def to_rows(self, vectors: Tensor, weights: Tensor) -> Tensor:
        """`[B, D]`: sums of the vectors `[L, D]` of the latents that are looked at in a sample, each times its weight, of `[n]`."""
        return _bags(vectors, self.latents, self.in_rows, weights)

    def to_latents(self, x: Tensor, weights: Tensor) -> Tensor:
        """`[L, D]`: sums of the rows `[B, D]` of the samples that a latent is looked at in, each times its weight, of `[n]`."""
        return _bags(x, self.rows[self.by_latent], self.in_latents, weights[self.by_latent])


def _bags(x: Tensor, rows: Tensor, lengths: Tensor, weights: Tensor) -> Tensor:
    return F.embedding_bag(rows, x, lengths.cumsum(0) - lengths, mode="sum", per_sample_weights=weights)


def _order(x: Tensor, below: int) -> Tensor:
    """That which sorts numbers from 0, stable. On a CPU numpy sorts those of 16 bits by radix, in a tenth of torch's time."""
    if x.is_cpu and below <= 1 << 16:
        return torch.from_numpy(np.argsort(x.to(torch.uint16).numpy(), kind="stable"))
    return x.argsort(stable=True)


class SparseCode(NamedTuple):
    """Activations of latents at the places that may not be 0: nothing of `[B, L]` is multiplied."""

    values: Tensor
    """`[n]`."""
    places: Places

    def decode(self, vectors: Tensor) -> Tensor:
        """Sums `[B, D]` of the vectors `[L, D]`, each times its activation."""
        sums = self.places.to_rows(vectors.detach(), self.values)
        result: Tensor = _ToVectors.apply(sums, vectors, self.values.detach(), self.places)
        return result

    def relu(self) -> "SparseCode":
        """Those above 0; the others are 0."""
        return SparseCode(self.values.relu(), self.places)

    def first(self, width: int) -> "SparseCode":
        """The same of the first latents alone: the others are 0."""
        return SparseCode(torch.where(self.places.latents < width, self.values, 0.0), self.places)

    def counts(self) -> tuple[Tensor, Tensor]:
        """How many latents are active in each sample, `[B]`, and samples each latent is active in, `[L]`: int64."""
        active, (rows, latents) = self.values > 0, self.places.shape
        if active.all():
            return self.places.in_rows, self.places.in_latents
        return (torch.bincount(of[active], minlength=n) for of, n in ((self.places.rows, rows), (self.places.latents, latents)))  # type: ignore[return-value]


class _ToVectors(torch.autograd.Function):
    """Adds to `sums` the gradient of the vectors that they are sums of."""

    @staticmethod
    def forward(ctx: Any, sums: Tensor, vectors: Tensor, values: Tensor, places: Places) -> Tensor:
        ctx.save_for_backward(values)
        ctx.places = places
        return sums.view_as(sums)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor | None, None, None]:
        (values,) = ctx.saved_tensors
        return grads[0], ctx.places.to_latents(grads[0], values) if ctx.needs_input_grad[1] else None, None, None


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


class _ToThreshold(torch.autograd.Function):
    """Adds to sums of decoder vectors and to numbers of active latents the gradients of `jump_relu` and of `step` to thresholds.

    A threshold's is that of the sums, added up over the samples whose value is near it, times the latent's vector: one product
    with a whole matrix at most, and no gradient of all activations.
    """

    @staticmethod
    def forward(ctx: Any, sums: Tensor, l0: Tensor, threshold: Tensor, vectors: Tensor, window: "Window") -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(threshold, vectors)
        ctx.window = window
        return sums.view_as(sums), l0.view_as(l0)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, Tensor, None, None]:
        (of_sums, of_l0), (threshold, vectors), window = grads, ctx.saved_tensors, ctx.window
        near = window.near(window.pre, threshold)
        counted = near if window.counted is window.pre else window.near(window.counted, threshold)
        by_sums = (_transposed_product(near, of_sums, window.bound) * vectors).sum(1)
        by_l0 = of_l0 @ counted.to(of_l0.dtype)
        return of_sums, of_l0, -(threshold * by_sums + by_l0) / window.bandwidth, None, None


class Window(NamedTuple):
    """What moves thresholds: pre-activations `[B, L]`, those that the number of active latents counts, a width around a threshold.

    Places in it are taken one by one where there are `bound` values for each, or more.
    """

    pre: Tensor
    counted: Tensor
    bandwidth: float
    bound: float

    def near(self, x: Tensor, threshold: Tensor) -> Tensor:
        """Which are within half a bandwidth, `[B, L]` bool."""
        return (x - threshold).abs_() < self.bandwidth / 2


def _transposed_product(mask: Tensor, x: Tensor, bound: float) -> Tensor:
    """mask^T x, `[L, D]` of `[B, L]` bool and `[B, D]`."""
    if mask.numel() < bound * int(mask.count_nonzero()):
        return mask.to(x.dtype).T @ x
    places = Places.of(mask, mask.shape[1])
    return places.to_latents(x, torch.ones_like(places.rows, dtype=x.dtype))


def with_thresholds(sums: Tensor, l0: Tensor, threshold: Tensor, vectors: Tensor, window: Window) -> tuple[Tensor, Tensor]:
    """Sums `[B, D]` of vectors `[L, D]` and numbers of active latents `[B]`, of a `SparseCode` of those above thresholds `[L]`: the
    same values, with the gradients that `jump_relu` and `step` give the thresholds."""
    result: tuple[Tensor, Tensor] = _ToThreshold.apply(sums, l0, threshold, vectors.detach(), window)
    return result


def sparse_code(pre: Tensor, choice: Tensor, x: Tensor, center: Tensor, encoder: Tensor, bias: Tensor) -> SparseCode:
    """The pre-activations `pre` `[B, L]` at the places of `choice`: latents `[B, k]` or a mask `[B, L]`.

    `pre` is (x - center) encoder + bias of `x` `[B, D]`, `center` `[D]`, `encoder` `[L, D]` and `bias` `[L]`. It gets no gradient:
    theirs are computed at these places alone.
    """
    places = Places.of(choice, pre.shape[1])
    return SparseCode(_Chosen.apply(pre.detach(), x, center, encoder, bias, places), places)


def dense_code(pre: Tensor, choice: Tensor) -> DenseCode:
    """Those that are above 0 as a matrix, with gradients through `pre`."""
    if choice.dtype == torch.bool:
        return DenseCode(torch.where(choice, pre, 0.0).relu())
    return DenseCode(torch.zeros_like(pre).scatter(1, choice, pre.gather(1, choice).relu()))
