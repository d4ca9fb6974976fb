"""Settings of the data sets, and what can be known of them without reading them."""

import io
import os
import zipfile
import zlib
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, ClassVar, Literal

from distae.config.fields import Count, Fraction, Variant
from distae.errors import UserError

FILE_ERRORS = (ValueError, OSError, EOFError, RuntimeError, MemoryError, NotImplementedError, zipfile.BadZipFile, zlib.error)
"""What numpy and zipfile raise where a file is damaged, forged or encrypted."""
LONGEST_HEADER = 64 << 10
"""Bytes of an array's header; numpy's own are some 100."""
MOST_COMPRESSED = 200
"""Times that an .npz file may unpack to: measured data stay below 50, a bomb reaches 1,000."""


@dataclass(frozen=True, kw_only=True)
class DataConfig(Variant):
    """What all data sets share. Validation is a fixed hold-out: the same samples at every seed and world size."""

    val_fraction: Fraction = 0.1
    """Share of the training samples held out for validation."""
    limit: Count | None = None
    """Use only the first so many samples of each split (for debugging)."""
    binarize: Literal["none", "threshold", "stochastic"] = "none"
    """none: values as they are, in [0, 1]; threshold: 1 above 0.5; stochastic: drawn anew at every use with the value as
    probability (Burda 2016), in evaluation with fixed noise."""

    def shape(self) -> tuple[int, ...]:
        """Shape of one sample, `[C, H, W]` or `[D]`. Raises UserError where a file says otherwise."""
        raise NotImplementedError


@dataclass(frozen=True, kw_only=True)
class DigitsConfig(DataConfig):
    """scikit-learn's 1,797 handwritten digits, 8x8, 17 grey levels (UCI, Alpaydin & Kaynak 1998). No download.
    A fixed fifth is the test split."""

    name: ClassVar[str] = "digits"

    def shape(self) -> tuple[int, ...]:
        return (1, 8, 8)


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
class ArrayConfig(DataConfig):
    """An array of yours in a .npy or .npz file: `[N, D]`, `[N, H, W]` or `[N, C, H, W]`; uint8 is divided by 255, floats are taken
    as they are."""

    name: ClassVar[str] = "array"

    path: str = ""
    """The .npy or .npz file."""
    key: str | None = None
    """Name of the array inside a .npz file; may be left out where it holds one array."""
    test_fraction: Fraction = 0.1
    """Share of the samples held out for the test split."""

    def shape(self) -> tuple[int, ...]:
        shape, dtype = self.header()
        if dtype not in ("uint8", "float16", "float32", "float64"):
            raise UserError(f"--data.path: {self.path} holds {dtype}; valid are uint8, float16, float32 and float64")
        if len(shape) not in (2, 3, 4) or min(shape) < 1:
            raise UserError(f"--data.path: {self.path} has shape {list(shape)}; valid are [N, D], [N, H, W] and [N, C, H, W]")
        return (1, *shape[1:]) if len(shape) == 3 else shape[1:]

    def header(self) -> tuple[tuple[int, ...], str]:
        """Shape and dtype as the file's header says, without reading the values."""
        path = Path(self.path)
        if not self.path:
            raise UserError("--data.path: --data array needs the .npy or .npz file")
        if not path.is_file():
            raise UserError(f"--data.path: no file {path}")
        try:
            if path.suffix == ".npy":
                with path.open("rb") as file:
                    return _npy_header(file, path.stat().st_size)
            with zipfile.ZipFile(path) as archive, archive.open(f"{self.npz_key()}.npy") as member:
                size = archive.getinfo(member.name).file_size
                if size > MOST_COMPRESSED * path.stat().st_size:
                    raise ValueError(
                        f"{member.name} takes {size} bytes, {size // path.stat().st_size} times the file: save it uncompressed"
                    )
                return _npy_header(member, size)
        except FILE_ERRORS as error:
            raise UserError(f"--data.path: {path} is no .npy or .npz file of numbers ({error})") from error

    def npz_key(self) -> str:
        """The name of the one array, or of the one asked for."""
        with zipfile.ZipFile(self.path) as archive:
            names = [n.removesuffix(".npy") for n in archive.namelist()]
        key = self.key or (names[0] if len(names) == 1 else None)
        if key not in names:
            raise UserError(f"--data.key: {self.key!r} is not in {self.path}; it holds {', '.join(names)}")
        return key


def _npy_header(file: Any, size: int) -> tuple[tuple[int, ...], str]:
    """Raises ValueError where the array that it announces is larger than the `size` bytes of the file, or than the memory."""
    from numpy.lib import format as npy

    head = io.BytesIO(file.read(LONGEST_HEADER))
    version = npy.read_magic(head)
    read = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
    shape, _, dtype = read(head)
    needed, memory = head.tell() + prod(shape) * dtype.itemsize, os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    if any(n < 0 for n in shape):
        raise ValueError(f"its header announces shape {list(shape)}")
    if not dtype.hasobject and needed > size:
        raise ValueError(f"it is truncated: shape {list(shape)} of {dtype.name} takes {needed} bytes, and it has {size}")
    if needed > memory:
        raise ValueError(f"it takes {needed} bytes; this machine has {memory}")
    return shape, dtype.name
