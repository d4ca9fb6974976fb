"""A variational autoencoder trained for the structural similarity of its reconstructions."""

from distae.config.models import MSSSIMVAEConfig
from distae.losses.similarity import ms_ssim
from distae.models.base import Batch, Output, output, register
from distae.models.vae import VAE, Posterior
from distae.noise import Noise


@register(MSSSIMVAEConfig)
class MSSSIMVAE(VAE):
    """Snell et al. 2017: weight * (1 - MS-SSIM(x, mean of p(x|z))) + beta * KL. No ELBO: `recon`, -log p(x|z), is only reported."""

    cfg: MSSSIMVAEConfig

    def forward(self, batch: Batch, phase: str, noise: Noise) -> Output:
        q = Posterior.draw(*self.posterior(batch.x, noise), noise)
        recon = self.decoder(q.z, noise)
        similarity = ms_ssim(batch.x, self.likelihood.mean(recon), self.cfg.window)
        penalty, terms = self.penalty(q, batch, noise)
        loss = batch.weight(self.cfg.weight) * (1 - similarity) + penalty
        return output(loss, recon, {"recon": self.likelihood(recon, batch.x), "similarity": similarity, **terms})
