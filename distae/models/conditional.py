"""Autoencoders conditioned on the sample's label."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from distae.config.models import CVAEConfig
from distae.errors import UserError
from distae.models.base import Batch, Codes, Output, output, register
from distae.models.vae import VAE, Posterior
from distae.nn import build_decoder, build_encoder
from distae.noise import Noise


@register(CVAEConfig)
class CVAE(VAE):
    """Sohn et al. 2015, eq. 4, with p(z|y) = N(0, I): -log p(x|z, y) + beta * KL(q(z|x, y) || N(0, I)).

    The label is one-hot: the encoder receives it as further channels (or values) of x, the decoder as further values of z.
    """

    cfg: CVAEConfig

    def build_encoder(self) -> nn.Module:
        channels, *sides = self.shape
        return build_encoder(
            self.net, (channels + self.cfg.classes, *sides), self.latent_factor * self.cfg.latent_dim, self.latent_factor
        )

    def build_decoder(self) -> nn.Module:
        return build_decoder(self.net, self.likelihood.raw_shape, self.cfg.latent_dim + self.cfg.classes)

    def forward(self, batch: Batch, phase: str, noise: Noise) -> Output:
        q = Posterior.draw(*self.posterior(self._labelled(batch.x, batch.label), noise), noise)
        recon = self.decoder(self._labelled_code(q.z, batch.label), noise)
        nll = self.likelihood(recon, batch.x)
        penalty, terms = self.penalty(q, batch, noise)
        return output(nll + penalty, recon, {"recon": nll, **terms})

    def encode(self, x: Tensor, label: Tensor | None = None) -> Codes:
        mu, logvar = self.posterior(self._labelled(x, label), None)
        return Codes(mu, mu, logvar)

    def decode_raw(self, z: Tensor, label: Tensor | None = None) -> Tensor:
        return super().decode_raw(self._labelled_code(z, label))

    def sample(self, n: int, noise: Noise, label: Tensor | None = None) -> Tensor:
        """`n` samples, `[n, *shape]`, of the labels `[n]`; by default, of each label in turn."""
        z = self.prior(n, noise)
        return self.decode(z, torch.arange(n, device=z.device) % self.cfg.classes if label is None else label)

    def _labelled_code(self, z: Tensor, label: Tensor | None) -> Tensor:
        """Codes with the label's channels at each position."""
        channels = z.view(z.shape[0], -1, self.cfg.latent_dim).transpose(1, 2)
        return self._labelled(channels, label).transpose(1, 2).flatten(1)

    def _labelled(self, x: Tensor, label: Tensor | None) -> Tensor:
        """`[B, C + classes, ...]` from `x` `[B, C, ...]`. Raises UserError without labels."""
        if label is None:
            raise UserError("cvae needs the label of each sample")
        hot = F.one_hot(label, self.cfg.classes).to(x.dtype)
        return torch.cat([x, hot.view(*hot.shape, *[1] * (x.ndim - 2)).expand(-1, -1, *x.shape[2:])], 1)
