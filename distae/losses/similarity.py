"""Structural similarity of images."""

import torch
import torch.nn.functional as F
from torch import Tensor

from distae.losses.divergences import upcast

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
            luminance, structure = (m.mean((1, 2, 3)).clamp_min(1e-6) for m in ssim_maps(x, y, window))
            last = scale == len(weights) - 1
            result = result * (luminance if last else structure) ** (weight / sum(weights))
            if not last:
                x, y = F.avg_pool2d(x, 2), F.avg_pool2d(y, 2)
    return result


def ssim_maps(x: Tensor, y: Tensor, window: int) -> tuple[Tensor, Tensor]:
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


def ssim(x: Tensor, y: Tensor, window: int) -> Tensor:
    """Structural similarity of images in [0, 1], `[B]` from two `[B, C, H, W]` (Wang et al. 2004, eq. 13), mean over the places
    where the window fits."""
    with torch.autocast(x.device.type, enabled=False):
        return ssim_maps(upcast(x), upcast(y), window)[0].mean((1, 2, 3))
