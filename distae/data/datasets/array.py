"""A user's own .npy or .npz file."""

from pathlib import Path
from typing import Any

import numpy as np
import torch

from distae.config.data import FILE_ERRORS, ArrayConfig
from distae.data.datasets.base import register_dataset
from distae.data.splits import Arrays, hold_out
from distae.errors import UserError


@register_dataset(ArrayConfig)
def load(cfg: ArrayConfig) -> tuple[Arrays, Arrays]:
    shape = cfg.shape()
    try:
        array = _read(Path(cfg.path), cfg)
    except FILE_ERRORS as error:
        raise UserError(f"--data.path: {cfg.path} is damaged ({error})") from error
    x = torch.from_numpy(np.ascontiguousarray(array, array.dtype.newbyteorder("="))).view(-1, *shape)
    if x.dtype == torch.uint8:
        return hold_out(Arrays(x, None, 1 / 255), cfg.test_fraction)
    if not x.isfinite().all():
        raise UserError(f"--data.path: {cfg.path} holds NaN or infinite values")
    return hold_out(Arrays(x if x.dtype == torch.float64 else x.float(), None), cfg.test_fraction)


def _read(path: Path, cfg: ArrayConfig) -> Any:
    if path.suffix == ".npy":
        return np.load(path, allow_pickle=False)
    with np.load(path, allow_pickle=False) as archive:
        return archive[cfg.npz_key()]
