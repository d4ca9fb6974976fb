"""A user's own .npy or .npz file."""

import math
import warnings
from typing import Any

import numpy as np
import torch
from torch import Tensor

from distae.config.data import FILE_ERRORS, ArrayConfig
from distae.data.datasets.base import register_dataset
from distae.data.source import Tensors
from distae.data.splits import Split, hold_out
from distae.data.transform import Transform
from distae.errors import UserError


@register_dataset(ArrayConfig)
def load(cfg: ArrayConfig) -> tuple[Split, Split]:
    cfg.shape()
    try:
        x, label = _read(cfg)
    except FILE_ERRORS as error:
        raise UserError(f"--data.path: {cfg.path} is damaged ({error})") from error
    if label is not None and len(label) != len(x):
        raise UserError(f"--data.label-key: {cfg.label_key!r} has {len(label)} labels for {len(x)} samples")
    source = Tensors(_tensor(x), label, cfg.path if isinstance(x, np.memmap) and x.dtype.isnative else "")
    scale, notes = _scale(cfg, Split(source))
    transform = Transform(scale, cfg.stored_layout(x.shape))
    return hold_out(Split(source, transform, notes=notes), cfg.test_fraction)


def _read(cfg: ArrayConfig) -> tuple[np.ndarray, Tensor | None]:
    """The samples, memory-mapped from a .npy file, and the labels `[N]`, if asked for."""
    path = cfg.file()
    if path.suffix == ".npy":
        return np.load(path, mmap_mode="r", allow_pickle=False), None
    with np.load(path, allow_pickle=False) as members:
        return members[cfg.npz_key()], _labels(cfg, members)


def _tensor(x: np.ndarray) -> Tensor:
    """The array's own memory as a tensor; a copy only if torch, or reading by rows, needs another byte order or layout."""
    x = np.require(x, x.dtype.newbyteorder("="), "C")
    with warnings.catch_warnings():
        # Nothing writes to it; a writable private map fails if the file is larger than the memory.
        warnings.filterwarnings("ignore", "The given NumPy array is not writable")
        return torch.from_numpy(x)


def _scale(cfg: ArrayConfig, stored: Split) -> tuple[float, tuple[str, ...]]:
    """The divisor of stored values, and a note if it is a guess. Raises UserError on NaN and infinite values."""
    low, high = stored.bounds() if len(stored) else (0.0, 0.0)
    if not math.isfinite(low) or not math.isfinite(high):
        raise UserError(f"--data.path: {cfg.path} holds NaN or infinite values")
    if cfg.scale != "auto":
        return cfg.scale, ()
    if stored.source.dtype != torch.uint8:
        return 1.0, ()
    if high <= 1:
        return 1.0, (f"--data.scale auto: {cfg.path} holds uint8 values up to {high:.0f}, taken as they are (as --data.scale 1)",)
    return 255.0, (f"--data.scale auto: {cfg.path} holds uint8 values up to {high:.0f}, divided by 255 (as --data.scale 255)",)


def _labels(cfg: ArrayConfig, members: Any) -> Tensor | None:
    """The labels `[N]` int64, if asked for. Raises UserError if they are not valid labels."""
    if not cfg.label_key:
        return None
    y = members[cfg.label_key]
    if y.ndim != 1 or y.dtype.kind not in "iu" or (y.size and (y.min() < 0 or y.max() > 2**31)):
        within = f" from {y.min()} to {y.max()}" if y.size and y.dtype.kind in "iuf" else ""
        raise UserError(
            f"--data.label-key: {cfg.label_key!r} is {y.dtype} {list(y.shape)}{within}; valid are [N] integers from 0 on, "
            f"one per sample; {cfg.path} holds {', '.join(members.files)}"
        )
    return torch.from_numpy(y.astype(np.int64))
