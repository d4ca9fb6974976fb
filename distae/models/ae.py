"""Deterministic autoencoders."""

import torch
from torch import Tensor

from distae.config.models import AEConfig, DenoisingAEConfig, LinearAEConfig, ModelConfig, SparseAEConfig
from distae.config.nets import MLPConfig, NetConfig
from distae.models.base import Batch, Codes, NetAutoencoder, Output, output, register
from distae.nn.layers import ACTIVATIONS
from distae.noise import Noise


@register(AEConfig)
class AE(NetAutoencoder):
    """Hinton & Salakhutdinov 2006: minimise -log p(x | decode(encode(x))), in nats per sample."""

    cfg: AEConfig

    def forward(self, batch: Batch, phase: str, noise: Noise) -> Output:
        recon = self.decoder(self._code(batch.x, noise), noise)
        nll = self.likelihood(recon, batch.x)
        return output(nll, recon, {"recon": nll})

    def encode(self, x: Tensor, label: Tensor | None = None) -> Codes:
        return Codes(self._code(x, None))

    def _code(self, x: Tensor, noise: Noise | None) -> Tensor:
        return ACTIVATIONS[self.cfg.code_activation](self.encoder(x, noise))


@register(LinearAEConfig)
class LinearAE(AE):
    """Baldi & Hornik 1989: one linear layer each way. With squared error, its optimum spans the subspace of PCA."""

    def __init__(self, cfg: ModelConfig, net: NetConfig, shape: tuple[int, ...]) -> None:
        super().__init__(cfg, MLPConfig(hidden=()), shape)

    def _code(self, x: Tensor, noise: Noise | None) -> Tensor:
        z: Tensor = self.encoder(x, noise)
        return z


@register(DenoisingAEConfig)
class DenoisingAE(AE):
    """Vincent et al. 2008, eq. 5, and 2010, sec. 3.3: -log p(x | decode(encode(x~))); x~ is a corrupted x."""

    cfg: DenoisingAEConfig

    def forward(self, batch: Batch, phase: str, noise: Noise) -> Output:
        recon = self.decoder(self._code(self.corrupt(batch.x, noise), noise), noise)
        nll = self.likelihood(recon, batch.x)
        return output(nll, recon, {"recon": nll})

    def corrupt(self, x: Tensor, noise: Noise) -> Tensor:
        """A corrupted copy of `x`, `[B, *shape]`."""
        if self.cfg.corruption == "gaussian":
            return x + self.cfg.std * noise.normal(x).to(x.dtype)
        draw = noise.uniform(x)
        if self.cfg.corruption == "masking":
            return torch.where(draw < self.cfg.rate, 0.0, x)
        salt = (draw < self.cfg.rate / 2).to(x.dtype)
        return torch.where(draw < self.cfg.rate, salt, x)


@register(SparseAEConfig)
class SparseAE(AE):
    """-log p(x|z) + weight * sparsity(z), or (topk) only the k largest values of z are kept.

    l1: sum_j |z_j|. kl: sum_j KL(target || mean_j), means over the global batch (Ng 2011, CS294A lecture notes, sec. 3).
    topk: Makhzani & Frey 2014, algorithm 1; `sparsity` is then the share of values that are not 0.
    """

    cfg: SparseAEConfig

    def forward(self, batch: Batch, phase: str, noise: Noise) -> Output:
        z = self._code(batch.x, noise)
        recon = self.decoder(z, noise)
        nll, sparsity = self.likelihood(recon, batch.x), self.sparsity(z, batch)
        weight = 0.0 if self.cfg.sparsity == "topk" else batch.weight(self.cfg.weight)
        return output(nll + weight * sparsity, recon, {"recon": nll, "sparsity": sparsity})

    def sparsity(self, z: Tensor, batch: Batch) -> Tensor:
        """Sparsity term of codes `[B, code_size]`: `[B]`, or a scalar over the global batch."""
        if self.cfg.sparsity == "topk":
            return (z != 0).to(z.dtype).mean(1)
        if self.cfg.sparsity == "l1":
            return z.abs().sum(1)
        rate, target = batch.mean(z).clamp(1e-6, 1 - 1e-6), self.cfg.target
        return (target * (target / rate).log() + (1 - target) * ((1 - target) / (1 - rate)).log()).sum()

    def _code(self, x: Tensor, noise: Noise | None) -> Tensor:
        z = super()._code(x, noise)
        if self.cfg.sparsity != "topk":
            return z
        top = z.topk(self.cfg.k, dim=1)
        return torch.zeros_like(z).scatter(1, top.indices, top.values)
