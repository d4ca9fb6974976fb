"""A user's own arrays: .npy, .npz and .safetensors files, one or many, and folders of `distae prepare`."""

import math
import zlib
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from distae.config.data import FILE_ERRORS, ArrayConfig
from distae.config.data.stored import Stored
from distae.data.datasets.base import register_dataset
from distae.data.datasets.prepared import load_prepared
from distae.data.mapped import Mapped, Part, dtype_of, mapped, tensor_of
from distae.data.paired import Paired
from distae.data.source import BLOCK_BYTES, WHOLE_BYTES, Source
from distae.data.splits import Split, hold_out
from distae.data.transform import Transform
from distae.errors import UserError


@register_dataset(ArrayConfig)
def load(cfg: ArrayConfig) -> tuple[Split, Split] | dict[str, Split]:
    cfg.shape()
    if manifest := cfg.manifest():
        return load_prepared(cfg, manifest)
    source: Source = _source(cfg, "path")
    if cfg.target:
        source = _paired(cfg, source)
    scale, notes = _scale(cfg, Split(source))
    transform = Transform(scale, cfg.stored_layout((len(source), *source.shape)))
    train = Split(source, transform, notes=notes)
    if not cfg.test:
        return hold_out(train, cfg.test_fraction)
    test = _source(cfg, "test")
    if (test.shape, test.dtype) != (source.shape, source.dtype):
        raise UserError(f"--data.test: {cfg.test} contains {test.row_type} per sample, --data.path {cfg.path} {source.row_type}")
    _range(cfg, "test", Split(test))
    return train, Split(test, transform)


def _source(cfg: ArrayConfig, setting: Literal["path", "test", "target"]) -> Mapped:
    """All files of a setting as one source. Raises UserError if their types or shapes differ."""
    files = cfg.files(setting)
    stored = [cfg.stored(path) for path in files]
    first = stored[0]
    for other in stored[1:]:
        if (other.shape[1:], other.dtype) != (first.shape[1:], first.dtype):
            raise UserError(
                f"--data.{setting}: {other} contains {other.dtype} {list(other.shape)}, and {first} contains {first.dtype} "
                f"{list(first.shape)}: all files must have the same type and shape per sample"
            )
    label = _labels(cfg, files, stored)
    return Mapped([_part(s) for s in stored], first.shape[1:], dtype_of(first), label)


def _paired(cfg: ArrayConfig, source: Source) -> Paired:
    """With the targets. Raises UserError if there are not as many, or they contain NaN or infinite values."""
    target = _source(cfg, "target")
    _range(cfg, "target", Split(target))
    if len(source) != len(target):
        raise UserError(f"--data.target has {len(target)} samples, --data.path {len(source)}: there must be one target for each")
    return Paired(source, target)


def _part(stored: Stored) -> Part:
    """Mapped if possible. Raises UserError if the file is damaged."""
    try:
        if stored.offset is not None:
            part = mapped(stored)
            _check_crc(stored)
            return part
        return Part(stored.path, tensor_of(_values(stored)), None)
    except FILE_ERRORS as error:
        raise UserError(f"--data.path: {stored.path} is damaged ({error})") from error


def _values(stored: Stored) -> np.ndarray:
    """All values of an array in memory, as numpy reads them."""
    if stored.path.suffix == ".safetensors":
        return np.fromfile(stored.path, stored.dtype, math.prod(stored.shape), offset=stored.offset or 0).reshape(stored.shape)
    if stored.path.suffix == ".npy":
        return np.load(stored.path, allow_pickle=False)  # type: ignore[no-any-return]
    with np.load(stored.path, allow_pickle=False) as members:
        return members[stored.name]  # type: ignore[no-any-return]


def _check_crc(stored: Stored) -> None:
    """Raises ValueError if a member of a .npz file is damaged; larger ones than `WHOLE_BYTES` are not checked."""
    if stored.crc is None or stored.offset is None:
        return
    left, crc = stored.offset - stored.begins + stored.shape[0] * stored.row_bytes, 0
    if left > WHOLE_BYTES:
        return
    with stored.path.open("rb") as file:
        file.seek(stored.begins)
        while left and (block := file.read(min(left, BLOCK_BYTES))):
            crc, left = zlib.crc32(block, crc), left - len(block)
    if crc != stored.crc:
        raise ValueError(f"Bad CRC-32 of {stored.name!r}")


def _scale(cfg: ArrayConfig, stored: Split) -> tuple[float, tuple[str, ...]]:
    """The divisor of stored values, and notes on guesses and on what the files hold. Raises UserError on NaN and infinity."""
    low, high, sampled = _range(cfg, "path", stored)
    seen = (_seen(cfg, stored, low, high, sampled),)
    if cfg.scale != "auto":
        return cfg.scale, seen
    if stored.source.dtype != torch.uint8:
        return 1.0, seen
    what = f"--data.scale auto: {cfg.path} contains uint8 values up to {high:.0f}"
    if high <= 1:
        return 1.0, (f"{what}, taken as they are (as --data.scale 1)", *seen)
    return 255.0, (f"{what}, divided by 255 (as --data.scale 255)", *seen)


def _seen(cfg: ArrayConfig, stored: Split, low: float, high: float, sampled: bool) -> str:
    """A note on what was found."""
    source = stored.source
    count = len(cfg.files()) + (len(cfg.files("target")) if cfg.target else 0)
    files = f"{count} files" if count > 1 else "1 file"
    storage = "memory-mapped" if source.origin else "read into memory"
    layout = {"no_channel": "[H, W]", "channels_last": "[H, W, C]"}.get(cfg.stored_layout((1, *source.shape)))
    layout = layout or ("[C, H, W]" if len(source.shape) == 3 else "[D]")
    looked = " in the sampled blocks" if sampled else ""
    values = f"{files} {storage}, from {low:.4g} to {high:.4g}{looked}"
    return f"--data array: {len(source)} samples of {source.row_type}, taken as {layout}, {values}"


def _range(cfg: ArrayConfig, setting: str, stored: Split) -> tuple[float, float, bool]:
    """The smallest and the largest value, and whether only sampled blocks were read. Raises UserError on NaN or infinite values."""
    if not len(stored):
        return 0.0, 0.0, False
    every = max(1, stored.nbytes // WHOLE_BYTES)
    low, high = math.inf, -math.inf
    for block in stored.source.blocks(None, every):
        least, most = map(float, block.aminmax())
        if not math.isfinite(least) or not math.isfinite(most):
            raise UserError(f"--data.{setting}: {getattr(cfg, setting)} contains NaN or infinite values{_where(stored)}")
        low, high = min(low, least), max(high, most)
    return low, high, every > 1


def _where(stored: Split) -> str:
    """A message that names the first sample with a value that is not finite."""
    start = 0
    for block in stored.blocks():
        bad = (~block.isfinite()).flatten(1).any(1)
        if bad.any():
            return f": {stored.source.name_of(start + int(bad.int().argmax()))} is the first"
        start += len(block)
    return ""


def _labels(cfg: ArrayConfig, files: list[Path], samples: list[Stored]) -> Tensor | None:
    """The labels `[N]` int64, if asked for. Raises UserError if they are not valid labels."""
    if not cfg.label_key:
        return None
    own = cfg.label_file()
    if own is None:
        return torch.cat([_checked(cfg, s, x.shape[0]) for s, x in zip(map(cfg.stored_labels, files), samples, strict=True)])
    return _checked(cfg, cfg.stored_labels(own), sum(x.shape[0] for x in samples))


def _checked(cfg: ArrayConfig, stored: Stored, n: int) -> Tensor:
    try:
        y = _values(stored)
    except FILE_ERRORS as error:
        raise UserError(f"--data.label-key: {stored.path} is damaged ({error})") from error
    if y.ndim != 1 or y.dtype.kind not in "iu" or (y.size and (y.min() < 0 or y.max() > 2**31)):
        within = f" from {y.min()} to {y.max()}" if y.size and y.dtype.kind in "iuf" else ""
        raise UserError(
            f"--data.label-key: {cfg.label_key!r} is {y.dtype} {list(y.shape)}{within}; valid are [N] integers from 0 on, "
            f"one per sample; {stored.path} contains {', '.join(_names(stored))}"
        )
    if len(y) != n:
        raise UserError(f"--data.label-key: {cfg.label_key!r} has {len(y)} labels for {n} samples")
    return torch.from_numpy(y.astype(np.int64))


def _names(stored: Stored) -> list[str]:
    from distae.config.data.stored import arrays_in

    return [name or "one array" for name in arrays_in(stored.path)]
