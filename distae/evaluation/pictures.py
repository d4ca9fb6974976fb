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
    """Write PNG files; returns their paths by name, or nothing unless samples are images of 1 or 3 channels.

    Called by one process; no collectives.
    """
    if len(model.shape) != 3 or model.shape[0] not in (1, 3) or not len(loader):
        return {}
    was_training, device = model.training, next(model.parameters()).device
    model.eval()
    n = min(2 * COLUMNS, len(loader))
    rows = torch.arange(n, device=loader.storage_device)
    x, label = loader.batch(rows, Noise(seed, ("pictures",), Rows(n), device))
    pairs = zip(torch.split(x, COLUMNS), torch.split(model.reconstruct(x, label), COLUMNS), strict=True)
    grids = {"reconstructions": torch.cat([half for pair in pairs for half in pair])}
    if model.cfg.generative:
        grids["samples"] = model.sample(4 * COLUMNS, Noise(seed, ("samples",), Rows(4 * COLUMNS), device))
    model.train(was_training)
    return {name: _save(images, folder / f"{split}_{name}_{step:08}.png") for name, images in grids.items()}


def _save(images: Tensor, path: Path) -> Path:
    """`[N, C, H, W]` in [0, 1] as a grid of 16 columns, missing values as 0, small images enlarged to 32 pixels a side."""
    from torchvision.utils import save_image

    factor = max(1, 32 // images.shape[-1])
    large = F.interpolate(images.float().nan_to_num(0.0).clamp(0, 1).cpu(), scale_factor=factor, mode="nearest")
    png = io.BytesIO()
    save_image(large, png, format="png", nrow=COLUMNS, pad_value=0.5)
    make_folder(path.parent)
    write_atomically(path, png.getvalue(), durable=False)
    return path
