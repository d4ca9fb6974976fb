"""Sparse autoencoders: one layer each way, many more latents than values, few of them active in a sample.

What depends on other samples (top k of a batch, thresholds, dead latents) is of the global batch: the same at every world size.
"""

from abc import abstractmethod
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from distae import distributed as dist
from distae.config.models import (
    BatchTopKSAEConfig,
    GatedSAEConfig,
    JumpReLUSAEConfig,
    L1SAEConfig,
    MatryoshkaSAEConfig,
    ModelConfig,
    TopKSAEConfig,
)
from distae.config.models.sparse_dictionary import AuxKConfig, DictionaryConfig
from distae.config.nets import NetConfig
from distae.losses import upcast
from distae.models.base import Batch, Codes, Output, output, register
from distae.models.sides import TwoSided
from distae.nn.sparse import DenseCode, SparseCode, dense_code, geometric_median, global_kth, jump_relu, sparse_code, step
from distae.noise import Noise

Reported = tuple[Tensor, dict[str, Tensor]]
DENSE = 12
"""Below so many latents for each active one, products with whole matrices are faster."""


class Dictionary(TwoSided):
    """x = bias + sum over latents of activation * decoder vector; activations from encoder (x - bias) + encoder_bias.

    The bias starts at the geometric median of the first global batch (Gao et al. 2024, app. A).
    """

    sparse_codes = True
    cfg: DictionaryConfig
    silent: Tensor
    activity: Tensor
    input_scale: Tensor

    def __init__(self, cfg: ModelConfig, net: NetConfig, shape: tuple[int, ...]) -> None:
        super().__init__(cfg, net, shape)
        self.register_buffer("silent", torch.zeros(cfg.latent_dim, dtype=torch.int64))
        self.register_buffer("activity", torch.zeros(cfg.latent_dim + 1, dtype=torch.int64), persistent=False)
        if self.cfg.scale_input:
            self.register_buffer("input_scale", torch.ones(()))
        self.reset_parameters()

    @torch.no_grad()
    def start(self, x: Tensor) -> None:
        rows = dist.gather_rows(x.flatten(1))
        if self.cfg.scale_input:
            self.input_scale.copy_(rows.shape[1] ** 0.5 / rows.double().norm(dim=1).mean())
        self.bias.copy_(geometric_median(self.target(rows)) * self.scale)
        if self.cfg.inputs is not None:
            self.input_bias.copy_(geometric_median(self.seen(rows)) * self.scale)

    @property
    def scale(self) -> Tensor | float:
        """What samples are multiplied by."""
        return self.input_scale if self.cfg.scale_input else 1.0

    def forward(self, batch: Batch, phase: str, noise: Noise) -> Output:
        x = batch.x * self.scale if self.cfg.scale_input else batch.x
        if self.cfg.inputs is None:
            out = self.objective(batch._replace(x=x))
            return out._replace(recon=out.recon / self.scale) if self.cfg.scale_input else out
        beside = self.beside(x)
        out = self.objective(batch._replace(x=self.seen(x), y=self.target(x) - beside))
        return out._replace(recon=(out.recon + beside.detach()) / self.scale)

    @abstractmethod
    def objective(self, batch: Batch) -> Output:
        """That of samples as they are scaled."""

    def encode(self, x: Tensor, label: Tensor | None = None) -> Codes:
        return Codes(self.inferred(self.pre_activations(self.seen(x) * self.scale)))

    def inferred(self, pre: Tensor) -> Tensor:
        """Activations `[B, L]` of pre-activations `[B, L]`, in use."""
        return pre.relu()

    def decode(self, z: Tensor, label: Tensor | None = None) -> Tensor:
        return self.likelihood.mean(self.decode_raw(z) / self.scale)

    def decode_raw(self, z: Tensor) -> Tensor:
        """`[B, *shape]`, scaled, from activations `[B, L]`."""
        return (z @ self.vectors() + self.bias).view(-1, *self.made_shape)

    def vectors(self) -> Tensor:
        """Decoder vectors `[L, values]`. The gradient of a normalised vector is orthogonal to it."""
        return F.normalize(self.decoder, dim=1) if self.cfg.unit_norm else self.decoder

    def in_sae_lens(self) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """What SAELens calls the variant in use, and its tensors besides those that all have (`models/sae_lens.py`)."""
        return {"architecture": "standard"}, {"b_enc": self.encoder_bias}

    def pre_activations(self, x: Tensor) -> Tensor:
        """`[B, L]` from `[B, *shape]`, scaled."""
        return upcast(F.linear(x.flatten(1) - self.center, self.encoder, self.encoder_bias))

    @property
    def dead(self) -> Tensor:
        """Which latents are dead, `[L]` bool."""
        return self.silent >= self.cfg.dead_after

    def observed(self, code: DenseCode | SparseCode) -> dict[str, Tensor]:
        """The terms that all variants report; training also counts which latents are active."""
        of_samples, of_latents = code.counts()
        if self.training:
            self.activity += torch.cat([of_latents, self.activity.new_full((1,), len(of_samples))])
        return {"l0": upcast(of_samples.to(self.bias.dtype)), "dead": self.dead.to(self.bias.dtype).mean()}

    @torch.no_grad()
    def after_step(self, step: int) -> None:
        activity = dist.all_reduce_(self.activity)
        self.silent.copy_(torch.where(activity[:-1] > 0, 0, self.silent + activity[-1]))
        self.activity.zero_()
        if self.cfg.unit_norm:
            self.decoder.div_(self.decoder.norm(dim=1, keepdim=True))


class Largest(Dictionary):
    """Variants that keep the largest pre-activations, those that are above 0: -log p(x|z) + aux_weight * AuxK.

    AuxK is 1/2 |e - e'|^2: e is the reconstruction error, e' what the aux_k largest dead latents make of it. 0 if none is dead
    (Gao et al. 2024, app. A.2).
    """

    cfg: AuxKConfig

    def objective(self, batch: Batch) -> Output:
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.sparse):
            pre = self.pre_activations(batch.x)
        code = self.coded(batch.x, pre, self.chosen(pre, round(float(batch.weight(self.cfg.k)))))
        recon = self.shaped(code.decode(self.vectors()))
        nll, terms = self.reconstruction(code, recon, batch, pre)
        auxiliary = self.auxiliary(batch.x, pre, batch.wanted - self.likelihood.mean(recon))
        loss = nll + batch.weight(self.cfg.aux_weight) * auxiliary
        return output(loss, recon, {**terms, "auxiliary": auxiliary, **self.observed(code)})

    @property
    def sparse(self) -> bool:
        """Whether only active latents are computed with after the encoder: docs/sparse_autoencoders.md has what decides.

        A compiled program has no shapes that depend on values.
        """
        return self.bias.is_cpu and self.cfg.latent_dim >= DENSE * self.cfg.final_k and not torch.compiler.is_compiling()

    def coded(self, x: Tensor, pre: Tensor, choice: Tensor) -> DenseCode | SparseCode:
        """The code of those pre-activations `[B, L]` of `x` that are chosen and above 0."""
        if self.sparse:
            return sparse_code(pre, choice, x.flatten(1), self.center, self.encoder, self.encoder_bias)
        return dense_code(pre, choice)

    def shaped(self, sums: Tensor) -> Tensor:
        """`[B, *shape]` from sums of decoder vectors `[B, values]`."""
        return (sums + self.bias).view(-1, *self.made_shape)

    @abstractmethod
    def chosen(self, pre: Tensor, k: int) -> Tensor:
        """Latents `[B, k]`, or a mask `[B, L]`, of pre-activations `[B, L]` of a batch."""

    def reconstruction(self, code: DenseCode | SparseCode, recon: Tensor, batch: Batch, pre: Tensor) -> Reported:
        """What is minimised of the reconstruction, `[B]`, and terms to report."""
        nll = self.likelihood(recon, batch.wanted)
        return nll, {"recon": nll}

    def auxiliary(self, x: Tensor, pre: Tensor, error: Tensor) -> Tensor:
        """AuxK `[B]` of samples and the errors of their reconstructions, which get no gradient."""
        dead, error = self.dead, error.detach().flatten(1)
        if not torch.compiler.is_compiling() and not dead.any():
            return pre.new_zeros(len(pre))
        k = min(self.cfg.aux_k or max(1, error.shape[1] // 2), self.cfg.latent_dim)
        pre = torch.where(dead, pre, -torch.inf)
        revived = self.coded(x, pre, pre.topk(k, dim=1, sorted=False).indices).decode(self.vectors())
        return torch.where(dead.any(), 0.5 * (error - revived).square().sum(1), 0.0)


@register(TopKSAEConfig)
class TopKSAE(Largest):
    """Gao et al. 2024 (arXiv 2406.04093), sec. 2.3 and 4.3: the k largest of each sample. Multi-TopK adds multi_weight times the
    -log p(x|z) of the 4 k largest."""

    cfg: TopKSAEConfig

    def chosen(self, pre: Tensor, k: int) -> Tensor:
        return pre.topk(k, dim=1, sorted=False).indices

    def reconstruction(self, code: DenseCode | SparseCode, recon: Tensor, batch: Batch, pre: Tensor) -> Reported:
        nll, terms = super().reconstruction(code, recon, batch, pre)
        if self.cfg.multi_weight == 0:
            return nll, terms
        more = self.chosen(pre, min(4 * self.cfg.final_k, self.cfg.latent_dim))
        multi = self.likelihood(self.shaped(self.coded(batch.x, pre, more).decode(self.vectors())), batch.wanted)
        return nll + batch.weight(self.cfg.multi_weight) * multi, terms | {"multi": multi}

    def inferred(self, pre: Tensor) -> Tensor:
        return dense_code(pre, self.chosen(pre, self.cfg.final_k)).z

    def in_sae_lens(self) -> tuple[dict[str, Any], dict[str, Tensor]]:
        settings = {"architecture": "topk", "k": self.cfg.final_k, "rescale_acts_by_decoder_norm": False}
        return settings, {"b_enc": self.encoder_bias}


@register(BatchTopKSAEConfig)
class BatchTopKSAE(Largest):
    """Bussmann et al. 2024 (arXiv 2412.06410), sec. 3: the k * batch largest pre-activations of the global batch are kept.

    Equal ones are all kept: no order decides. In use a latent is active from `threshold` on, the mean over steps of the smallest
    value kept: with weights that grow like the square of the step (Shamir & Zhang 2013, sec. 4), so that it soon forgets the first
    steps, then exponential.
    """

    cfg: BatchTopKSAEConfig
    threshold: Tensor
    smallest: Tensor

    def __init__(self, cfg: ModelConfig, net: NetConfig, shape: tuple[int, ...]) -> None:
        super().__init__(cfg, net, shape)
        self.register_buffer("threshold", torch.zeros(()))
        self.register_buffer("smallest", torch.zeros(2), persistent=False)

    def chosen(self, pre: Tensor, k: int) -> Tensor:
        if not self.training:
            return pre >= self.threshold
        least = global_kth(pre.detach(), k)
        self.smallest += torch.stack([least, torch.ones_like(least)])
        return pre >= least.clamp_min(torch.finfo(pre.dtype).tiny)

    def inferred(self, pre: Tensor) -> Tensor:
        return torch.where(pre >= self.threshold, pre, 0.0).relu()

    def in_sae_lens(self) -> tuple[dict[str, Any], dict[str, Tensor]]:
        below = self.threshold.nextafter(-torch.ones_like(self.threshold))  # active above its threshold, here from it on
        return {"architecture": "jumprelu"}, {"b_enc": self.encoder_bias, "threshold": below.expand(self.cfg.latent_dim)}

    @torch.no_grad()
    def after_step(self, step: int) -> None:
        super().after_step(step)
        mean = self.smallest[0] / self.smallest[1]
        rate = torch.where(mean.isfinite(), max(1 - self.cfg.threshold_decay, 3 / (step + 2)), 0.0).to(mean.dtype)
        self.threshold.lerp_(mean.nan_to_num(0.0, 0.0, 0.0), rate)
        self.smallest.zero_()


@register(MatryoshkaSAEConfig)
class MatryoshkaSAE(BatchTopKSAE):
    """Bussmann et al. 2025 (arXiv 2503.17547), sec. 3: BatchTopK; minimises the mean of -log p(x | first latents) over prefixes.

    `recon` is of all latents, `prefixes` that mean, which the last of them, all latents, is part of.
    """

    cfg: MatryoshkaSAEConfig

    def reconstruction(self, code: DenseCode | SparseCode, recon: Tensor, batch: Batch, pre: Tensor) -> Reported:
        nll, vectors = self.likelihood(recon, batch.wanted), self.vectors()
        parts = [self.shaped(code.first(width).decode(vectors)) for width in self.cfg.widths[:-1]]
        mean = torch.stack([*(self.likelihood(part, batch.wanted) for part in parts), nll]).mean(0)
        return mean, {"recon": nll, "prefixes": mean}


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

    def __init__(self, cfg: ModelConfig, net: NetConfig, shape: tuple[int, ...]) -> None:
        super().__init__(cfg, net, shape)
        self.threshold = nn.Parameter(torch.full((cfg.latent_dim,), self.cfg.threshold))

    def objective(self, batch: Batch) -> Output:
        pre, threshold = self.pre_activations(batch.x), self.threshold
        z = jump_relu(pre, threshold, self.cfg.bandwidth)
        recon = self.decode_raw(z)
        counted = pre if self.cfg.l0_from == "pre_activations" else z
        nll, l0 = self.likelihood(recon, batch.wanted), step(counted, threshold, self.cfg.bandwidth).sum(1)
        sparsity = (batch.mean(l0) / batch.weight(self.cfg.k) - 1).square()
        loss = nll + batch.weight(self.cfg.weight) * sparsity
        return output(loss, recon, {"recon": nll, "sparsity": sparsity, **self.observed(DenseCode(z))})

    def inferred(self, pre: Tensor) -> Tensor:
        return torch.where(pre > self.threshold, pre, 0.0)

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
        z = self.pre_activations(batch.x).relu()
        recon = self.decode_raw(z)
        nll, sparsity = self.likelihood(recon, batch.wanted), z @ self.norms()
        loss = nll + batch.weight(self.cfg.weight) * sparsity
        return output(loss, recon, {"recon": nll, "sparsity": sparsity, **self.observed(DenseCode(z))})


@register(GatedSAEConfig)
class GatedSAE(Dictionary):
    """Rajamanoharan et al. 2024 (arXiv 2404.16014), eq. 5-8: a latent is active where its gate is above 0.

    -log p(x|z) + weight * |relu(gate)|_1 - log p(x|relu(gate)) with a frozen decoder (`gate_recon`). Magnitudes share the gate's
    encoder, scaled by exp(log_magnitude).
    """

    cfg: GatedSAEConfig

    def __init__(self, cfg: ModelConfig, net: NetConfig, shape: tuple[int, ...]) -> None:
        super().__init__(cfg, net, shape)
        self.log_magnitude = nn.Parameter(torch.zeros(cfg.latent_dim))
        self.magnitude_bias = nn.Parameter(torch.zeros(cfg.latent_dim))

    def objective(self, batch: Batch) -> Output:
        gate = self.pre_activations(batch.x)
        z, open_ = self.inferred(gate), gate.relu()
        recon, frozen = self.decode_raw(z), open_ @ self.vectors().detach() + self.bias.detach()
        nll, of_gate = self.likelihood(recon, batch.wanted), self.likelihood(frozen.view_as(recon), batch.wanted)
        loss = nll + batch.weight(self.cfg.weight) * open_.sum(1) + of_gate
        return output(loss, recon, {"recon": nll, "sparsity": open_.sum(1), "gate_recon": of_gate, **self.observed(DenseCode(z))})

    def inferred(self, pre: Tensor) -> Tensor:
        magnitude = (pre - self.encoder_bias) * self.log_magnitude.exp() + self.magnitude_bias
        return torch.where(pre > 0, magnitude.relu(), 0.0)

    def in_sae_lens(self) -> tuple[dict[str, Any], dict[str, Tensor]]:
        tensors: dict[str, Tensor] = {"b_gate": self.encoder_bias, "b_mag": self.magnitude_bias, "r_mag": self.log_magnitude}
        return {"architecture": "gated"}, tensors
