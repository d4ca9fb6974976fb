"""One image file to one square sample, with Pillow. A function of the file and the settings alone: no randomness."""

import warnings
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

MOST_PIXELS = 2 * (Image.MAX_IMAGE_PIXELS or 89_478_485)
"""Maximum number of pixels of an image: Pillow's own limit for a decompression bomb, 179 million."""
SIXTEEN_BITS = ("I;16", "I;16L", "I;16B", "I;16N", "I")
"""Pillow's modes of 16 bits; its versions before 11 read a 16 bit PNG as "I"."""

warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)  # MOST_PIXELS decides
Image.preinit()  # the common formats first, or a JPEG is tried as many others before, which takes a tenth of its time
Image.init()  # all formats at once: worker threads would race to do it


def header(path: Path) -> tuple[str, int]:
    """Pillow's mode and the shorter side in pixels, without decoding. Raises what Pillow raises, and ValueError."""
    with Image.open(path) as image:
        _check(image)
        return image.mode, min(image.size)


def decode(file: Path | str | BinaryIO, mode: str, side: int, part: float = 1.0) -> NDArray[Any]:
    """The central square of an image, resized to `side`: `[C, side, side]` uint8, or float32 for mode F.

    The square's side is the image's shorter side times `part`.

    A JPEG is decoded at a half, a quarter or an eighth of its size if that is at least twice the requested size (Pillow's draft
    mode). Resized bilinearly with antialiasing, as by torchvision's Resize; rotated by the EXIF tag; the first frame of an
    animation; transparent pixels become white. Raises what Pillow raises, and ValueError.
    """
    with Image.open(file) as opened:
        _check(opened)
        opened.draft("L" if mode == "L" else None, (2 * round(side / part),) * 2)
        image = _in_mode(_upright(opened), mode)
        square_side, (width, height) = min(image.size) * part, image.size
        left, top = (width - square_side) / 2, (height - square_side) / 2
        box = (left, top, left + square_side, top + square_side)
        square = np.asarray(image.resize((side, side), Image.Resampling.BILINEAR, box, reducing_gap=2.0))
    return _channels_first(square)


def decode_whole(file: Path | str | BinaryIO, mode: str) -> NDArray[Any]:
    """An image at its own size, `[C, H, W]`, by the rules of `decode`. Raises what Pillow raises, and ValueError."""
    with Image.open(file) as opened:
        _check(opened)
        pixels = np.asarray(_in_mode(_upright(opened), mode))
    return _channels_first(pixels)


def _channels_first(pixels: NDArray[Any]) -> NDArray[Any]:
    return pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1)


def _check(image: Image.Image) -> None:
    if image.width * image.height > MOST_PIXELS:
        raise ValueError(f"{image.width}x{image.height} pixels: a decompression bomb; at most {MOST_PIXELS} pixels")


def _upright(image: Image.Image) -> Image.Image:
    return ImageOps.exif_transpose(image) if "exif" in image.info else image


def _in_mode(image: Image.Image, mode: str) -> Image.Image:
    """Converted by the rules of `decode`; 16 bits to 8 by division by 257, which Pillow's own conversion clips."""
    if mode == "F":
        return _as_float(image)
    if image.mode == "F":
        raise ValueError("floating point pixels, whose range is unknown: --data.mode F takes them as they are")
    if image.mode in SIXTEEN_BITS:
        image = Image.fromarray(((_sixteen(image) + 128) // 257).astype(np.uint8))
    if image.has_transparency_data and mode != "RGBA":
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image if image.mode == mode else image.convert(mode)


def _as_float(image: Image.Image) -> Image.Image:
    """Grey in [0, 1], with all bits of 16; floating point pixels as they are."""
    if image.mode == "F":
        return image
    if image.mode in SIXTEEN_BITS:
        return Image.fromarray(_sixteen(image).astype(np.float32) / np.float32(65535))
    return Image.fromarray(np.asarray(_in_mode(image, "L"), dtype=np.float32) / np.float32(255))


def _sixteen(image: Image.Image) -> NDArray[np.int64]:
    values = np.asarray(image).astype(np.int64)
    if values.size and (values.min() < 0 or values.max() > 65535):
        raise ValueError(f"pixels from {values.min()} to {values.max()}; at most 16 bits are read")
    return values
