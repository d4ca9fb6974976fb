"""A variant of your own: --plugin examples/my_variant.py --model noisy_code_ae."""

from dataclasses import dataclass
from typing import ClassVar

from distae.config.models import AEConfig
from distae.models import output, register
from distae.models.ae import AE


@dataclass(frozen=True, kw_only=True)
class NoisyCodeAEConfig(AEConfig):
    """Autoencoder with gaussian noise on the code in training (Poole 2014)."""

    name: ClassVar[str] = "noisy_code_ae"
    std: float = 0.1
    """Standard deviation of the noise."""


@register(NoisyCodeAEConfig)
class NoisyCodeAE(AE):
    """Poole et al. 2014: -log p(x | decode(encode(x) + noise)), in nats per sample."""

    def forward(self, batch, phase, noise):
        z = self._code(batch.x, noise)
        if self.training:
            z = z + self.cfg.std * noise.normal(z).to(z.dtype)  # the only source of randomness: the same on any number of ranks
        recon = self.decoder(z, noise)
        nll = self.likelihood(recon, batch.x)
        return output(nll, recon, {"recon": nll})
