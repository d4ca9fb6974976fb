"""Invertible maps of codes, with the log-determinants of their derivatives."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from distae.losses import log_standard_normal, upcast


class Planar(nn.Module):
    """f(z) = z + u tanh(w.z + b) (Rezende & Mohamed 2015, eq. 10), u corrected so that f is invertible (app. A.1).

    It starts near the identity: the correction cancels u where w.u is log(e - 1).
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.w, self.u = nn.Parameter(torch.empty(1, dim)), nn.Parameter(torch.empty(1, dim))
        self.b = nn.Parameter(torch.zeros(1))
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        nn.init.normal_(self.w, std=self.w.numel() ** -0.5)
        nn.init.normal_(self.u, std=0.01).add_(math.log(math.e - 1) * self.w / self.w.square().sum())
        nn.init.zeros_(self.b)

    def forward(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """f(z) `[B, D]` and log |det df/dz| `[B]`."""
        product = (self.w * self.u).sum()
        u = self.u + (F.softplus(product) - 1 - product) * self.w / self.w.square().sum().clamp_min(1e-12)
        inner = torch.tanh((z * self.w).sum(1, keepdim=True) + self.b)
        slope = (1 - inner.square()) * (self.w * u).sum()
        return z + u * inner, torch.log1p(slope[:, 0])


class Radial(nn.Module):
    """f(z) = z + beta (z - z0) / (alpha + |z - z0|) (Rezende & Mohamed 2015, eq. 14), invertible as beta > -alpha (app. A.2)."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.centre = nn.Parameter(torch.empty(1, dim))
        self.log_alpha, self.raw_beta = nn.Parameter(torch.empty(1)), nn.Parameter(torch.empty(1))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        nn.init.normal_(self.centre, std=0.1)
        nn.init.zeros_(self.log_alpha)
        nn.init.zeros_(self.raw_beta)

    def forward(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """f(z) `[B, D]` and log |det df/dz| `[B]`."""
        alpha = self.log_alpha.exp()
        beta = F.softplus(self.raw_beta) - alpha
        away = z - self.centre
        r = (away.square().sum(1, keepdim=True) + 1e-12).sqrt()
        h = 1 / (alpha + r)
        along = torch.log1p(beta * h - beta * r * h.square())
        return z + beta * h * away, ((z.shape[1] - 1) * torch.log1p(beta * h) + along)[:, 0]


class MaskedLinear(nn.Linear):
    """A linear layer with only the connections of `mask` `[out, in]`; `context` further inputs are all connected."""

    mask: Tensor

    def __init__(self, mask: Tensor, context: int = 0) -> None:
        super().__init__(mask.shape[1] + context, mask.shape[0])
        self.register_buffer("mask", torch.cat([mask, mask.new_ones(len(mask), context)], 1), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight * self.mask, self.bias)


class InverseAutoregressive(nn.Module):
    """z_i <- s_i z_i + (1 - s_i) m_i, s = sigmoid(.), m and s of z_1 … z_{i-1} and a context (Kingma et al. 2016, eq. 10-14).

    The network is masked (MADE, Germain 2015). `reverse` reverses the order in which dimensions depend on each other.
    """

    def __init__(self, dim: int, hidden: int, context: int, reverse: bool) -> None:
        super().__init__()
        self.reverse = reverse
        order = torch.arange(1, dim + 1)
        order = order.flip(0) if reverse else order
        degree = torch.arange(hidden) % max(1, dim - 1) + 1
        self.first = MaskedLinear((degree[:, None] >= order).float(), context)
        self.last = MaskedLinear((order[:, None] > degree).float().repeat(2, 1), context)

    def forward(self, z: Tensor, context: Tensor) -> tuple[Tensor, Tensor]:
        """The new z `[B, D]` and log |det| `[B]`, from z `[B, D]` and context `[B, C]`."""
        mean, log_scale = self.parameters_of(z, context)
        scale = log_scale.exp()
        return scale * z + (1 - scale) * mean, log_scale.sum(1)

    def inverse(self, new: Tensor, context: Tensor) -> Tensor:
        """The z `[B, D]` that `forward` makes `new` of, one dimension after another."""
        z, dim = torch.zeros_like(new), new.shape[1]
        for i in reversed(range(dim)) if self.reverse else range(dim):
            mean, log_scale = (value[:, i] for value in self.parameters_of(z, context))
            z[:, i] = (new[:, i] + torch.expm1(log_scale) * mean) * torch.exp(-log_scale)
        return z

    def parameters_of(self, z: Tensor, context: Tensor) -> tuple[Tensor, Tensor]:
        """m and log s of each dimension, `[B, D]` each."""
        hidden = F.elu(self.first(torch.cat([z, context.to(z.dtype)], 1)))
        mean, gate = upcast(self.last(torch.cat([hidden, context.to(hidden.dtype)], 1))).chunk(2, 1)
        return mean, F.logsigmoid(gate + 1.5)  # starts with scales near 1, sec. 4


class MaskedAutoregressive(nn.Module):
    """A density of x `[B, D]`: u = f(x) is standard normal (Papamakarios et al. 2017), f in steps as above, from x to noise.

    Each step is followed by a scale and an offset of each dimension: its own scales are below 1, and codes whose dimensions follow
    from each other need larger ones.
    """

    def __init__(self, dim: int, hidden: int, flows: int) -> None:
        super().__init__()
        self.flows = nn.ModuleList(InverseAutoregressive(dim, hidden, 0, bool(i % 2)) for i in range(flows))
        self.log_scale, self.offset = nn.Parameter(torch.zeros(flows, dim)), nn.Parameter(torch.zeros(flows, dim))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """u `[B, D]` and log |det du/dx| `[B]`."""
        total = torch.zeros_like(x[:, 0])
        for flow, log_scale, offset in zip(self.flows, self.log_scale, self.offset, strict=True):
            x, log_det = flow(x, x[:, :0])
            x, total = x * log_scale.exp() + offset, total + log_det + log_scale.sum()
        return x, total

    def inverse(self, u: Tensor) -> Tensor:
        """x `[B, D]` of noise `[B, D]`."""
        for i in reversed(range(len(self.flows))):
            u = self.flows[i].inverse((u - self.offset[i]) * torch.exp(-self.log_scale[i]), u[:, :0])  # type: ignore[operator]
        return u

    def log_prob(self, x: Tensor) -> Tensor:
        """log p(x) in nats, `[B]`."""
        u, log_det = self.forward(x)
        return log_standard_normal(u) + log_det
