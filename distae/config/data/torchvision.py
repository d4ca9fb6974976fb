"""Settings of the sets that torchvision downloads and checks."""

from dataclasses import dataclass
from typing import ClassVar, Literal

from distae.config.data.base import DataConfig


@dataclass(frozen=True, kw_only=True)
class TorchvisionConfig(DataConfig):
    """A data set that torchvision downloads and checks."""

    root: str = "data"
    """Folder the files are in, or are downloaded to."""


@dataclass(frozen=True, kw_only=True)
class MNISTConfig(TorchvisionConfig):
    """MNIST, 60,000 + 10,000 handwritten digits, 28x28."""

    name: ClassVar[str] = "mnist"

    def shape(self) -> tuple[int, ...]:
        return (1, 28, 28)


@dataclass(frozen=True, kw_only=True)
class FashionMNISTConfig(TorchvisionConfig):
    """Fashion-MNIST, 60,000 + 10,000 articles of clothing, 28x28."""

    name: ClassVar[str] = "fashion_mnist"

    def shape(self) -> tuple[int, ...]:
        return (1, 28, 28)


@dataclass(frozen=True, kw_only=True)
class CIFAR10Config(TorchvisionConfig):
    """CIFAR-10, 50,000 + 10,000 colour images, 32x32."""

    name: ClassVar[str] = "cifar10"

    def shape(self) -> tuple[int, ...]:
        return (3, 32, 32)


@dataclass(frozen=True, kw_only=True)
class KMNISTConfig(TorchvisionConfig):
    """Kuzushiji-MNIST, 60,000 + 10,000 handwritten Japanese characters of 10 classes, 28x28 (Clanuwat 2018)."""

    name: ClassVar[str] = "kmnist"

    def shape(self) -> tuple[int, ...]:
        return (1, 28, 28)


@dataclass(frozen=True, kw_only=True)
class EMNISTConfig(TorchvisionConfig):
    """EMNIST, handwritten letters and digits, 28x28, turned upright (Cohen 2017)."""

    name: ClassVar[str] = "emnist"

    split: Literal["byclass", "bymerge", "balanced", "letters", "digits", "mnist"] = "balanced"
    """Which of its sets: balanced has 112,800 + 18,800 images of 47 classes; the classes of letters are counted from 0."""

    def shape(self) -> tuple[int, ...]:
        return (1, 28, 28)


@dataclass(frozen=True, kw_only=True)
class CIFAR100Config(TorchvisionConfig):
    """CIFAR-100, 50,000 + 10,000 colour images of 100 classes, 32x32."""

    name: ClassVar[str] = "cifar100"

    def shape(self) -> tuple[int, ...]:
        return (3, 32, 32)


@dataclass(frozen=True, kw_only=True)
class SVHNConfig(TorchvisionConfig):
    """Street View House Numbers, 73,257 + 26,032 colour images of digits, 32x32 (Netzer 2011)."""

    name: ClassVar[str] = "svhn"

    def shape(self) -> tuple[int, ...]:
        return (3, 32, 32)


@dataclass(frozen=True, kw_only=True)
class STL10Config(TorchvisionConfig):
    """STL-10, 5,000 + 8,000 colour images of 10 classes, 96x96, and 100,000 without a class (Coates 2011)."""

    name: ClassVar[str] = "stl10"

    unlabeled: bool = False
    """Also train on images without a class; there are then no labels."""

    def shape(self) -> tuple[int, ...]:
        return (3, 96, 96)
