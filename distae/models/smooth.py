"""Deterministic autoencoders regularised by the derivative or the weights of a network."""

from abc import abstractmethod

import torch
from torch import Tensor, nn

from distae import distributed as dist
from distae.config.models import ContractiveAEConfig, RAEGPConfig, RAEL2Config
from distae.losses import upcast
from distae.models.ae import AE
from distae.models.base import Batch, Codes, NetAutoencoder, Output, PreprocessedEncoder, output, register
from distae.nn.layers import ACTIVATIONS
from distae.noise import Noise


def jacobian_norm(y: Tensor, x: Tensor, noise: Noise) -> Tensor:
    """One-sample estimate of the squared Frobenius norm of dy/dx per sample: |v' dy/dx|^2, v standard normal (Hutchinson 1990).

    Differentiable, `[B]` from `y` and `x` `[B, ...]`, where row i of y is a function of row i of x.
    """
    v = noise.normal(y).to(y.dtype)
    (row,) = torch.autograd.grad((y * v).sum(), x, create_graph=True)
    return upcast(row).square().flatten(1).sum(1)


@register(ContractiveAEConfig)
class ContractiveAE(AE):
    """Rifai et al. 2011, eq. 5: -log p(x|z) + weight * |dz/dx|_F^2.

    If the encoder is one layer, without preprocessing of x, the norm is sum_j act'(a_j)^2 |W_j|^2 (eq. 7); otherwise it is
    estimated by `jacobian_norm`.
    """

    cfg: ContractiveAEConfig

    @torch.enable_grad()
    def forward(self, batch: Batch, phase: str, noise: Noise) -> Output:
        x = batch.x.detach().requires_grad_()
        raw = self.encoder(x, noise)
        z = ACTIVATIONS[self.cfg.code_activation](raw)
        recon = self.decoder(z, noise)
        nll, contraction = self.likelihood(recon, batch.x), self.contraction(x, raw, z, noise)
        return output(nll + batch.weight(self.cfg.weight) * contraction, recon, {"recon": nll, "contraction": contraction})

    def contraction(self, x: Tensor, raw: Tensor, z: Tensor, noise: Noise) -> Tensor:
        """Squared Frobenius norm of dz/dx, `[B]`; `raw` `[B, code_size]` is z before its activation."""
        linear = [m for m in self.encoder.modules() if isinstance(m, nn.Linear | nn.Conv2d)]
        if len(linear) > 1 or isinstance(self.encoder, PreprocessedEncoder):
            return jacobian_norm(z, x, noise)
        (slope,) = torch.autograd.grad(z.sum(), raw, create_graph=True)
        return (upcast(slope).square() * linear[0].weight.square().sum(1)).sum(1)


class RAE(NetAutoencoder):
    """Ghosh et al. 2020, eq. 11: -log p(x|z) + code_weight * |z|^2 / 2 + decoder_weight * regulariser of the decoder."""

    cfg: RAEL2Config | RAEGPConfig

    @torch.enable_grad()
    def forward(self, batch: Batch, phase: str, noise: Noise) -> Output:
        z = upcast(self.encoder(batch.x, noise))
        z = z if z.requires_grad else z.requires_grad_()
        recon = self.decoder(z, noise)
        nll, code, decoder = self.likelihood(recon, batch.x), 0.5 * z.square().sum(1), self.decoder_penalty(recon, z, noise)
        loss = nll + batch.weight(self.cfg.code_weight) * code + batch.weight(self.cfg.decoder_weight) * decoder
        return output(loss, recon, {"recon": nll, "code": code, "decoder": decoder})

    def encode(self, x: Tensor, label: Tensor | None = None) -> Codes:
        return Codes(self.encoder(x, None))

    @abstractmethod
    def decoder_penalty(self, recon: Tensor, z: Tensor, noise: Noise) -> Tensor:
        """The decoder's regulariser: `[B]`, or a scalar."""


@register(RAEL2Config)
class RAEL2(RAE):
    """Ghosh et al. 2020, sec. 3.1, L2: the sum of the decoder's squared weights."""

    def sharded_blocks(self) -> list[nn.Module]:
        """None of the decoder's: the objective uses its parameters themselves."""
        return dist.blocks_of(self.encoder)

    def decoder_penalty(self, recon: Tensor, z: Tensor, noise: Noise) -> Tensor:
        return torch.stack([p.square().sum() for p in self.decoder.parameters() if p.ndim >= 2]).sum()


@register(RAEGPConfig)
class RAEGP(RAE):
    """Ghosh et al. 2020, sec. 3.1, GP: the squared norm of the decoder's derivative, |d recon/dz|_F^2."""

    def decoder_penalty(self, recon: Tensor, z: Tensor, noise: Noise) -> Tensor:
        return jacobian_norm(self.likelihood.mean(recon), z, noise)
