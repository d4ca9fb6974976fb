"""Sparse autoencoders: one layer each way, many more latents than values, few of them active in a sample.

What depends on other samples (top k of a batch, thresholds, dead latents) is of the global batch: the same at every world size.
"""

from abc import abstractmethod
from math import inf
from typing import Any, ClassVar, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from distae import distributed as dist
from distae.config.models import (
    BatchTopKSAEConfig,
    MatryoshkaSAEConfig,
    ModelConfig,
    TopKSAEConfig,
)
from distae.config.models.sparse_dictionary import AuxKConfig, DictionaryConfig
from distae.config.nets import NetConfig
from distae.distributed.shards import part
from distae.losses import upcast
from distae.models.base import Batch, Codes, Output, output, register
from distae.models.sides import TwoSided
from distae.nn.sharded_latents import Latents
from distae.nn.sparse import (
    DenseCode,
    SparseCode,
    dense_code,
    geometric_median,
    global_kth,
    sparse_code,
)
from distae.noise import Noise

Reported = tuple[Tensor, dict[str, Tensor]]
DENSE = {"cpu": 8.0, "cuda": inf}
"""By device: below so many latents for each active one, products with whole matrices are faster. Not measured on a GPU."""


class Dictionary(TwoSided):
    """x = bias + sum over latents of activation * decoder vector; activations from encoder (x - bias) + encoder_bias.

    The bias starts at the geometric median of the first global batch (Gao et al. 2024, app. A).
    """

    sparse_codes = True
    of_latents: ClassVar[tuple[str, ...]] = ("encoder", "encoder_bias", "decoder")
    """Parameters of a row for each latent, which `--parallel tp` divides. A rank then has some latents of the samples of all ranks:
    its `B` samples become `A` of all in `latents.samples`, and sums of `A` become `B` again in `latents.summed`."""
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
    def latents(self) -> Latents:
        """Those that this rank computes."""
        return Latents.of(self.encoder)

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
        return self.shaped(z @ self.vectors())

    def vectors(self) -> Tensor:
        """Decoder vectors `[L, values]`. The gradient of a normalised vector is orthogonal to it."""
        decoder = part(self.decoder)
        return F.normalize(decoder, dim=1) if self.cfg.unit_norm else decoder

    def in_sae_lens(self) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """What SAELens calls the variant in use, and its tensors besides those that all have (`models/sae_lens.py`)."""
        return {"architecture": "standard"}, {"b_enc": self.encoder_bias}

    def pre_activations(self, x: Tensor) -> Tensor:
        """`[B, L]` from `[B, *shape]`, scaled."""
        return upcast(F.linear(x.flatten(1) - self.center, part(self.encoder), part(self.encoder_bias)))

    @property
    def dead(self) -> Tensor:
        """Which latents are dead, `[L]` bool."""
        return self.silent >= self.cfg.dead_after

    @property
    def bound(self) -> float:
        """Latents for each active one from which computing with active ones alone is faster.

        A compiled program has no shapes that depend on values.
        """
        return inf if torch.compiler.is_compiling() else DENSE.get(self.bias.device.type, inf)

    def few(self, choice: Tensor) -> bool:
        """Whether few latents of this process's rows are chosen, by `[B, k]` or a mask `[B, L]`: both ways are exact."""
        if self.bound == inf:
            return False
        active = int(choice.count_nonzero()) if choice.dtype == torch.bool else choice.numel()
        return len(choice) * len(self.latents.held) >= self.bound * active

    def sparse(self, x: Tensor, pre: Tensor, choice: Tensor) -> SparseCode:
        """Pre-activations `[B, L]` of `x` `[B, *shape]` at the places of `choice`, and nothing else computed."""
        return sparse_code(pre, choice, x.flatten(1), self.center, part(self.encoder), part(self.encoder_bias))

    def shaped(self, sums: Tensor) -> Tensor:
        """`[B, *shape]` from sums of decoder vectors `[A, values]`."""
        return (self.latents.summed(sums) + self.bias).view(-1, *self.made_shape)

    def observed(self, code: DenseCode | SparseCode) -> dict[str, Tensor]:
        """The terms that all variants report; training also counts which latents are active."""
        of_samples, of_latents = code.counts()
        of_samples = self.latents.summed(of_samples)
        if self.training:
            self.activity += torch.cat([self.latents.among_all(of_latents), self.activity.new_full((1,), len(of_samples))])
        return {"l0": upcast(of_samples.to(self.bias.dtype)), "dead": self.dead.to(self.bias.dtype).mean()}

    @torch.no_grad()
    def after_step(self, step: int) -> None:
        activity = dist.all_reduce_(self.activity)
        self.silent.copy_(torch.where(activity[:-1] > 0, 0, self.silent + activity[-1]))
        self.activity.zero_()
        if self.cfg.unit_norm:
            self.decoder.div_(self.decoder.norm(dim=1, keepdim=True))


class Seen(NamedTuple):
    """What latents are chosen from."""

    x: Tensor
    """Samples `[A, *shape]`, scaled."""
    pre: Tensor
    """Their pre-activations `[A, L]`."""


class Largest(Dictionary):
    """Variants that keep the largest pre-activations, those that are above 0: -log p(x|z) + aux_weight * AuxK.

    AuxK is 1/2 |e - e'|^2: e is the reconstruction error, e' what the aux_k largest dead latents make of it. 0 if none is dead
    (Gao et al. 2024, app. A.2).
    """

    cfg: AuxKConfig

    def objective(self, batch: Batch) -> Output:
        x = self.latents.samples(batch.x)
        seen = Seen(x, self.pre_activations(x))
        code = self.coded(seen, self.chosen(seen.pre, round(float(batch.weight(self.cfg.k)))))
        recon = self.shaped(code.decode(self.vectors()))
        nll, terms = self.reconstruction(code, recon, batch, seen)
        auxiliary = self.auxiliary(seen, batch.wanted - self.likelihood.mean(recon))
        loss = nll + batch.weight(self.cfg.aux_weight) * auxiliary
        return output(loss, recon, {**terms, "auxiliary": auxiliary, **self.observed(code)})

    def coded(self, seen: Seen, choice: Tensor) -> DenseCode | SparseCode:
        """The code of those pre-activations that are chosen and above 0."""
        return self.sparse(*seen, choice).relu() if self.few(choice) else dense_code(seen.pre, choice)

    @abstractmethod
    def chosen(self, pre: Tensor, k: int) -> Tensor:
        """Latents `[A, k]`, or a mask `[A, L]`, of pre-activations `[A, L]` of a batch."""

    def reconstruction(self, code: DenseCode | SparseCode, recon: Tensor, batch: Batch, seen: Seen) -> Reported:
        """What is minimised of the reconstruction, `[B]`, and terms to report."""
        nll = self.likelihood(recon, batch.wanted)
        return nll, {"recon": nll}

    def auxiliary(self, seen: Seen, error: Tensor) -> Tensor:
        """AuxK `[B]` of the errors of reconstructions `[B, *shape]`, which get no gradient."""
        dead, error = self.dead, error.detach().flatten(1)
        if not torch.compiler.is_compiling() and not dead.any():
            return error.new_zeros(len(error))
        k = min(self.cfg.aux_k or max(1, error.shape[1] // 2), self.cfg.latent_dim)
        of_dead = seen._replace(pre=torch.where(self.latents.mine(dead), seen.pre, -torch.inf))
        revived = self.latents.summed(self.coded(of_dead, self.latents.largest(of_dead.pre, k)).decode(self.vectors()))
        return torch.where(dead.any(), 0.5 * (error - revived).square().sum(1), 0.0)


@register(TopKSAEConfig)
class TopKSAE(Largest):
    """Gao et al. 2024 (arXiv 2406.04093), sec. 2.3 and 4.3: the k largest of each sample. Multi-TopK adds multi_weight times the
    -log p(x|z) of the 4 k largest."""

    cfg: TopKSAEConfig

    def chosen(self, pre: Tensor, k: int) -> Tensor:
        return self.latents.largest(pre, k)

    def reconstruction(self, code: DenseCode | SparseCode, recon: Tensor, batch: Batch, seen: Seen) -> Reported:
        nll, terms = super().reconstruction(code, recon, batch, seen)
        if self.cfg.multi_weight == 0:
            return nll, terms
        more = self.chosen(seen.pre, min(4 * self.cfg.final_k, self.cfg.latent_dim))
        multi = self.likelihood(self.shaped(self.coded(seen, more).decode(self.vectors())), batch.wanted)
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
        least = global_kth(self.latents.even(pre.detach()), k, self.threshold, self.latents.parts)
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

    def reconstruction(self, code: DenseCode | SparseCode, recon: Tensor, batch: Batch, seen: Seen) -> Reported:
        nll, vectors, start = self.likelihood(recon, batch.wanted), self.vectors(), self.latents.held.start
        parts = [self.shaped(code.first(width - start).decode(vectors)) for width in self.cfg.widths[:-1]]
        mean = torch.stack([*(self.likelihood(of, batch.wanted) for of in parts), nll]).mean(0)
        return mean, {"recon": nll, "prefixes": mean}
