"""Autoencoders whose deterministic codes are matched to a standard normal prior by a distance between distributions."""

from torch import Tensor

from distae.config.models import SWAEConfig, WAEMMDConfig
from distae.losses import sliced_wasserstein, upcast
from distae.models.base import Batch, Codes, NetAutoencoder, Output, output, register
from distae.noise import Noise


class CodePrior(NetAutoencoder):
    """Deterministic codes and a standard normal prior."""

    normal_prior = True

    def encode(self, x: Tensor, label: Tensor | None = None) -> Codes:
        return Codes(upcast(self.encoder(x, None)))

    def sample(self, n: int, noise: Noise) -> Tensor:
        return self.decode(self.normal_codes(n, noise))


@register(WAEMMDConfig)
class WAEMMD(CodePrior):
    """Tolstikhin et al. 2018, algorithm 2: -log p(x|z) + weight * MMD(q(z), p(z)), the unbiased estimate over the global batch."""

    cfg: WAEMMDConfig

    def forward(self, batch: Batch, phase: str, noise: Noise) -> Output:
        z = upcast(self.encoder(batch.x, noise))
        recon = self.decoder(z, noise)
        nll = self.likelihood(recon, batch.x)
        distance = batch.mmd(z, noise.normal(z), self.cfg.kernel, self.cfg.bandwidths)
        return output(nll + batch.weight(self.cfg.weight) * distance, recon, {"recon": nll, "mmd": distance})


@register(SWAEConfig)
class SWAE(CodePrior):
    """Kolouri et al. 2018, eq. 15: -log p(x|z) + weight * SW(q(z), p(z))^2, from sorted projections of the global batch."""

    cfg: SWAEConfig

    def forward(self, batch: Batch, phase: str, noise: Noise) -> Output:
        z = upcast(self.encoder(batch.x, noise))
        recon = self.decoder(z, noise)
        nll = self.likelihood(recon, batch.x)
        directions = noise.common(self.cfg.slices, self.code_size)
        distance = sliced_wasserstein(batch.pool(z), batch.pool(noise.normal(z)), directions)
        return output(nll + batch.weight(self.cfg.weight) * distance, recon, {"recon": nll, "sliced": distance})
