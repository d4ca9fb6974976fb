"""Image grids: inputs over their reconstructions, and samples from the prior."""

import io
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from distae.data import Loader
from distae.models import Autoencoder
from distae.noise import Noise, Rows
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

    factor = max(1, 32 // images.shape[-1])
    large = F.interpolate(images.float().nan_to_num(0.0).clamp(0, 1).cpu(), scale_factor=factor, mode="nearest")
    file = io.BytesIO()
    save_image(large, file, format="png", nrow=COLUMNS, pad_value=0.5)
    return file.getvalue()


def _save(images: Tensor, path: Path) -> Path:
    make_folder(path.parent)
    write_atomically(path, png(images), durable=False)
    return path
