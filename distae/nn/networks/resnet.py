"""Pre-activation residual networks, down and up."""

from itertools import pairwise

from torch import Tensor, nn

from distae.config.nets import NetConfig, ResNetConfig
from distae.nn.layers import ACTIVATIONS, Chain, Hidden, Noisy, area, has_bias
from distae.nn.norms import make_norm
from distae.noise import Noise


class NormAct(nn.Module):
    """Norm and activation before a layer."""

    def __init__(self, cfg: NetConfig, channels: int) -> None:
        super().__init__()
        self.norm = make_norm(cfg, channels, images=True) or nn.Identity()
        self.activation = ACTIVATIONS[cfg.activation]

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.activation(self.norm(x))
        return out


class Block(Noisy):
    """x + conv(dropout(act(norm(conv(act(norm(x))))))), He 2016 (identity mappings), fig. 4e: `[B, channels, H, W]`.

    Where the two numbers of channels differ, x passes through a 1x1 convolution.
    """

    def __init__(self, cfg: NetConfig, inputs: int, channels: int) -> None:
        super().__init__()
        self.before = NormAct(cfg, inputs)
        self.hidden = Hidden(nn.Conv2d(inputs, channels, 3, 1, 1, bias=has_bias(cfg)), channels, cfg, images=True)
        self.last = nn.Conv2d(channels, channels, 3, 1, 1, bias=has_bias(cfg))
        self.skip = nn.Identity() if inputs == channels else nn.Conv2d(inputs, channels, 1, bias=has_bias(cfg))

    def forward(self, x: Tensor, noise: Noise | None) -> Tensor:
        out: Tensor = self.skip(x) + self.last(self.hidden(self.before(x), noise))
        return out


def encoder(cfg: ResNetConfig, shape: tuple[int, ...], out: int) -> Chain:
    """`[B, C, H, W]` to `[B, out]`, or a map of `out` channels; H and W are divisible by 2**len(cfg.channels)."""
    c = cfg.channels
    parts: list[nn.Module] = [nn.Conv2d(shape[0], c[0], 3, 1, 1)]
    for a, b in pairwise((c[0], *c)):
        parts += [nn.Conv2d(a, b, 4, 2, 1, bias=has_bias(cfg)), *(Block(cfg, b, b) for _ in range(cfg.blocks))]
    parts.append(NormAct(cfg, c[-1]))
    if cfg.spatial:
        return Chain(*parts, nn.Conv2d(c[-1], out, 1))
    return Chain(*parts, nn.Flatten(), nn.Linear(c[-1] * area(shape, len(cfg.channels)), out))


def decoder(cfg: ResNetConfig, shape: tuple[int, ...], latent_dim: int) -> Chain:
    """`[B, latent_dim]`, or a map of `latent_dim` channels, to `[B, C, H, W]`."""
    c = tuple(reversed(cfg.channels))
    rows, columns, channels = cfg.map_shape(shape, c[0])
    parts: list[nn.Module] = [nn.Linear(latent_dim, rows * columns * channels), nn.Unflatten(1, (channels, rows, columns))]
    if cfg.spatial:
        parts = [nn.Conv2d(latent_dim, c[0], 3, 1, 1)]
    for a, b in pairwise((*c, c[-1])):
        conv = nn.Conv2d(a, b, 3, 1, 1, bias=has_bias(cfg))
        parts += [*(Block(cfg, a, a) for _ in range(cfg.blocks)), nn.Upsample(scale_factor=2), conv]
    return Chain(*parts, NormAct(cfg, c[-1]), nn.Conv2d(c[-1], shape[0], 3, 1, 1))
