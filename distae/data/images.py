"""Image files as a source: decoded when they are read, in worker threads."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
import xxhash
from numpy.typing import NDArray
from torch import Tensor

from distae.config.data.image_folder import CHANNELS
from distae.data.decode import decode, decode_whole
from distae.data.image_index import ImageIndex, keep_index, printable, why
from distae.data.runs import Rows
from distae.data.source import BadRowsError, Source
from distae.errors import UserError


def square_for(shape: Sequence[int], file: Path | BinaryIO, name: str) -> NDArray[Any]:
    """The central square of an image as bytes `[C, side, side]`, for a model of samples of this shape.

    Raises UserError that names the image by `name` if the model does not take square images, or it cannot be read.
    """
    if len(shape) != 3 or shape[1] != shape[2]:
        raise UserError(f"{name}: the model takes samples of shape {[*shape]}, not square images")
    return _read(shape, name, lambda mode: decode(file, mode, shape[1]))


def image_for(shape: Sequence[int], file: Path | BinaryIO, name: str) -> NDArray[Any]:
    """The whole image as bytes `[C, H, W]`, for a model of samples of this shape but for their size. Raises as `square_for`."""
    return _read(shape, name, lambda mode: decode_whole(file, mode))


def _read(shape: Sequence[int], name: str, how: Callable[[str], NDArray[Any]]) -> NDArray[Any]:
    """What `how` returns of Pillow's mode of so many channels. Raises UserError."""
    modes = [mode for mode, channels in CHANNELS.items() if channels == shape[0] and mode != "F"]
    if len(shape) != 3 or not modes:
        raise UserError(f"{name}: the model takes samples of shape {[*shape]}, not images")
    try:
        return how(modes[0])
    except Exception as error:  # decoders raise anything on damaged files
        raise UserError(f"{name} cannot be read as an image ({why(error)})") from error


class ImageFiles(Source):
    """The files of an index, as central squares of `side` pixels. Every read gives the same values, in any thread or process."""

    decodes = True

    def __init__(
        self, index: ImageIndex, mode: str, side: int, label: Tensor | None = None, classes: Sequence[str] = (),
        part: float = 1.0, columns: Mapping[str, Any] | None = None,
    ) -> None:  # fmt: skip
        """`label` `[N]` int64 are numbers of `classes`; `part` of the shorter side is kept."""
        self.index, self.mode, self.side, self.part = index, mode, side, part
        self.shape, self.dtype = (CHANNELS[mode], side, side), torch.float32 if mode == "F" else torch.uint8
        self.label, self.classes, self.columns = label, tuple(classes), columns or {}
        self.left_out = {printable(index.name(row)): str(reason) for row, reason in index.problems.items()}
        if mode != "F":
            self.limits = 0.0, 255.0
        elif "F" not in index.modes:
            self.limits = 0.0, 1.0

    def __len__(self) -> int:
        return len(self.index)

    def read(self, rows: Tensor) -> Tensor:
        samples = torch.empty((len(rows), *self.shape), dtype=self.dtype)
        into, bad = samples.numpy(), dict[int, str]()
        for i, row in enumerate(rows.tolist()):
            if changed := self.index.why_changed(row):
                bad[row] = printable(changed)
                continue
            try:
                into[i] = decode(self.index.file(row), self.mode, self.side, self.part)
            except Exception as error:  # decoders raise anything on damaged files
                bad[row] = f"{self.name_of(row)} cannot be read ({why(error)})"
        if bad:
            raise BadRowsError(bad)
        return samples

    def name_of(self, row: int) -> str:
        return printable(str(self.index.path(row)))

    def names(self, rows: Tensor) -> Any:
        return np.array([printable(self.index.name(row)) for row in rows.tolist()])

    @property
    def version(self) -> str:
        return xxhash.xxh3_128_hexdigest(self.index.times.tobytes())

    def checksum(self, rows: Rows | None) -> str:
        """Of the names and sizes of all files, of the contents of some at the time of the scan, and of the row numbers."""
        index, rows = self.index, torch.arange(len(self)) if rows is None else rows
        digest = xxhash.xxh3_128(index.text.tobytes() + repr(index.contents).encode())
        for part in (index.ends, index.sizes, rows.numpy()):
            digest.update(part.tobytes())
        return digest.hexdigest()

    def remember(self, run_dir: Path) -> None:
        keep_index(self.index, run_dir)
