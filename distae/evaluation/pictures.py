"""Image grids: inputs over their reconstructions, and samples from the prior."""

import io
import math
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from distae.data import Loader
from distae.models import Autoencoder
from distae.noise import Noise, Rows
from distae.runtime.animations import animation
from distae.runtime.files import make_folder, write_atomically

COLUMNS = 16


@torch.no_grad()
def draw(model: Autoencoder, loader: Loader, folder: Path, step: int, seed: int, split: str) -> dict[str, Path]:
    """PNG files by name, for images of 1 or 3 channels. Called by one process; no collectives."""
    if not is_image(model.shape) or not len(loader):
        return {}
    was_training, device = model.training, next(model.parameters()).device
    model.eval()
    x, label = first(loader, seed)
    grids = {"reconstructions": pairs(x, model.reconstruct(x, label))}
    if model.cfg.generative:
        grids["samples"] = model.sample(4 * COLUMNS, Noise(seed, ("samples",), Rows(4 * COLUMNS), device))
    model.train(was_training)
    return {name: _save(images, folder / f"{split}_{name}_{step:08}.png") for name, images in grids.items()}


def is_image(shape: tuple[int, ...]) -> bool:
    """Whether samples are images of 1 or 3 channels."""
    return len(shape) == 3 and shape[0] in (1, 3)


def first(loader: Loader, seed: int) -> tuple[Tensor, Tensor | None]:
    """The samples and labels of two rows of a grid."""
    n = min(2 * COLUMNS, len(loader))
    return loader.batch(torch.arange(n, device=loader.storage_device), Noise(seed, ("pictures",), Rows(n), loader.device))


def pairs(x: Tensor, reconstructions: Tensor) -> Tensor:
    """Rows of inputs over rows of reconstructions: `[2 N, C, H, W]` of `[N, C, H, W]` each."""
    both = zip(torch.split(x, COLUMNS), torch.split(reconstructions, COLUMNS), strict=True)
    return torch.cat([half for pair in both for half in pair])


def png(images: Tensor) -> bytes:
    """`[N, C, H, W]` in [0, 1] as a grid of 16 columns, missing values as 0, small images enlarged to 32 pixels a side."""
    from torchvision.utils import save_image

    file = io.BytesIO()
    save_image(_shown(images, 32), file, format="png", nrow=COLUMNS, pad_value=0.5)
    return file.getvalue()


def animated(frames: Tensor, kind: str, seconds: float = 3.0) -> bytes:
    """`[T, N, C, H, W]` in [0, 1] as an animation there and back of grids, each way in `seconds`: gif or mp4."""
    from PIL import Image
    from torchvision.utils import make_grid

    side = 128 if frames.shape[1] == 1 else 64
    columns = math.ceil(frames.shape[1] ** 0.5)
    grids = [make_grid(_shown(images, side), columns, pad_value=0.5).mul(255).round().byte() for images in frames]
    pictures = [Image.fromarray(grid.permute(1, 2, 0).numpy()) for grid in (*grids, *grids[-2:0:-1])]
    return animation(pictures, [round(1000 * seconds / len(frames))] * len(pictures), kind)


def _shown(images: Tensor, side: int) -> Tensor:
    """`[N, C, H, W]` on the CPU, within [0, 1], enlarged by a whole factor to at least about `side` pixels a side."""
    factor = max(1, side // images.shape[-1])
    return F.interpolate(images.float().nan_to_num(0.0).clamp(0, 1).cpu(), scale_factor=factor, mode="nearest")


def _save(images: Tensor, path: Path) -> Path:
    make_folder(path.parent)
    write_atomically(path, png(images), durable=False)
    return path
