"""Features of images, under names that say what computed them, and distances in them.

Weights come from files of the user's: nothing is downloaded. Without those of Inception there is no FID.
"""

from collections.abc import Callable
from functools import cache
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from distae import distributed as dist
from distae.errors import UserError
from distae.evaluation.evaluation import Evaluation
from distae.evaluation.exact import in_shares
from distae.evaluation.shared import flat
from distae.losses import upcast
from distae.nn.perceptual import fill, read_lpips, read_weights
from distae.noise import Noise, Rows

CHANNELS = (32, 64, 16)
"""Of the random network's layers."""
INCEPTION_SIDE = 299


class Extractor(NamedTuple):
    """Features of samples."""

    name: str
    compute: Callable[[Tensor], Tensor]
    """`[B, F]` float64 of `[B, *shape]`."""
    chunk: int
    """Samples to compute at once."""

    def __call__(self, x: Tensor) -> Tensor:
        """Features `[n, F]` of `x` `[n, *shape]`, on the CPU of every rank; each rank computes some chunks."""
        parts = torch.split(x, self.chunk)
        return in_shares(len(parts), lambda i: self.compute(parts[i]))


def frechet(a: Tensor, b: Tensor) -> float:
    """|m_a - m_b|^2 + tr(S_a + S_b - 2 (S_a S_b)^(1/2)) of features `[n, F]`, `[m, F]` float64 (Dowson & Landau 1982, eq. 4)."""
    (mean_a, a), (mean_b, b) = ((x.mean(0), (x - x.mean(0)) / (len(x) - 1) ** 0.5) for x in (a, b))
    if max(len(a), len(b)) <= a.shape[1]:
        cross = torch.linalg.svdvals(a @ b.T).sum()  # the same number, from a smaller matrix
    else:
        values, axes = torch.linalg.eigh(a.T @ a)
        root = axes * values.clamp_min(0).sqrt() @ axes.T
        cross = torch.linalg.eigvalsh(root @ (b.T @ b) @ root).clamp_min(0).sqrt().sum()
    return float((mean_a - mean_b).square().sum() + a.square().sum() + b.square().sum() - 2 * cross)


def default(e: Evaluation) -> Extractor:
    """Of images a random network's features, of other samples the values themselves."""
    if len(e.model.shape) == 3:
        return random_network(e.model.shape[0])
    return Extractor("values", flat, 1024)


@cache
def random_network(channels: int) -> Extractor:
    """64 features of three convolutions with fixed random weights, for images of `channels`.

    Networks with random weights tell distributions of images other than natural ones apart more evenly than Inception does
    (Naeem et al. 2020, sec. 4.2).
    """
    noise = Noise(0, ("random network",), Rows(0), torch.device("cpu"))
    sizes = zip((channels, *CHANNELS), CHANNELS, strict=False)
    kernels = [noise.common(to, of, 3, 3).double() * (2 / (9 * of)) ** 0.5 for of, to in sizes]

    @torch.no_grad()
    def compute(x: Tensor) -> Tensor:
        x = x.double()
        for kernel in kernels:
            stride = 2 if min(x.shape[2:]) >= 8 else 1
            x = F.leaky_relu(F.conv2d(x, kernel.to(x.device), stride=stride, padding=1), 0.2)
        return F.adaptive_avg_pool2d(x, 2).flatten(1)

    return Extractor("random_network_64", compute, 256)


@cache
def inception(path: str) -> Extractor:
    """The 2,048 features of FID's Inception network, weights from `path`. Raises UserError if they are not of that network."""
    from torchvision.models import Inception3

    weights, checksum = read_weights(path, "--inception-weights")
    with torch.device("meta"):
        net = Inception3(num_classes=1008, aux_logits=False, init_weights=False)
    net.fc = net.dropout = nn.Identity()
    fill(net, {k: v for k, v in weights.items() if not k.startswith(("fc.", "AuxLogits."))}, "--inception-weights", path)
    _pool_as_tensorflow(net)

    @torch.no_grad()
    def compute(x: Tensor) -> Tensor:
        device = dist.world().device
        large = F.interpolate(_coloured(x).to(device), size=(INCEPTION_SIDE, INCEPTION_SIDE), mode="bilinear")
        features: Tensor = net.to(device)(2 * large - 1)
        return features.double()

    return Extractor(f"inception_2048 {checksum}", compute, 32)


def _pool_as_tensorflow(net: nn.Module) -> None:
    """The pooling of the network that FID is defined by: averages leave padding out, the last block takes maxima."""

    def average(x: Tensor) -> Tensor:
        return F.avg_pool2d(x, 3, 1, 1, count_include_pad=False)

    def maximum(x: Tensor) -> Tensor:
        return F.max_pool2d(x, 3, 1, 1)

    for name in ("5b", "5c", "5d", "6b", "6c", "6d", "6e", "7b", "7c"):
        _pool_by(getattr(net, f"Mixed_{name}"), maximum if name == "7c" else average)


def _pool_by(block: Any, pool: Callable[[Tensor], Tensor]) -> None:
    """Give the block's pooled branch `pool` of the block's input, whatever it pools by itself."""
    seen: list[Tensor] = []
    block.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    block.branch_pool.register_forward_pre_hook(lambda _, __: (pool(seen.pop()),))


class Perceptual(NamedTuple):
    """LPIPS."""

    name: str
    distance: Callable[[Tensor, Tensor], Tensor]
    """`[B]` of two `[B, C, H, W]` in [0, 1]."""


@cache
def perceptual(path: str, backbone: str | None) -> Perceptual:
    """`nn.perceptual.LPIPS` of files. Raises UserError if they do not belong together."""
    if not backbone:
        raise UserError("--lpips-weights needs --lpips-backbone too: torchvision's AlexNet or VGG16 of ImageNet")
    lpips = read_lpips(path, backbone, "--")

    @torch.no_grad()
    def distance(x: Tensor, y: Tensor) -> Tensor:
        return lpips(_coloured(x), _coloured(y))

    return Perceptual(f"lpips {lpips.kind} {lpips.checksum}", distance)


def _coloured(x: Tensor) -> Tensor:
    """Images `[B, 3, H, W]` float32 in [0, 1], grey ones in three equal channels."""
    return upcast(x).float().clamp(0, 1).expand(-1, 3, -1, -1)
