"""A variational autoencoder with several layers of codes."""

from itertools import pairwise
from math import prod

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from distae.config.models import HVAEConfig, ModelConfig
from distae.config.nets import MLPConfig, NetConfig
from distae.losses import kl_normal, soft_bound, upcast
from distae.models.base import Batch, Codes, NetAutoencoder, Output, output, register
from distae.nn import build_encoder
from distae.noise import Noise

Normal = tuple[Tensor, Tensor]


def combine(a: Normal, b: Normal) -> Normal:
    """Precision-weighted mean and log-variance of two gaussians: their normalised product (Sonderby 2016, eq. 17-18)."""
    precision_a, precision_b = torch.exp(-a[1]), torch.exp(-b[1])
    variance = 1 / (precision_a + precision_b)
    return (a[0] * precision_a + b[0] * precision_b) * variance, variance.log()


@register(HVAEConfig)
class HVAE(NetAutoencoder):
    """Sonderby et al. 2016: -log p(x|z_1) + beta * sum_l KL(q(z_l|x, z_l+1) || p(z_l|z_l+1)), p of the top one standard normal.

    q(z_l|x, z_l+1) is the precision-weighted combination of the bottom-up estimate and the prior (eq. 17-19). `kl_upper` is the
    part of `kl` above z_1.
    """

    cfg: HVAEConfig

    def __init__(self, cfg: ModelConfig, net: NetConfig, shape: tuple[int, ...]) -> None:
        super().__init__(cfg, net, shape)
        sizes, hidden = (self.code_size, *self.cfg.upper), self.cfg.hidden
        widths = (prod(net.code_shape(shape, hidden)), *(hidden for _ in self.cfg.upper))
        self.up = nn.ModuleList(nn.Linear(a, b) for a, b in pairwise(widths))
        self.seen = nn.ModuleList(nn.Linear(width, 2 * d) for width, d in zip(widths, sizes, strict=True))
        between = MLPConfig(hidden=(hidden,), activation=net.activation)
        self.expected = nn.ModuleList(build_encoder(between, (above,), 2 * d) for d, above in pairwise(sizes))

    def build_encoder(self) -> nn.Module:
        return build_encoder(self.net, self.shape, self.cfg.hidden)

    def forward(self, batch: Batch, phase: str, noise: Noise) -> Output:
        z, kls = self.infer(batch.x, noise)
        recon = self.decoder(z, noise)
        nll, kl = self.likelihood(recon, batch.x), torch.stack(kls)
        loss = nll + batch.weight(self.cfg.beta) * kl.sum(0)
        return output(loss, recon, {"recon": nll, "kl": kl.sum(0), "kl_upper": kl[:-1].sum(0)})

    def infer(self, x: Tensor, noise: Noise | None) -> tuple[Tensor, list[Tensor]]:
        """A sample of z_1 `[B, code_size]` (without noise, means throughout) and the KL `[B]` of each layer, top first."""
        estimates = self.bottom_up(x, noise)
        q, p = estimates[-1], (torch.zeros_like(estimates[-1][0]), torch.zeros_like(estimates[-1][1]))
        z, kls = self._draw(q, noise), [kl_normal(*q, *p)]
        for level in reversed(range(len(estimates) - 1)):
            p = self.prior(level, z)
            q = combine(estimates[level], p)
            z = self._draw(q, noise)
            kls.append(kl_normal(*q, *p))
        return z, kls

    def bottom_up(self, x: Tensor, noise: Noise | None) -> list[Normal]:
        """Mean and log-variance of each layer from the encoder alone, each `[B, D]`, z_1's first."""
        features = [F.elu(self.encoder(x, noise))]
        for layer in self.up:
            features.append(F.elu(layer(features[-1])))
        return [_normal(head(h)) for head, h in zip(self.seen, features, strict=True)]

    def prior(self, level: int, above: Tensor) -> Normal:
        """Mean and log-variance of p(z_level | z_level+1), each `[B, D]`; levels count from 0."""
        return _normal(self.expected[level](above, None))

    def encode(self, x: Tensor, label: Tensor | None = None) -> Codes:
        return Codes(self.infer(x, None)[0])

    def sample(self, n: int, noise: Noise) -> Tensor:
        z = noise.normal(next(self.parameters()).new_empty(n, self.cfg.upper[-1]))
        for level in reversed(range(len(self.expected))):
            z = self._draw(self.prior(level, z), noise)
        return self.decode(z)

    def _draw(self, q: Normal, noise: Noise | None) -> Tensor:
        return q[0] if noise is None else q[0] + noise.normal(q[0]) * torch.exp(0.5 * q[1])


def _normal(raw: Tensor) -> Normal:
    mu, logvar = upcast(raw).chunk(2, 1)
    return mu, soft_bound(logvar)
