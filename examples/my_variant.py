"""A variant and a network of one's own: --plugin examples/my_variant.py --model noisy_code_ae --net tanh_net."""

from dataclasses import dataclass
from math import prod
from typing import ClassVar

from torch import nn

from distae.config.models import AEConfig
from distae.config.nets import MLPConfig
from distae.models import output, register
from distae.models.ae import AE
from distae.nn import register_net
from distae.nn.layers import Chain


@dataclass(frozen=True, kw_only=True)
class NoisyCodeAEConfig(AEConfig):
    """Autoencoder with gaussian noise on the code in training (Poole 2014)."""

    name: ClassVar[str] = "noisy_code_ae"

    std: float = 0.1
    """Standard deviation of the noise."""


@register(NoisyCodeAEConfig)
class NoisyCodeAE(AE):
    """Poole et al. 2014: -log p(x | decode(encode(x) + noise)), in nats per sample."""

    def forward(self, batch, turn, noise):
        z = self._code(batch.x, noise)
        if self.training:
            z = z + self.cfg.std * noise.normal(z).to(z.dtype)  # the only source of randomness: the same on any number of ranks
        recon = self.decoder(z, noise)
        nll = self.likelihood(recon, batch.x)
        return output(nll, recon, {"recon": nll})


@dataclass(frozen=True, kw_only=True)
class TanhNetConfig(MLPConfig):
    """One hidden layer each way, with tanh."""

    name: ClassVar[str] = "tanh_net"


@register_net(TanhNetConfig)
class TanhNet:
    """`encoder` makes a module `[B, *shape]` to `[B, out]`, `decoder` one from `[B, latent_dim]` to `[B, *shape]`."""

    @staticmethod
    def encoder(cfg, shape, out):
        return Chain(nn.Flatten(), nn.Linear(prod(shape), cfg.hidden[0]), nn.Tanh(), nn.Linear(cfg.hidden[0], out))

    @staticmethod
    def decoder(cfg, shape, latent_dim):
        body = nn.Linear(latent_dim, cfg.hidden[0]), nn.Tanh(), nn.Linear(cfg.hidden[0], prod(shape))
        return Chain(*body, nn.Unflatten(1, shape))
