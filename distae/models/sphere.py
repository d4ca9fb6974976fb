"""A variational autoencoder on the unit sphere."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from distae.config.models import SVAEConfig
from distae.losses import upcast
from distae.models.base import Batch, Codes, NetAutoencoder, Output, output, register
from distae.nn import build_encoder
from distae.noise import Noise

GRID = 1024


def spread(t: Tensor) -> Tensor:
    """Angles from 0 to pi, of the shape of `t`, increasing with t from 0 to 1."""
    return math.pi * t**3 * (4 - 3 * t)


class VonMisesFisher:
    """vMF(mu, kappa) on the sphere of `dim` dimensions: density of z proportional to exp(kappa mu.z).

    The angle t between z and mu has density proportional to sin(t)^(dim-2) exp(kappa (cos t - 1)). A grid of angles gives the
    normaliser, the KL from the uniform distribution and, by inverting the cumulative sum, samples. It needs no Bessel functions and
    no rejection, and has the exact pathwise derivative dt/dkappa = -(dF/dkappa) / p(t).

    The angles are `spread` of an even grid: dense near mu, where a large kappa puts all mass, and with slope 0 at both ends, where
    the sum then has no edge. In float32, KL and gradient are accurate to 1e-5 up to a kappa of 10^4.
    """

    def __init__(self, kappa: Tensor, dim: int) -> None:
        """`kappa` `[B]`, positive."""
        even = (torch.arange(GRID, dtype=kappa.dtype, device=kappa.device) + 0.5) / GRID
        angle = spread(even)
        self.kappa, self.dim = kappa, dim
        self.cos_minus_one = -2 * torch.sin(angle / 2).square()  # cos t - 1, without cancellation
        log_width = torch.log(even.square() * (1 - even)) + math.log(12 * math.pi / GRID)  # of a cell, by spread's derivative
        raw = (dim - 2) * torch.log(torch.sin(angle)) + log_width + kappa[:, None] * self.cos_minus_one
        self.mass = torch.softmax(raw, 1)
        self.log_total = torch.logsumexp(raw, 1)

    def kl_from_uniform(self) -> Tensor:
        """KL(vMF || uniform) in nats, `[B]` (Davidson 2018, eq. 13)."""
        uniform = math.lgamma((self.dim - 1) / 2) + math.lgamma(0.5) - math.lgamma(self.dim / 2)
        return self.kappa * (self.mass * self.cos_minus_one).sum(1) - self.log_total + uniform

    def angle(self, u: Tensor) -> Tensor:
        """Angles to mu `[B]` of the samples at quantiles `u` `[B]`, with gradients to kappa."""
        mass = self.mass.double()  # float32 sums end below 1, and quantiles above them would fall to -mu
        sums = mass.cumsum(1)
        cumulative = sums / sums[:, -1:]
        cell = torch.searchsorted(cumulative.detach(), u[:, None].to(mass.dtype)).clamp_max(GRID - 1)
        inside, above = mass.gather(1, cell), cumulative.gather(1, cell)
        share = 1 - ((above - u[:, None]) / inside.clamp_min(torch.finfo(mass.dtype).tiny)).clamp(0, 1)
        return spread((cell + share) / GRID)[:, 0].to(u.dtype)


def rotate(z: Tensor, mu: Tensor) -> Tensor:
    """`z` under the Householder reflection that takes the first axis to `mu`; all `[B, D]` (Davidson 2018, algorithm 1)."""
    axis = torch.zeros_like(mu)
    axis[:, 0] = 1
    normal = F.normalize(axis - mu, dim=1, eps=1e-12)
    return z - 2 * (z * normal).sum(1, keepdim=True) * normal


@register(SVAEConfig)
class SVAE(NetAutoencoder):
    """Davidson et al. 2018: -log p(x|z) + beta * KL(vMF(mu(x), kappa(x)) || uniform on the sphere); z has length 1."""

    cfg: SVAEConfig

    def build_encoder(self) -> nn.Module:
        return build_encoder(self.net, self.shape, self.cfg.latent_dim + 1)

    def forward(self, batch: Batch, phase: str, noise: Noise) -> Output:
        mu, kappa = self.posterior(batch.x, noise)
        q = VonMisesFisher(kappa, self.code_size)
        z = self.draw(q, mu, noise)
        recon = self.decoder(z, noise)
        nll, kl = self.likelihood(recon, batch.x), q.kl_from_uniform()
        return output(nll + batch.weight(self.cfg.beta) * kl, recon, {"recon": nll, "kl": kl})

    def draw(self, q: VonMisesFisher, mu: Tensor, noise: Noise) -> Tensor:
        """A sample of q about mu, `[B, code_size]`: an angle to mu, and a uniform direction around it."""
        angle = q.angle(noise.uniform(mu[:, 0]))[:, None]
        around = F.normalize(noise.normal(mu[:, 1:]), dim=1)
        return rotate(torch.cat([angle.cos(), angle.sin() * around], 1), mu)

    def encode(self, x: Tensor, label: Tensor | None = None) -> Codes:
        mu, _ = self.posterior(x, None)
        return Codes(mu, mu)

    def posterior(self, x: Tensor, noise: Noise | None) -> tuple[Tensor, Tensor]:
        """mu `[B, code_size]` of length 1, and kappa `[B]`, bounded to what the grid of angles resolves."""
        raw = upcast(self.encoder(x, noise)).view(x.shape[0], -1, self.cfg.latent_dim + 1)
        kappa = raw[:, :, -1].mean(1)  # one concentration for all positions
        return F.normalize(raw[:, :, :-1].flatten(1), dim=1), 1 + 1000 * torch.tanh(F.softplus(kappa) / 1000)

    def sample(self, n: int, noise: Noise) -> Tensor:
        return self.decode(F.normalize(self.normal_codes(n, noise), dim=1))
