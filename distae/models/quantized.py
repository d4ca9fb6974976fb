"""Autoencoders with discrete codes."""

from math import prod

import torch
import torch.nn.functional as F
from torch import Tensor

from distae.config.models import BSQVAEConfig, FSQVAEConfig, LFQVAEConfig, ModelConfig, RQVAEConfig, VQVAEConfig
from distae.config.nets import NetConfig
from distae.losses import upcast
from distae.models.base import Batch, Codes, NetAutoencoder, Objective, Output, output, register
from distae.nn.quantizers import Codebook, describe, fsq, fsq_values, straight_through, usage
from distae.noise import Noise


def vectors(z: Tensor, dim: int) -> Tensor:
    """`[B, N * dim]` as `[B, N, dim]`."""
    return upcast(z).view(z.shape[0], -1, dim)


@register(VQVAEConfig)
class VQVAE(NetAutoencoder):
    """Van den Oord et al. 2017, eq. 3: -log p(x|z_q) + codebook_weight * |sg(z_e) - e|^2 + commitment * |z_e - sg(e)|^2.

    In sums over a sample. With moving averages there is no second term: the codes follow app. A.1. `perplexity` and `live` are over
    the global batch.
    """

    cfg: VQVAEConfig

    def __init__(self, cfg: ModelConfig, net: NetConfig, shape: tuple[int, ...]) -> None:
        super().__init__(cfg, net, shape)
        c = self.cfg
        self.codebook = Codebook(c.codebook_size, c.dim, c.learning == "gradient", c.decay, c.restart_below, self.depth)

    @property
    def depth(self) -> int:
        """Codes per vector."""
        return 1

    def forward(self, batch: Batch, phase: str, noise: Noise) -> Output:
        return output(*self.objective(batch, noise))

    def objective(self, batch: Batch, noise: Noise) -> Objective:
        z = self.vectors(batch.x, noise)
        quantized, index, commitment, of_codes = self.quantize(z, noise)
        recon = self.decoder(straight_through(z, quantized).flatten(1), noise)
        nll = self.likelihood(recon, batch.x)
        loss = (
            nll
            + batch.weight(self.cfg.commitment) * commitment
            + (batch.weight(self.cfg.codebook_weight) * of_codes if self.codebook.learned else 0.0)
        )
        used = describe(usage(index, self.codebook.size, batch.valid_mask))
        return Objective(loss, recon, {"recon": nll, "commitment": commitment, **used})

    def quantize(self, z: Tensor, noise: Noise | None) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Codes `[B, N, dim]` for `z` `[B, N, dim]`, their indices `[B, N * depth]`, and two squared distances `[B]`.

        Both are of codes and z, summed over depths: the first has gradients to z only, the second to the codes only.
        """
        quantized, indices, distances = torch.zeros_like(z), [], []
        for level in range(self.depth):
            code, index = self.codebook(z - quantized, noise, level)
            quantized = quantized + code
            indices.append(index)
            distances.append(torch.stack([z - quantized.detach(), z.detach() - quantized]).square().sum((2, 3)))
        to_codes, of_codes = torch.stack(distances).sum(0)
        return quantized, torch.cat(indices, 1), to_codes, of_codes

    def encode(self, x: Tensor, label: Tensor | None = None) -> Codes:
        quantized, index, _, _ = self.quantize(self.vectors(x, None), None)
        return Codes(quantized.flatten(1), indices=index)

    @property
    def num_codes(self) -> int:
        return self.cfg.codebook_size

    def from_indices(self, indices: Tensor) -> Tensor:
        """The codes of all depths are summed in the order of `quantize`, so that no bit differs."""
        first, *others = self.codebook.codes[indices.view(len(indices), self.depth, -1)].unbind(1)
        for code in others:
            first = first + code
        return first.flatten(1)

    def vectors(self, x: Tensor, noise: Noise | None) -> Tensor:
        """The vectors to quantize: `[B, N, dim]`."""
        return vectors(self.encoder(x, noise), self.cfg.code_dim)

    def after_step(self, step: int) -> None:
        self.codebook.update()


@register(RQVAEConfig)
class RQVAE(VQVAE):
    """Lee et al. 2022, eq. 1-7: `depth` codes of one codebook, each the nearest to the residual of the ones before it.

    The commitment is the sum over depths of the squared distance of z from the sum of the codes up to that depth.
    """

    cfg: RQVAEConfig

    @property
    def depth(self) -> int:
        return self.cfg.depth


@register(FSQVAEConfig)
class FSQVAE(NetAutoencoder):
    """Mentzer et al. 2023, sec. 3.1: -log p(x|z_q); z_q is z with each value rounded to its levels. No codebook, no other term."""

    cfg: FSQVAEConfig
    levels: Tensor

    def __init__(self, cfg: ModelConfig, net: NetConfig, shape: tuple[int, ...]) -> None:
        super().__init__(cfg, net, shape)
        self.register_buffer("levels", torch.tensor(self.cfg.levels), persistent=False)

    def forward(self, batch: Batch, phase: str, noise: Noise) -> Output:
        return output(*self.objective(batch, noise))

    def objective(self, batch: Batch, noise: Noise) -> Objective:
        z, index = self.quantize(batch.x, noise)
        recon = self.decoder(z, noise)
        nll = self.likelihood(recon, batch.x)
        return Objective(nll, recon, {"recon": nll, **describe(usage(index, prod(self.cfg.levels), batch.valid_mask))})

    def encode(self, x: Tensor, label: Tensor | None = None) -> Codes:
        z, index = self.quantize(x, None)
        return Codes(z, indices=index)

    @property
    def num_codes(self) -> int:
        return prod(self.cfg.levels)

    def from_indices(self, indices: Tensor) -> Tensor:
        return fsq_values(indices, self.levels).flatten(1).to(next(self.parameters()).dtype)

    def quantize(self, x: Tensor, noise: Noise | None) -> tuple[Tensor, Tensor]:
        """Codes `[B, code_size]` in [-1, 1] and their indices `[B, N]`."""
        z = vectors(self.encoder(x, noise), self.cfg.code_dim)
        quantized, index = fsq(z, self.levels)
        return quantized.flatten(1), index


@register(LFQVAEConfig)
class LFQVAE(NetAutoencoder):
    """Yu et al. 2024 (MAGVIT-v2), eq. 3-5: -log p(x|z_q) + commitment * |z - sg(z_q)|^2 + entropy * (E[H(q(z))] - H(E[q(z)])).

    z_q = sign(z). q(z) is the softmax over the 2^bits codes c of -inverse_temperature * |z - c|^2. Both entropies are in nats per
    sample, summed over its vectors; the second is the entropy of the mean over the global batch.
    """

    cfg: LFQVAEConfig

    @property
    def scale(self) -> float:
        """The absolute value of each value of a code."""
        return 1.0

    @property
    def group(self) -> int:
        """Bits of a code that share a softmax in the entropies."""
        return self.cfg.bits

    def forward(self, batch: Batch, phase: str, noise: Noise) -> Output:
        return output(*self.objective(batch, noise))

    def objective(self, batch: Batch, noise: Noise) -> Objective:
        z, signs, index = self.quantize(batch.x, noise)
        recon = self.decoder((straight_through(z, signs) * self.scale).flatten(1), noise)
        nll, commitment = self.likelihood(recon, batch.x), (z - signs * self.scale).square().sum((1, 2))
        log_probabilities = self.log_probabilities(z)
        probabilities = log_probabilities.exp()
        sample_entropy = -(probabilities * log_probabilities).sum((1, 2, 3))
        mean = batch.mean(probabilities.mean(1))
        batch_entropy = -(mean * mean.clamp_min(torch.finfo(mean.dtype).tiny).log()).sum() * z.shape[1]
        entropy = batch.weight(self.cfg.entropy) * (sample_entropy - batch_entropy)
        loss = nll + batch.weight(self.cfg.commitment) * commitment + entropy
        used = describe(usage(index, 2**self.cfg.bits, batch.valid_mask))
        entropies = {"sample_entropy": sample_entropy, "batch_entropy": batch_entropy}
        return Objective(loss, recon, {"recon": nll, "commitment": commitment, **entropies, **used})

    def log_probabilities(self, z: Tensor) -> Tensor:
        """log q of each code of each group of bits, `[B, N, bits / group, 2**group]` from `z` `[B, N, bits]`.

        -|z - c|^2 is 2 z.c plus a term common to all codes. Logarithms, because the gradient of p log p is not finite where p is
        rounded to 0.
        """
        indices = torch.arange(2**self.group, device=z.device)
        codes = 2 * (indices[:, None] >> torch.arange(self.group, device=z.device) & 1) - 1
        factor = 2 * self.cfg.inverse_temperature * self.scale
        with torch.autocast(z.device.type, enabled=False):
            return torch.log_softmax(factor * z.view(*z.shape[:2], -1, self.group) @ codes.T.to(z.dtype), 3)

    def encode(self, x: Tensor, label: Tensor | None = None) -> Codes:
        _, signs, index = self.quantize(x, None)
        return Codes((signs * self.scale).flatten(1), indices=index)

    @property
    def num_codes(self) -> int:
        return 1 << self.cfg.bits

    def from_indices(self, indices: Tensor) -> Tensor:
        bits = indices[:, :, None] >> torch.arange(self.cfg.bits, device=indices.device) & 1
        return (2 * bits - 1).flatten(1).to(next(self.parameters()).dtype) * self.scale

    def vectors(self, x: Tensor, noise: Noise | None) -> Tensor:
        """The vectors to quantize: `[B, N, bits]`."""
        return vectors(self.encoder(x, noise), self.cfg.bits)

    def quantize(self, x: Tensor, noise: Noise | None) -> tuple[Tensor, Tensor, Tensor]:
        """The vectors and their signs, each `[B, N, bits]`, and the indices of the codes, `[B, N]`."""
        z = self.vectors(x, noise)
        positive = z > 0
        index = (positive.long() * 2 ** torch.arange(self.cfg.bits, device=z.device)).sum(2)
        return z, torch.where(positive, 1.0, -1.0).to(z.dtype), index


@register(BSQVAEConfig)
class BSQVAE(LFQVAE):
    """Zhao et al. 2024 (arXiv 2406.07548), sec. 4: the objective of lfq_vae with z = u / |u|, u the encoder's vector of L bits.

    z_q = sign(z) / sqrt(L), also of length 1; only the sign is passed straight through. q(z) is a product over groups of bits, so
    that the mean entropy is a sum over them; so is the batch's, which bounds from above the entropy of whole codes.
    """

    cfg: BSQVAEConfig

    @property
    def scale(self) -> float:
        return float(self.cfg.bits**-0.5)

    @property
    def group(self) -> int:
        return self.cfg.group

    def vectors(self, x: Tensor, noise: Noise | None) -> Tensor:
        return F.normalize(super().vectors(x, noise), dim=2)
