"""Deterministic autoencoders."""

from torch import Tensor

from distae.config.models import AEConfig
from distae.models.base import Autoencoder, Batch, Codes, Output, register
from distae.nn.layers import ACTIVATIONS
from distae.noise import Noise


@register(AEConfig)
class AE(Autoencoder):
    """Hinton & Salakhutdinov 2006: minimise -log p(x | decode(encode(x))), in nats per sample."""

    cfg: AEConfig

    def forward(self, batch: Batch, turn: str, noise: Noise) -> Output:
        recon = self.decoder(self._code(batch.x, noise), noise)
        nll = self.likelihood(recon, batch.x)
        return Output(nll.mean(), {"loss": nll, "recon": nll}, {}, recon)

    def encode(self, x: Tensor) -> Codes:
        return Codes(self._code(x, None))

    def _code(self, x: Tensor, noise: Noise | None) -> Tensor:
        return ACTIVATIONS[self.cfg.code_activation](self.encoder(x, noise))
