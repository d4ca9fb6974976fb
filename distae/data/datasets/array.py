"""A user's own .npy or .npz file."""

from pathlib import Path

import numpy as np
import torch

from distae.config.data import ArrayConfig
from distae.data.datasets.base import register_dataset
from distae.data.splits import Arrays, hold_out
from distae.errors import UserError


@register_dataset(ArrayConfig)
def load(cfg: ArrayConfig) -> tuple[Arrays, Arrays]:
    path = Path(cfg.path)
    values = np.load(path, allow_pickle=False)
    array = values if path.suffix == ".npy" else values[cfg.npz_key()]
    x = torch.from_numpy(np.ascontiguousarray(array, array.dtype.newbyteorder("="))).view(-1, *cfg.shape())
    if x.dtype == torch.uint8:
        return hold_out(Arrays(x, None, 1 / 255), cfg.test_fraction)
    if not x.isfinite().all():
        raise UserError(f"--data.path: {cfg.path} holds NaN or infinite values")
    return hold_out(Arrays(x if x.dtype == torch.float64 else x.float(), None), cfg.test_fraction)
