"""Sets that torchvision downloads and checks."""

import contextlib
import io
import socket
import urllib.error
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock

from distae.config.data import (
    CIFAR10Config,
    CIFAR100Config,
    EMNISTConfig,
    FashionMNISTConfig,
    KMNISTConfig,
    MNISTConfig,
    STL10Config,
    SVHNConfig,
    TorchvisionConfig,
)  # fmt: skip
from distae.data.datasets.base import register_dataset
from distae.data.splits import Split
from distae.data.transform import Transform
from distae.errors import UserError

CLASSES: dict[type[TorchvisionConfig], str] = {
    MNISTConfig: "MNIST", FashionMNISTConfig: "FashionMNIST", KMNISTConfig: "KMNIST", EMNISTConfig: "EMNIST",
    CIFAR10Config: "CIFAR10", CIFAR100Config: "CIFAR100", SVHNConfig: "SVHN", STL10Config: "STL10",
}  # fmt: skip
"""torchvision's class for each settings class."""


@register_dataset(*CLASSES)
def load(cfg: TorchvisionConfig) -> tuple[Split, Split]:
    import torchvision.datasets as tv

    cls = getattr(tv, CLASSES[type(cfg)])
    sets = [fetch(cfg.root, cls, **_arguments(cfg, train)) for train in (True, False)]
    return _images(cfg, sets[0]), _images(cfg, sets[1])


def _arguments(cfg: TorchvisionConfig, train: bool) -> dict[str, Any]:
    """The arguments of torchvision's class that choose the split."""
    match cfg:
        case EMNISTConfig():
            return {"split": cfg.split, "train": train}
        case STL10Config(unlabeled=True) if train:
            return {"split": "train+unlabeled"}
        case STL10Config() | SVHNConfig():
            return {"split": "train" if train else "test"}
        case _:
            return {"train": train}


def fetch(root: str, cls: Callable[..., Any], **arguments: Any) -> Any:
    """Load existing files; if they are missing, one process downloads and checks them, while the others wait.

    Raises UserError that names the files if they are missing and cannot be downloaded.
    """
    with contextlib.suppress(RuntimeError):
        return cls(root, **arguments, download=False)
    before = socket.getdefaulttimeout()
    try:
        Path(root).mkdir(parents=True, exist_ok=True)
        socket.setdefaulttimeout(20)
        with FileLock(Path(root) / ".download.lock"), contextlib.redirect_stdout(io.StringIO()):
            return cls(root, **arguments, download=True)
    except (OSError, RuntimeError, urllib.error.URLError) as error:
        lines = [line for line in str(error).splitlines() if len(line) > 2 and not line.startswith("Tried ")]
        why = lines[-1] if lines else type(error).__name__
        folder, files = _files(cls)
        raise UserError(
            f"--data.root {root}: {cls.__name__} is not there and could not be downloaded ({why});\n"
            f"put {', '.join(files)} into {Path(root) / folder}, or give the folder that has them"
        ) from error
    finally:
        socket.setdefaulttimeout(before)


def _files(cls: Any) -> tuple[str, list[str]]:
    """The folder below the root, and the files that torchvision checks and unpacks there."""
    match cls.__name__:
        case "EMNIST":
            return "EMNIST/raw", [cls.url.rpartition("/")[2]]
        case "SVHN":
            return "", [cls.split_list[part][1] for part in ("train", "test")]
        case "CelebA":
            return cls.base_folder, [name for _, _, name in cls.file_list]
        case name if "MNIST" in name:
            return f"{name}/raw", [r[0] for r in cls.resources]
        case _:
            return "", [cls.filename]


def _images(cfg: TorchvisionConfig, dataset: Any) -> Split:
    x = torch.as_tensor(dataset.data)
    label = torch.as_tensor(dataset.targets if hasattr(dataset, "targets") else dataset.labels).long()
    if isinstance(cfg, EMNISTConfig):
        x = x.transpose(1, 2).contiguous()  # its files hold transposed images
        label = label - 1 if cfg.split == "letters" else label
    if x.ndim == 4 and x.shape[-1] == 3:
        x = x.permute(0, 3, 1, 2)
    transform = Transform(255.0, "as_stored" if x.ndim == 4 else "no_channel")
    labeled = not (isinstance(cfg, STL10Config) and cfg.unlabeled)
    return Split.of(x.contiguous(), label if labeled else None, transform)  # contiguous: batches are made twice as fast
