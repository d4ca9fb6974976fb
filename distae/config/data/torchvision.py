"""Settings of the sets that torchvision downloads and checks."""

from dataclasses import dataclass
from typing import ClassVar

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
