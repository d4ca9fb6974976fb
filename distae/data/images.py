"""Encoded images to arrays of bytes: one decoder for every source of images."""

import io
import warnings
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

MOST_PIXELS = 1 << 28
"""Pixels of an image; more is a decompression bomb."""


def decode(file: bytes | Path, mode: str = "RGB", size: int | None = None) -> np.ndarray:
    """An image as uint8 `[H, W]` (mode L) or `[H, W, C]`; with `size`, its shorter side resized to it and the centre cut out.

    Raises ValueError with the reason where it cannot be read.
    """
    try:
        with warnings.catch_warnings(), Image.open(io.BytesIO(file) if isinstance(file, bytes) else file) as image:
            warnings.simplefilter("ignore")
            if image.width * image.height > MOST_PIXELS:
                raise ValueError(f"it would have {image.width} x {image.height} pixels")
            made = _eight_bits(image).convert(mode)
            if size:
                made = ImageOps.fit(made, (size, size), Image.Resampling.BICUBIC)
            return np.asarray(made)
    except (OSError, SyntaxError, EOFError, MemoryError, UnidentifiedImageError, Image.DecompressionBombError) as error:
        raise ValueError(f"it is not an image that can be read ({error})") from error


def _eight_bits(image: Image.Image) -> Image.Image:
    """16 bits of grey as 8: Pillow's own conversion would clip them."""
    if not image.mode.startswith("I"):
        return image
    return Image.fromarray((np.asarray(image).astype(np.uint32) >> 8).clip(0, 255).astype(np.uint8))
