"""Sparse autoencoders whose objective decides how many latents are active: how many varies from sample to sample."""

from typing import Any

import torch
from torch import Tensor, nn

from distae.config.models import GatedSAEConfig, JumpReLUSAEConfig, L1SAEConfig, ModelConfig
from distae.config.nets import NetConfig
from distae.distributed.shards import part
from distae.models.base import Batch, Output, output, register
from distae.models.sparse_dictionary import Dictionary
from distae.nn.sparse import DenseCode, SparseCode, Window, jump_relu, step, with_thresholds


@register(JumpReLUSAEConfig)
class JumpReLUSAE(Dictionary):
    """Rajamanoharan et al. 2024 (arXiv 2407.14435), sec. 3: a latent is active above its threshold.

    -log p(x|z) + weight * (L0 / k - 1)^2, L0 the mean number of active latents of the global batch. Gradients of thresholds are
    straight-through estimates from pre-activations within half a bandwidth (eq. 11 and 12). Thresholds are parameters themselves,
    not their logarithms as there: a step of Adam moves a parameter by the learning rate whatever its size, and a logarithm that
    starts at that of 0.1 would need a thousand times 1e-3 to become that of 0.27. Encoder and decoder start short, as in l1_sae.
    """

    cfg: JumpReLUSAEConfig
    initial_norm = 0.1
    of_latents = (*Dictionary.of_latents, "threshold")

    def __init__(self, cfg: ModelConfig, net: NetConfig, shape: tuple[int, ...]) -> None:
        super().__init__(cfg, net, shape)
        self.threshold = nn.Parameter(torch.full((cfg.latent_dim,), self.cfg.threshold))

    def objective(self, batch: Batch) -> Output:
        x = self.latents.samples(batch.x)
        code, sums, l0 = self.active(x, self.pre_activations(x))
        recon, l0 = self.shaped(sums), self.latents.summed(l0)
        nll = self.likelihood(recon, batch.wanted)
        sparsity = (batch.mean(l0) / batch.weight(self.cfg.k) - 1).square()
        loss = nll + batch.weight(self.cfg.weight) * sparsity
        return output(loss, recon, {"recon": nll, "sparsity": sparsity, **self.observed(code)})

    def active(self, x: Tensor, pre: Tensor) -> tuple[DenseCode | SparseCode, Tensor, Tensor]:
        """The code, its sums of decoder vectors and its active latents `[A]` of pre-activations `[A, L]`."""
        of_values, bandwidth, vectors = self.cfg.l0_from == "activations", self.cfg.bandwidth, self.vectors()
        threshold = part(self.threshold)
        choice = pre > threshold
        if self.few(choice):
            code = self.sparse(x, pre, choice)
            pre = pre.detach()
            window = Window(pre, self.inferred(pre) if of_values else pre, bandwidth, self.bound)
            l0 = code.places.in_rows.to(pre.dtype)
            return code, *with_thresholds(code.decode(vectors), l0, threshold, vectors, window)
        z = jump_relu(pre, threshold, bandwidth)
        return DenseCode(z), z @ vectors, step(z if of_values else pre, threshold, bandwidth).sum(1)

    def inferred(self, pre: Tensor) -> Tensor:
        return torch.where(pre > part(self.threshold), pre, 0.0)

    @torch.no_grad()
    def after_step(self, step: int) -> None:
        super().after_step(step)
        self.threshold.clamp_min_(0.0)

    def in_sae_lens(self) -> tuple[dict[str, Any], dict[str, Tensor]]:
        return {"architecture": "jumprelu"}, {"b_enc": self.encoder_bias, "threshold": self.threshold}


@register(L1SAEConfig)
class L1SAE(Dictionary):
    """Templeton et al. 2024 (Scaling Monosemanticity, Methods): -log p(x|z) + weight * sum of z_i |decoder vector i|.

    The norm in the penalty keeps it from being evaded by large decoder vectors, which are therefore free. They start short, as
    does the encoder (Anthropic, April 2024): where all latents start active, they end as mixtures of features.
    """

    cfg: L1SAEConfig
    initial_norm = 0.1

    def objective(self, batch: Batch) -> Output:
        x = self.latents.samples(batch.x)
        pre = self.pre_activations(x)
        positive = pre > 0
        code = self.sparse(x, pre, positive) if self.few(positive) else DenseCode(pre.relu())
        recon, sums = self.shaped(code.decode(self.vectors())), code.decode(self.norms()[:, None])
        nll, sparsity = self.likelihood(recon, batch.wanted), self.latents.summed(sums)[:, 0]
        loss = nll + batch.weight(self.cfg.weight) * sparsity
        return output(loss, recon, {"recon": nll, "sparsity": sparsity, **self.observed(code)})


@register(GatedSAEConfig)
class GatedSAE(Dictionary):
    """Rajamanoharan et al. 2024 (arXiv 2404.16014), eq. 5-8: a latent is active where its gate is above 0.

    -log p(x|z) + weight * |relu(gate)|_1 - log p(x|relu(gate)) with a frozen decoder (`gate_recon`). Magnitudes share the gate's
    encoder, scaled by exp(log_magnitude).
    """

    cfg: GatedSAEConfig
    of_latents = (*Dictionary.of_latents, "log_magnitude", "magnitude_bias")

    def __init__(self, cfg: ModelConfig, net: NetConfig, shape: tuple[int, ...]) -> None:
        super().__init__(cfg, net, shape)
        self.log_magnitude = nn.Parameter(torch.zeros(cfg.latent_dim))
        self.magnitude_bias = nn.Parameter(torch.zeros(cfg.latent_dim))

    def objective(self, batch: Batch) -> Output:
        x = self.latents.samples(batch.x)
        code, opened = self.active(x, self.pre_activations(x))
        vectors = self.vectors()
        frozen = self.latents.summed(opened.decode(vectors.detach())) + self.bias.detach()
        recon = self.shaped(code.decode(vectors))
        nll, of_gate = self.likelihood(recon, batch.wanted), self.likelihood(frozen.view_as(recon), batch.wanted)
        sparsity = self.latents.summed(opened.decode(torch.ones_like(vectors[:, :1])))[:, 0]
        loss = nll + batch.weight(self.cfg.weight) * sparsity + of_gate
        return output(loss, recon, {"recon": nll, "sparsity": sparsity, "gate_recon": of_gate, **self.observed(code)})

    def active(self, x: Tensor, gate: Tensor) -> tuple[DenseCode | SparseCode, DenseCode | SparseCode]:
        """The code and the open gates of gates `[A, L]`."""
        positive = gate > 0
        if not self.few(positive):
            return DenseCode(self.inferred(gate)), DenseCode(gate.relu())
        opened = self.sparse(x, gate, positive)
        magnitude = self.magnitude(opened.values, *(p.index_select(0, opened.places.latents) for p in self._of_magnitudes()))
        return SparseCode(magnitude.relu(), opened.places), opened

    def _of_magnitudes(self) -> tuple[Tensor, Tensor, Tensor]:
        return part(self.encoder_bias), part(self.log_magnitude), part(self.magnitude_bias)

    def magnitude(self, pre: Tensor, encoder_bias: Tensor, log_magnitude: Tensor, bias: Tensor) -> Tensor:
        return (pre - encoder_bias) * log_magnitude.exp() + bias

    def inferred(self, pre: Tensor) -> Tensor:
        magnitude = self.magnitude(pre, *self._of_magnitudes())
        return torch.where(pre > 0, magnitude.relu(), 0.0)

    def in_sae_lens(self) -> tuple[dict[str, Any], dict[str, Tensor]]:
        tensors: dict[str, Tensor] = {"b_gate": self.encoder_bias, "b_mag": self.magnitude_bias, "r_mag": self.log_magnitude}
        return {"architecture": "gated"}, tensors
