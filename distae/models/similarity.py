"""A variational autoencoder trained for the structural similarity of its reconstructions."""

import torch
import torch.nn.functional as F
from torch import Tensor

from distae.config.models import MSSSIMVAEConfig
from distae.losses import upcast
from distae.models.base import Batch, Output, output, register
from distae.models.vae import VAE, Posterior
from distae.noise import Noise

SCALE_WEIGHTS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)
"""Wang et al. 2003, sec. 3.3; with fewer scales, the first ones, normalised to sum 1."""


def ms_ssim(x: Tensor, y: Tensor, window: int) -> Tensor:
    """Multi-scale structural similarity of images in [0, 1], `[B]` from two `[B, C, H, W]` (Wang et al. 2003, eq. 7).

    At most 5 scales, as many as keep the image no smaller than the window: a gaussian of standard deviation 1.5 pixels.
    """
    x, y = upcast(x), upcast(y)
    sizes = [min(x.shape[2:]) >> i for i in range(len(SCALE_WEIGHTS))]
    weights = [w for w, size in zip(SCALE_WEIGHTS, sizes, strict=True) if size >= window]
    result = torch.ones_like(x[:, 0, 0, 0])
    with torch.autocast(x.device.type, enabled=False):
        for scale, weight in enumerate(weights):
            luminance, structure = (m.mean((1, 2, 3)).clamp_min(1e-6) for m in _ssim_maps(x, y, window))
            last = scale == len(weights) - 1
            result = result * (luminance if last else structure) ** (weight / sum(weights))
            if not last:
                x, y = F.avg_pool2d(x, 2), F.avg_pool2d(y, 2)
    return result


def _ssim_maps(x: Tensor, y: Tensor, window: int) -> tuple[Tensor, Tensor]:
    """SSIM, and its contrast-structure factor alone, each `[B, C, H', W']`, by pixel (Wang et al. 2004, eq. 12-13)."""
    channels = x.shape[1]
    line = torch.exp(-((torch.arange(window, dtype=x.dtype, device=x.device) - window // 2) ** 2) / (2 * 1.5**2))
    line = (line / line.sum()).expand(channels, 1, 1, window)

    def blur(image: Tensor) -> Tensor:
        return F.conv2d(F.conv2d(image, line, groups=channels), line.transpose(2, 3), groups=channels)

    mean_x, mean_y = blur(x), blur(y)
    var_x, var_y = blur(x * x) - mean_x**2, blur(y * y) - mean_y**2
    structure = (2 * (blur(x * y) - mean_x * mean_y) + 0.03**2) / (var_x + var_y + 0.03**2)
    return (2 * mean_x * mean_y + 0.01**2) / (mean_x**2 + mean_y**2 + 0.01**2) * structure, structure


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
