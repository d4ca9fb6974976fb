"""The data sets by name: arrays in memory, uint8 where the source has it."""

import contextlib
import io
import socket
import urllib.error
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from filelock import FileLock
from torch import Tensor

from distae.config.data import (
    ArrayConfig,
    CIFAR10Config,
    DataConfig,
    DigitsConfig,
    FashionMNISTConfig,
    MNISTConfig,
    TorchvisionConfig,
)
from distae.errors import UserError
from distae.noise import split_order


@dataclass(frozen=True)
class Arrays:
    """Samples as stored; `x * scale` is what the model sees."""

    x: Tensor
    """`[N, *shape]` uint8 or floating point."""
    label: Tensor | None
    """`[N]` int64."""
    scale: float = 1.0

    def take(self, rows: Tensor | slice) -> "Arrays":
        return Arrays(self.x[rows], None if self.label is None else self.label[rows], self.scale)

    def __len__(self) -> int:
        return len(self.x)


SPLIT_SEED = 0
"""Hold-outs do not change with --seed, so runs with other seeds are compared on the same samples."""


def load(cfg: DataConfig) -> dict[str, Arrays]:
    """Splits `train`, `val` and `test`, on the CPU. Raises UserError where the files are missing or hold something else."""
    train, test = _LOADERS[type(cfg)](cfg)
    train, val = _hold_out(train, cfg.val_fraction)
    splits = {"train": train, "val": val, "test": test}
    return {k: v.take(slice(cfg.limit)) for k, v in splits.items()}


def _hold_out(arrays: Arrays, fraction: float) -> tuple[Arrays, Arrays]:
    held = round(len(arrays) * fraction)
    order = split_order(len(arrays), SPLIT_SEED)
    return arrays.take(order[held:].sort().values), arrays.take(order[:held].sort().values)


def _digits(cfg: DigitsConfig) -> tuple[Arrays, Arrays]:
    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)
    x = torch.from_numpy(images).to(torch.uint8).view(-1, *cfg.shape())
    return _hold_out(Arrays(x, torch.from_numpy(labels).long(), 1 / 16), 0.2)


def _torchvision(cfg: TorchvisionConfig) -> tuple[Arrays, Arrays]:
    import torchvision.datasets as tv

    classes = {MNISTConfig: tv.MNIST, FashionMNISTConfig: tv.FashionMNIST, CIFAR10Config: tv.CIFAR10}
    cls = classes[type(cfg)]
    sets = [_fetch(cls, cfg.root, train) for train in (True, False)]
    return _images(sets[0], cfg.shape()), _images(sets[1], cfg.shape())


def _fetch(cls: Callable[..., object], root: str, train: bool) -> object:
    """The files as they are; else one process at a time downloads and checks them, and the others find them."""
    with contextlib.suppress(RuntimeError):
        return cls(root, train=train, download=False)
    before = socket.getdefaulttimeout()
    try:
        Path(root).mkdir(parents=True, exist_ok=True)
        socket.setdefaulttimeout(20)
        with FileLock(Path(root) / ".download.lock"), contextlib.redirect_stdout(io.StringIO()):
            return cls(root, train=train, download=True)
    except (OSError, RuntimeError, urllib.error.URLError) as error:
        name = cls.__name__
        folder = Path(root) / (f"{name}/raw" if "MNIST" in name else "")
        files = [r[0] for r in cls.resources] if "MNIST" in name else [cls.filename]  # type: ignore[attr-defined]
        lines = [line for line in str(error).splitlines() if len(line) > 2 and not line.startswith("Tried ")]
        why = lines[-1] if lines else type(error).__name__
        raise UserError(
            f"--data.root {root}: {name} is not there and could not be downloaded ({why});\n"
            f"put {', '.join(files)} into {folder}, or give the folder that has them"
        ) from error
    finally:
        socket.setdefaulttimeout(before)


def _images(dataset: object, shape: tuple[int, ...]) -> Arrays:
    x = torch.as_tensor(dataset.data)  # type: ignore[attr-defined]
    x = x.permute(0, 3, 1, 2).contiguous() if x.ndim == 4 else x
    return Arrays(x.view(-1, *shape), torch.as_tensor(dataset.targets).long(), 1 / 255)  # type: ignore[attr-defined]


def _array(cfg: ArrayConfig) -> tuple[Arrays, Arrays]:
    path = Path(cfg.path)
    values = np.load(path, allow_pickle=False)
    array = values if path.suffix == ".npy" else values[cfg.npz_key()]
    x = torch.from_numpy(np.ascontiguousarray(array, array.dtype.newbyteorder("="))).view(-1, *cfg.shape())
    if x.dtype == torch.uint8:
        return _hold_out(Arrays(x, None, 1 / 255), cfg.test_fraction)
    if not x.isfinite().all():
        raise UserError(f"--data.path: {cfg.path} holds NaN or infinite values")
    return _hold_out(Arrays(x if x.dtype == torch.float64 else x.float(), None), cfg.test_fraction)


_LOADERS: dict[type[DataConfig], Callable[..., tuple[Arrays, Arrays]]] = {
    DigitsConfig: _digits,
    MNISTConfig: _torchvision,
    FashionMNISTConfig: _torchvision,
    CIFAR10Config: _torchvision,
    ArrayConfig: _array,
}
