"""diffusers' training logic for image tokenizers, written anew from what its examples do, on networks of ours.

kl: examples/research_projects/autoencoderkl/train_autoencoderkl.py, vq: examples/vqgan/train_vqgan.py of huggingface/diffusers.
Both use AdamW (0.9, 0.999; decay 0.01), clip gradients to a norm of 1, and train one network per step: the autoencoder at even
steps, the discriminator at odd ones. The gradient of kl's perceptual distance is switched off there, and its discriminator has a
loss but no update; here it is updated, as is clearly meant. In vq the adversarial term begins at once, and is weighed by the
gradient of the perceptual term.
"""

from collections.abc import Iterable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from distae.losses.similarity import ms_ssim

BETA, PENALTY, CLIP = 0.25, 10.0, 1.0


def epochs(x: Tensor, batch: int, seed: int) -> Iterator[Tensor]:
    """Shuffled batches of `x` `[N, ...]`, without end."""
    rng = torch.Generator().manual_seed(seed)
    while True:
        for rows in torch.randperm(len(x), generator=rng).split(batch):
            if len(rows) == batch:
                yield x[rows]


class Loop:
    """Trains the networks of a Tokenizer `model`; a VQ codebook must be a parameter."""

    def __init__(self, model: Any, lr: float, start: int) -> None:
        self.model, self.start = model, start
        self.last = next(p for p in reversed([*model.codec.decoder.parameters()]) if p.ndim == 4)
        parts = (model.codec, model.discriminator)
        self.optimizers = [torch.optim.AdamW(m.parameters(), lr, betas=(0.9, 0.999), weight_decay=1e-2) for m in parts]

    def train(self, batches: Iterable[Tensor], steps: int) -> None:
        for step, x in zip(range(steps), batches, strict=False):
            coder = step % 2 == 0 or step < self.start
            module = self.model.codec if coder else self.model.discriminator
            self.model.discriminator.requires_grad_(not coder)
            loss = self.coder_loss(x, step) if coder else self.critic_loss(x)
            self.model.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(module.parameters(), CLIP)
            self.optimizers[0 if coder else 1].step()

    def weight(self, fit: Tensor, fooled: Tensor, least: float) -> Tensor:
        of_fit, of_fooled = (torch.autograd.grad(t, self.last, retain_graph=True)[0].norm() for t in (fit, fooled))
        return (of_fit / (of_fooled + least)).clamp_max(1e4)

    def coder_loss(self, x: Tensor, step: int) -> Tensor:
        raise NotImplementedError

    def critic_loss(self, x: Tensor) -> Tensor:
        raise NotImplementedError


class KL(Loop):
    """Squared errors of values in [-1, 1], summed over an image; 1e-6 of the KL; hinge loss."""

    def decoded(self, x: Tensor) -> tuple[Tensor, Tensor]:
        mu, logvar = self.model.codec.encoder(x, None).chunk(2, 1)
        logvar = logvar.clamp(-30, 20)
        y = self.model.codec.decoder(mu + torch.randn_like(mu) * (0.5 * logvar).exp(), None)
        return y, 0.5 * (mu.square() + logvar.exp() - 1 - logvar).sum() / len(x)

    def coder_loss(self, x: Tensor, step: int) -> Tensor:
        y, kl = self.decoded(x)
        fit = (2 * (x - y)).square().sum() / len(x)
        if step < self.start:
            return fit + 1e-6 * kl
        fooled = -self.model.discriminator(y).mean()
        return fit + 1e-6 * kl + self.weight(fit, fooled, 1e-4) * fooled

    def critic_loss(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            y, _ = self.decoded(x)
        real, fake = self.model.discriminator(x), self.model.discriminator(y)
        return 0.5 * (F.relu(1 - real) + F.relu(1 + fake)).mean()


class VQ(Loop):
    """Mean squared error, the codes' loss in its `legacy` form, the perceptual distance; hinge loss and a gradient penalty."""

    def decoded(self, x: Tensor) -> tuple[Tensor, Tensor]:
        codes = self.model.codec.codebook.codes
        z = self.model.codec.encoder(x, None)
        vectors = z.view(-1, codes.shape[1])
        quantized = codes[torch.cdist(vectors.detach(), codes.detach()).argmin(1)].view_as(z)
        loss = F.mse_loss(z, quantized.detach()) + BETA * F.mse_loss(quantized, z.detach())
        return self.model.codec.decoder(z + (quantized - z).detach(), None), loss

    def coder_loss(self, x: Tensor, step: int) -> Tensor:
        y, commitment = self.decoded(x)
        perceptual = (1 - ms_ssim(x, y, 7)).mean()
        fooled = -self.model.discriminator(y).mean()
        return F.mse_loss(y, x) + commitment + perceptual + self.weight(perceptual, fooled, 1e-8) * fooled

    def critic_loss(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            y, _ = self.decoded(x)
        x = x.clone().requires_grad_()
        real, fake = self.model.discriminator(x), self.model.discriminator(y)
        (slope,) = torch.autograd.grad(real.sum(), x, create_graph=True)
        penalty = PENALTY * (slope.flatten(1).norm(dim=1) - 1).square().mean()
        return (F.relu(1 + fake) + F.relu(1 - real)).mean() + penalty
