"""Discriminators of images, and a regulariser of them, with the same results at every world size."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from distae import distributed as dist
from distae.config.nets import shared_groups
from distae.losses import upcast
from distae.nn.norms import BatchNorm

SMALLEST_MAP = 3
"""Side of the map that the last two convolutions, each of which takes 1 off it, can still work on."""


class _Conv(nn.Conv2d):
    """A 4x4 convolution, its weights initialised as in Isola 2017, app. 6.2."""

    def __init__(self, inputs: int, outputs: int, stride: int, bias: bool = True) -> None:
        super().__init__(inputs, outputs, 4, stride, 1, bias=bias)

    def reset_parameters(self) -> None:
        super().reset_parameters()
        nn.init.normal_(self.weight, std=0.02)


class PatchDiscriminator(nn.Module):
    """Logits of overlapping patches, `[B, 1, h, w]` from images `[B, C, H, W]` (Isola 2017, sec. 3.2.2).

    `layers` strided convolutions, fewer where the image would become smaller than 3 pixels; then two that keep the size.
    """

    def __init__(self, shape: tuple[int, ...], width: int, layers: int, norm: str) -> None:
        super().__init__()
        fits = (min(shape[1:]) // SMALLEST_MAP).bit_length() - 1
        depth = max(1, min(layers, fits))
        widths = [width * min(2**n, 8) for n in range(depth + 1)]
        parts: list[nn.Module] = [_Conv(shape[0], width, 2), nn.LeakyReLU(0.2)]
        for level in range(1, depth + 1):
            conv = _Conv(widths[level - 1], widths[level], 1 if level == depth else 2, bias=norm != "batch")
            parts += [conv, _norm(norm, widths[level]), nn.LeakyReLU(0.2)]
        self.layers = nn.Sequential(*parts, _Conv(widths[-1], 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return upcast(self.layers(x))


def _norm(name: str, channels: int) -> nn.Module:
    if name == "batch":
        return BatchNorm(channels)
    return nn.GroupNorm(shared_groups(32, channels), channels) if name == "group" else nn.Identity()


class LeCam(nn.Module):
    """Tseng et al. 2021 (LeCam), as its authors' code has it: max(0, D(x) - a_F)^2 + max(0, a_R - D(y))^2.

    a_R and a_F are moving averages of the logits of real and of generated images over the global batch; they begin at 0.
    """

    means: Tensor
    seen: Tensor

    def __init__(self, decay: float) -> None:
        super().__init__()
        self.decay = decay
        self.register_buffer("means", torch.zeros(2))
        self.register_buffer("seen", torch.zeros(3), persistent=False)

    def forward(self, real: Tensor, fake: Tensor) -> Tensor:
        """The penalty `[B]` of logits `[B, ...]`; training also collects their means."""
        if self.training:
            sums = torch.stack([real.detach().mean(), fake.detach().mean(), real.new_ones(())])
            self.seen += sums.to(self.seen.dtype)
        of_real, of_fake = self.means
        return (F.relu(real - of_fake).square() + F.relu(of_real - fake).square()).flatten(1).mean(1)

    @torch.no_grad()
    def update(self) -> None:
        """Move the averages after an optimizer step; one without logits, or with non-finite ones, changes nothing."""
        seen = dist.all_reduce_(self.seen.clone())
        means = seen[:2] / seen[2].clamp_min(1)
        rate = torch.where((seen[2] > 0) & means.isfinite().all(), 1 - self.decay, 0.0)
        self.means.copy_(torch.where(rate > 0, torch.lerp(self.means, means, rate.to(means.dtype)), self.means))
        self.seen.zero_()
