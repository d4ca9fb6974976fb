"""Image tokenizers: a bottleneck of another variant, trained with a perceptual term and against a discriminator."""

import inspect
from functools import cache
from pathlib import Path

import torch
import torch.nn.functional as F
import xxhash
from torch import Tensor, nn

from distae import distributed as dist
from distae.config.models import ModelConfig, TokenizerConfig
from distae.config.names import PERCEPTUAL
from distae.config.nets import NetConfig
from distae.errors import UserError
from distae.losses import Likelihood, upcast
from distae.losses.similarity import ms_ssim
from distae.models.base import Autoencoder, Batch, Codes, Output, Phase, output, register
from distae.models.quantized import BSQVAE, FSQVAE, LFQVAE, VQVAE
from distae.models.vae import VAE, Posterior
from distae.nn.discriminators import LeCam, PatchDiscriminator
from distae.nn.perceptual import LPIPS, Features, read_lpips
from distae.noise import Noise


class PublishedVAE(VAE):
    """A VAE whose log variances are clamped to [-30, 20], as in latent diffusion and diffusers: of images they are below -10."""

    def posterior(self, x: Tensor, noise: Noise | None) -> tuple[Tensor, Tensor]:
        mu, logvar = upcast(self.encoder(x, noise)).chunk(2, dim=1)
        return mu, logvar.clamp(-30.0, 20.0)


CODECS: dict[str, type[VAE | VQVAE | FSQVAE | LFQVAE]] = {
    "kl": PublishedVAE, "vq": VQVAE, "fsq": FSQVAE, "lfq": LFQVAE, "bsq": BSQVAE
}  # fmt: skip


@register(TokenizerConfig)
class Tokenizer(Autoencoder):
    """Esser et al. 2021, eq. 4-7, and Rombach et al. 2022, app. G, y the reconstruction, D the mean logit of an image's patches:

    autoencoder: c(x) + perceptual_weight * V * d(x, y) - onset * weight * w * D(y); c is the objective of the bottleneck's variant,
    V the number of values of a sample, w = |grad (-log p(x|z) + perceptual)| / (|grad D| + 1e-4) at the decoder's last layer, the
    gradients being averages over the global batch. discriminator: (max(0, 1 - D(x)) + max(0, 1 + D(y))) / 2 by patch, R1, LeCam;
    its y are those that the autoencoder's update of the same step is from.

    In evaluation `loss` leaves out the adversarial term, so that it compares across its start; `adversarial` is -D(y).
    """

    cfg: TokenizerConfig

    def __init__(self, cfg: ModelConfig, net: NetConfig, shape: tuple[int, ...]) -> None:
        nn.Module.__init__(self)  # the codec has the likelihood
        self.cfg, self.net, self.shape = cfg, net, shape  # type: ignore[assignment]
        c = self.cfg
        self.codec = CODECS[c.bottleneck](c.codec, net, shape)
        self.discriminator = PatchDiscriminator(shape, c.discriminator_channels, c.discriminator_layers, c.discriminator_norm)
        self.lecam = LeCam(c.lecam_decay) if c.lecam else None

    @property
    def likelihood(self) -> Likelihood:  # type: ignore[override]
        return self.codec.likelihood

    @property
    def code_shape(self) -> tuple[int, ...]:
        return self.codec.code_shape

    def phases(self) -> list[Phase]:
        coder, critic = list(self.codec.parameters()), list(self.discriminator.parameters())
        return [Phase("autoencoder", coder), Phase("discriminator", critic, self.cfg.discriminator_lr, sees_recon=True)]

    def kept_whole(self) -> list[nn.Parameter]:
        """What the gradients that are computed inside of the forward pass go through, and what they are of."""
        return [*self.discriminator.parameters(), *self.last_block.parameters()]

    def forward(self, batch: Batch, phase: str, noise: Noise) -> Output:
        return self._judge(batch, noise) if phase == "discriminator" else self._reconstruct(batch, noise)

    def _reconstruct(self, batch: Batch, noise: Noise) -> Output:
        loss, recon, terms = self.codec.objective(batch, noise)
        mean, fit = self.likelihood.mean(recon), terms["recon"]
        if self.cfg.perceptual != "none":
            distance = self.perceptual_distance(batch.x, mean)
            added = batch.weight(self.cfg.perceptual_weight) * self._values * self._relative_precision * distance
            loss, fit, terms = loss + added, fit + added, terms | {"perceptual": distance}
        onset = self.onset(batch.step)
        fooled = -self.discriminator(mean).flatten(1).mean(1) if onset else torch.zeros_like(fit)
        if batch.step is None:
            return output(loss, recon, terms | {"adversarial": fooled})
        ratio, norms = self.ratio(fit, fooled) if onset else (fit.new_zeros(()), self._no_norms(fit))
        loss = loss + onset * batch.weight(self.cfg.discriminator_weight) * ratio * fooled
        return output(loss, recon, terms | {"adversarial": fooled, "adaptive_weight": ratio} | norms)

    def _judge(self, batch: Batch, noise: Noise) -> Output:
        if not self.onset(batch.step):
            return self._idle(batch)
        real, fake = batch.x, self._fakes(batch, noise)
        of_real, of_fake = self.discriminator(real), self.discriminator(fake)
        hinge = 0.5 * (F.relu(1 - of_real) + F.relu(1 + of_fake)).flatten(1).mean(1)
        right = 0.5 * ((of_real > 0).to(hinge) + (of_fake < 0).to(hinge)).flatten(1).mean(1)
        loss, terms = hinge, {"critic_accuracy": right}
        if batch.step is None:
            return output(loss, batch.x, terms, "critic_loss")
        if self.cfg.r1:
            terms["r1"] = self._r1(real)
            loss = loss + self.cfg.r1 * terms["r1"]
        if self.lecam is not None:
            terms["lecam"] = self.lecam(of_real, of_fake)
            loss = loss + self.cfg.lecam * terms["lecam"]
        return output(loss, batch.x, terms, "critic_loss")

    def onset(self, step: int | None) -> float:
        """The share of its weight that the adversarial term has at a step: 0 before the discriminator's start; 1 in evaluation."""
        if step is None:
            return 1.0
        done = step - self.cfg.discriminator_start + 1
        return min(1.0, max(0.0, done / max(1, self.cfg.discriminator_ramp)))

    def ratio(self, fit: Tensor, fooled: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """w, and the norms of both terms' gradients at the decoder's last layer, from terms `[B]`; scalars, equal on all ranks."""
        grads = [torch.autograd.grad(term.mean(), self.last_layer, retain_graph=True)[0] for term in (fit, fooled)]
        mean = dist.all_reduce_(torch.stack(grads).flatten(1)) / dist.world().world_size
        of_fit, of_fooled = torch.linalg.vector_norm(mean, dim=1)
        norms = {"recon_grad_norm": of_fit, "adversarial_grad_norm": of_fooled}
        if not self.cfg.adaptive_weight:
            return fit.new_full((), self._values), norms
        return (of_fit / (of_fooled + 1e-4)).clamp_max(self.cfg.adaptive_max).to(fit.dtype), norms

    @property
    def last_layer(self) -> nn.Parameter:
        """The weights of the decoder's last layer."""
        return next(p for p in self.last_block.parameters() if p.ndim > 1)

    @property
    def last_block(self) -> nn.Module:
        """The decoder's last layer."""
        return [m for m in self.codec.decoder.modules() if any(p.ndim > 1 for p in m.parameters(recurse=False))][-1]

    def perceptual_distance(self, x: Tensor, y: Tensor) -> Tensor:
        """`[B]` of two `[B, C, H, W]`."""
        if self.cfg.perceptual == "msssim":
            return 1 - ms_ssim(x, y, self.cfg.window)
        if self.cfg.perceptual != "lpips":
            return _features(self.cfg.perceptual, self.cfg.perceptual_checksum)(x, y)
        return _lpips(self.cfg.lpips_weights, self.cfg.lpips_backbone, self.cfg.lpips_checksum)(x, y)

    @property
    def _values(self) -> int:
        return torch.Size(self.shape).numel()

    @property
    def _relative_precision(self) -> float | Tensor:
        """What a learned scale weighs the error by, relative to the scale of the settings: published code divides both by it."""
        if not self.cfg.learn_scale:
            return 1.0
        relative: Tensor = self.cfg.scale / self.likelihood.scale_values()[1]  # type: ignore[assignment]
        return relative if self.cfg.likelihood == "laplace" else relative.square()

    def _no_norms(self, like: Tensor) -> dict[str, Tensor]:
        return dict.fromkeys(("recon_grad_norm", "adversarial_grad_norm"), like.new_zeros(()))

    @torch.no_grad()
    def _fakes(self, batch: Batch, noise: Noise) -> Tensor:
        """Reconstructions of the batch, `[B, *shape]`, from a sample of the posterior where there is one."""
        if batch.recon is not None:
            return self.likelihood.mean(batch.recon)
        codes = self.codec.encode(batch.x)
        z = codes.z
        if codes.mu is not None and codes.logvar is not None:
            z = Posterior.draw(codes.mu, codes.logvar, noise).z
        return self.likelihood.mean(self.codec.decode_raw(z))

    def _idle(self, batch: Batch) -> Output:
        """No gradient yet, at no cost, for every parameter: the graph is the same at all steps."""
        nothing = torch.stack([p.flatten()[0] for p in self.discriminator.parameters()]).sum() * 0
        zero = batch.x.new_zeros(len(batch.x)) + nothing
        names = ["critic_accuracy", *(["r1"] if self.cfg.r1 else []), *(["lecam"] if self.lecam is not None else [])]
        return output(zero, batch.x, dict.fromkeys(names, zero), "critic_loss")

    def _r1(self, real: Tensor) -> Tensor:
        """Half the squared norm of the gradient of an image's mean logit, `[B]`."""
        with torch.enable_grad():
            x = real.detach().requires_grad_()
            logits = self.discriminator(x).flatten(1).mean(1)
            (grad,) = torch.autograd.grad(logits.sum(), x, create_graph=True)
        return 0.5 * grad.flatten(1).square().sum(1)

    def encode(self, x: Tensor, label: Tensor | None = None) -> Codes:
        return self.codec.encode(x)

    def decode(self, z: Tensor, label: Tensor | None = None) -> Tensor:
        return self.codec.decode(z)

    @property
    def num_codes(self) -> int | None:
        return self.codec.num_codes

    def from_indices(self, indices: Tensor) -> Tensor:
        return self.codec.from_indices(indices)

    def kl_of_dimensions(self, codes: Codes) -> Tensor | None:
        return self.codec.kl_of_dimensions(codes)

    def after_step(self, step: int) -> None:
        self.codec.after_step(step)
        if self.lecam is not None:
            self.lecam.update()


@cache
def _lpips(weights: str | None, backbone: str | None, checksum: str) -> LPIPS:
    """Read once per process. Raises UserError if a file is missing, or other than that of the run."""
    if not weights or not backbone:
        raise UserError("--model.lpips-weights and --model.lpips-backbone: --model.perceptual lpips needs both")
    found = read_lpips(weights, backbone, "--model.")
    if found.checksum != checksum:
        raise UserError(f"--model.lpips-weights, --model.lpips-backbone: checksum mismatch: {found.checksum}, not {checksum}")
    return found


@cache
def _features(name: str, checksum: str) -> Features:
    """Made once per process. Raises UserError if the file that registered it is another than that of the run."""
    make = PERCEPTUAL[name]
    found = xxhash.xxh3_64_hexdigest(Path(inspect.getfile(make)).read_bytes())
    if found != checksum:
        raise UserError(f"--model.perceptual {name}: its file is not that of the run: checksum {found}, not {checksum}")
    return Features(name, make())
