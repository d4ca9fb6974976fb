"""Settings of a user's own arrays, and what is known without reading them."""

import io
import os
import tokenize
import zipfile
import zlib
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, ClassVar, Literal

from distae.config.data.base import DataConfig
from distae.config.fields import Fraction, Positive
from distae.errors import UserError

FILE_ERRORS = (
    ValueError, OSError, EOFError, LookupError, RuntimeError, MemoryError, NotImplementedError, SyntaxError,
    tokenize.TokenError, zipfile.BadZipFile, zlib.error,
)  # fmt: skip
"""What numpy and zipfile raise where a file is damaged, forged or encrypted."""
LONGEST_HEADER = 64 << 10
"""Largest header of an array in bytes; numpy's own have about 100."""
MOST_COMPRESSED = 200
"""Largest ratio of unpacked to packed size of an .npz file: deflate reaches 1,000, but only in a zip bomb."""


StoredLayout = Literal["as_stored", "no_channel", "channels_last"]
"""Layout of samples in a file: as the model takes them (`[C, H, W]` or `[D]`), as `[H, W]`, or as `[H, W, C]`."""
IMAGE_CHANNELS = (1, 3, 4)
"""Channels that images usually have: grey, RGB, RGBA."""
CONVERSIONS = {
    ".csv": "numpy.save('x.npy', numpy.loadtxt('{path}', delimiter=',', skiprows=1, dtype='float32'))",
    ".tsv": "numpy.save('x.npy', numpy.loadtxt('{path}', skiprows=1, dtype='float32'))",
    ".parquet": "numpy.save('x.npy', pandas.read_parquet('{path}').to_numpy('float32'))",
    ".pt": "numpy.save('x.npy', torch.load('{path}', weights_only=True).numpy())",
}
"""How to convert a file of another kind to an array."""


@dataclass(frozen=True, kw_only=True)
class ArrayConfig(DataConfig):
    """Your own array in a .npy or .npz file, of uint8 or floating point: `[N, D]`, `[N, H, W]`, `[N, C, H, W]` or
    `[N, H, W, C]`. A .npy file is memory-mapped, not copied: do not change it while a run uses it."""

    name: ClassVar[str] = "array"

    path: str = ""
    """The .npy or .npz file."""
    key: str | None = None
    """Name of the array inside a .npz file; optional if it holds one array besides the labels."""
    label_key: str | None = None
    """Name of the labels inside a .npz file: `[N]` integers from 0 on. Needed by conditional models."""
    scale: Literal["auto"] | Positive = "auto"
    """The model's values are the stored ones divided by this: 255 for bytes, 1 for values as they are. auto: 255 for uint8 with
    values above 1, else 1; the run says which."""
    layout: Literal["auto", "channels_first", "channels_last"] = "auto"
    """Meaning of an array of 4 dimensions: channels_first is `[N, C, H, W]`, channels_last is `[N, H, W, C]`. auto: the former,
    and an error where the shape looks like the latter."""
    test_fraction: Fraction = 0.1
    """Share of the samples held out for the test split."""

    def shape(self) -> tuple[int, ...]:
        shape, dtype = self.header()
        if dtype not in ("uint8", "float16", "float32", "float64"):
            raise UserError(f"--data.path: {self.path} holds {dtype}; valid are uint8, float16, float32 and float64")
        if len(shape) not in (2, 3, 4) or min(shape) < 1:
            raise UserError(
                f"--data.path: {self.path} has shape {list(shape)}; "
                "valid are [N, D], [N, H, W] and [N, C, H, W], or [N, H, W, C] with --data.layout channels_last"
            )
        match self.stored_layout(shape):
            case "no_channel":
                return (1, *shape[1:])
            case "channels_last":
                return (shape[3], shape[1], shape[2])
            case _:
                return shape[1:]

    def stored_layout(self, shape: tuple[int, ...]) -> StoredLayout:
        """Layout of the samples of a stored array of `shape`. Raises UserError if that needs `--data.layout`."""
        if len(shape) != 4:
            if self.layout == "channels_last":
                raise UserError(f"--data.layout channels_last needs an array [N, H, W, C]; {self.path} has shape {list(shape)}")
            return "no_channel" if len(shape) == 3 else "as_stored"
        if self.layout == "auto" and shape[3] in IMAGE_CHANNELS and shape[1] not in IMAGE_CHANNELS:
            raise UserError(
                f"--data.layout: {self.path} has shape {list(shape)}: give channels_last for {shape[1]}x{shape[2]} images of "
                f"{shape[3]} channels ([N, H, W, C]),\nor channels_first for {shape[2]}x{shape[3]} images of {shape[1]} channels "
                "([N, C, H, W])"
            )
        return "channels_last" if self.layout == "channels_last" else "as_stored"

    def header(self) -> tuple[tuple[int, ...], str]:
        """Shape and dtype from the file's header, without reading the values."""
        path = self.file()
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
                return _npy_header(member, size, member=True)
        except FILE_ERRORS as error:
            raise UserError(f"--data.path: {path} is not a .npy or .npz file of numbers ({error})") from error

    def file(self) -> Path:
        """The file, `~` expanded. Raises UserError if there is none, or it has another type."""
        if not self.path:
            raise UserError("--data.path: --data array needs the .npy or .npz file; make one of an array x: numpy.save('x.npy', x)")
        try:
            path = Path(self.path).expanduser()
        except RuntimeError as error:
            raise UserError(f"--data.path: {self.path} names no user's home folder") from error
        if path.is_dir():
            raise UserError(
                f"--data.path: {path} is a folder, a .npy or .npz file is needed; of images of one size, for example:\n"
                "numpy.save('x.npy', [numpy.array(PIL.Image.open(f)) for f in files]), and --data.layout channels_last for colour"
            )
        if not path.is_file():
            raise UserError(f"--data.path: no file {path}")
        if advice := CONVERSIONS.get(path.suffix.lower()):
            raise UserError(f"--data.path: {path} is not a .npy or .npz file; make one:\n{advice.format(path=path)}")
        if self.label_key and path.suffix == ".npy":
            raise UserError(
                f"--data.label-key: a .npy file has no labels; make a .npz: numpy.savez('x.npz', x=x, {self.label_key}=y)"
            )
        return path

    def npz_key(self) -> str:
        """The name of the one array besides the labels, or of the one asked for."""
        names = self._npz_names()
        if self.label_key and self.label_key not in names:
            raise UserError(f"--data.label-key: {self.label_key!r} is not in {self.path}; it holds {', '.join(names)}")
        others = [n for n in names if n != self.label_key]
        key = self.key or (others[0] if len(others) == 1 else None)
        if key not in names:
            raise UserError(f"--data.key: {self.key!r} is not in {self.path}; it holds {', '.join(names)}")
        return key

    def _npz_names(self) -> list[str]:
        with zipfile.ZipFile(self.file()) as archive:
            return [n.removesuffix(".npy") for n in archive.namelist()]


def _npy_header(file: Any, size: int, member: bool = False) -> tuple[tuple[int, ...], str]:
    """Raises ValueError if the array that it announces is larger than the `size` bytes of the file.

    `member` of an archive: also where it is larger than the memory; other files are mapped.
    """
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
    if needed > memory and member:
        raise ValueError(f"it takes {needed} bytes; this machine has {memory}")
    return shape, dtype.name
