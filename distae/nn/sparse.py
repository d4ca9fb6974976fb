"""Operations of sparse codes, with the same results at every world size."""

from typing import Any

import torch
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


def global_kth(x: Tensor, k: int) -> Tensor:
    """The smallest of the `k` times rows largest values of `[B, L]` of all ranks: a scalar, the same on every rank.

    Each rank sends as many values as it can have among them, not all.
    """
    count = k * len(x) * dist.world().world_size
    mine = x.flatten().topk(min(count, x.numel()), sorted=False).values
    everyone = dist.gather_rows(mine)
    return everyone.topk(count, sorted=False).values.min() if len(everyone) > count else everyone.min()


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
