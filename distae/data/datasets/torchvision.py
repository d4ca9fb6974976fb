"""Sets that torchvision downloads and checks."""

import contextlib
import io
import socket
import urllib.error
from collections.abc import Callable
from pathlib import Path

import torch
from filelock import FileLock

from distae.config.data import CIFAR10Config, FashionMNISTConfig, MNISTConfig, TorchvisionConfig
from distae.data.datasets.base import register_dataset
from distae.data.splits import Split
from distae.data.transform import Transform
from distae.errors import UserError


@register_dataset(MNISTConfig, FashionMNISTConfig, CIFAR10Config)
def load(cfg: TorchvisionConfig) -> tuple[Split, Split]:
    import torchvision.datasets as tv

    classes = {MNISTConfig: tv.MNIST, FashionMNISTConfig: tv.FashionMNIST, CIFAR10Config: tv.CIFAR10}
    cls = classes[type(cfg)]
    sets = [_fetch(cls, cfg.root, train) for train in (True, False)]
    return _images(sets[0]), _images(sets[1])


def _fetch(cls: Callable[..., object], root: str, train: bool) -> object:
    """Use existing files; else one process at a time downloads and checks them, and the others then find them."""
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


def _images(dataset: object) -> Split:
    x = torch.as_tensor(dataset.data)  # type: ignore[attr-defined]
    x = x.permute(0, 3, 1, 2).contiguous() if x.ndim == 4 else x  # once for all: batches are made twice as fast
    transform = Transform(255.0, "as_stored" if x.ndim == 4 else "no_channel")
    return Split.of(x, torch.as_tensor(dataset.targets).long(), transform)  # type: ignore[attr-defined]
