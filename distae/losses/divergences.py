"""Divergences and distances, in nats unless said otherwise, in at least float32."""

import math
from collections.abc import Callable

import torch
from torch import Tensor


def upcast(x: Tensor) -> Tensor:
    """`x` in at least float32: half precision cannot hold sums of hundreds of terms."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def sum_per_sample(x: Tensor) -> Tensor:
    """`[B, ...]` summed to `[B]`."""
    return x.flatten(1).sum(1)


def kl_by_dimension(mu: Tensor, logvar: Tensor) -> Tensor:
    """KL(N(mu, exp logvar) || N(0, 1)) of each value, in nats (Kingma & Welling 2014, app. B)."""
    mu, logvar = upcast(mu), upcast(logvar)
    return 0.5 * (mu.square() + logvar.exp() - 1 - logvar)


def kl_standard_normal(mu: Tensor, logvar: Tensor) -> Tensor:
    """KL(N(mu, diag exp logvar) || N(0, I)) in nats per sample, `[B]` from two `[B, D]`."""
    return kl_by_dimension(mu, logvar).sum(1)


def soft_bound(x: Tensor, bound: float = 10.0) -> Tensor:
    """`x` limited to (-bound, bound), almost unchanged near 0: an outlier cannot overflow exp(x)."""
    return bound * torch.tanh(x / bound)


def kl_normal(mu: Tensor, logvar: Tensor, prior_mu: Tensor, prior_logvar: Tensor) -> Tensor:
    """KL(N(mu, diag exp logvar) || N(prior_mu, diag exp prior_logvar)) in nats per sample, `[B]` from four `[B, D]`."""
    distance = (mu - prior_mu).square() * torch.exp(-prior_logvar)
    return 0.5 * (prior_logvar - logvar - 1 + distance + torch.exp(logvar - prior_logvar)).sum(1)


def log_normal(z: Tensor, mu: Tensor, logvar: Tensor) -> Tensor:
    """log N(z; mu, exp logvar) of each value, in nats; the three broadcast."""
    return -0.5 * (math.log(2 * math.pi) + logvar + (z - mu).square() * torch.exp(-logvar))


def log_normal_pairs(z: Tensor, mu: Tensor, logvar: Tensor) -> Tensor:
    """log N(z_i; mu_j, diag exp logvar_j) in nats, `[N, M]` from `[N, D]` and two `[M, D]`.

    Three matrix products instead of N * M * D differences; cancellation costs eps * (z / sigma)^2: use it in float64.
    """
    precision = torch.exp(-logvar)
    distance = z.square() @ precision.T - 2 * z @ (mu * precision).T + (mu.square() * precision).sum(1)
    return -0.5 * (z.shape[1] * math.log(2 * math.pi) + logvar.sum(1) + distance)


def log_standard_normal(z: Tensor) -> Tensor:
    """log N(z; 0, I) summed over the last dimension, in nats: `[...]` from `[..., D]`."""
    return -0.5 * (z.square() + math.log(2 * math.pi)).sum(-1)


def squared_distances(a: Tensor, b: Tensor) -> Tensor:
    """Squared distances `[N, M]` between the rows of `a` `[N, D]` and `b` `[M, D]`, in at least float32 also under autocast."""
    a, b = upcast(a), upcast(b)
    with torch.autocast(a.device.type, enabled=False):
        squares = a.square().sum(1, keepdim=True) + b.square().sum(1)
        return (squares - 2 * a @ b.T).clamp_min(0)


KERNELS: dict[str, Callable[[Tensor, float], Tensor]] = {
    "rbf": lambda d2, scale: torch.exp(-d2 / scale),
    "imq": lambda d2, scale: scale / (scale + d2),
}
"""Kernels of a squared distance and its scale, 2 * dimensions * width^2 (Tolstikhin 2018, sec. 4, for imq)."""


def mmd(x: Tensor, y: Tensor, kernel: str, widths: tuple[float, ...], own: Tensor | None = None) -> Tensor:
    """Unbiased estimate of the squared maximum mean discrepancy of two samples `[N, D]`, a scalar (Gretton 2012, lemma 6).

    The kernel is the sum of the kernels of all widths, in units per dimension. `own` `[B]` int64 selects rows and returns their
    share of the estimate, at a cost of B * N: the shares of disjoint sets that cover all rows sum to the estimate.
    """

    def k(a: Tensor, b: Tensor) -> Tensor:
        d2 = squared_distances(a, b)
        return torch.stack([KERNELS[kernel](d2, 2 * x.shape[1] * w**2) for w in widths]).sum(0)

    n = len(x)
    every = torch.arange(n, device=x.device)
    own = every if own is None else own
    others = (own[:, None] != every).to(x.dtype)
    within: Tensor = ((k(x[own], x) + k(y[own], y)) * others).sum() / max(1, n * (n - 1))
    return within - 2 * k(x[own], y).sum() / n**2


def sliced_wasserstein(x: Tensor, y: Tensor, directions: Tensor) -> Tensor:
    """Squared sliced Wasserstein-2 distance of samples `[N, D]` along `directions` `[L, D]`, a scalar (Kolouri 2018, eq. 14)."""
    x, y = upcast(x), upcast(y)
    with torch.autocast(x.device.type, enabled=False):
        along = (directions / directions.norm(dim=1, keepdim=True)).T.to(x.dtype)
        difference: Tensor = (x @ along).sort(0).values - (y @ along).sort(0).values
        return difference.square().mean()
