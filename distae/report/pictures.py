"""Pictures as parts of a page: PNG as it is where it is small, else WebP, halved until it fits."""

import io
import struct
import warnings
from base64 import b64encode
from typing import Any

from distae.report.html import Html, tag

PNG = b"\x89PNG\r\n\x1a\n"
MOST_PIXELS = 1 << 26


def picture(png: bytes, text: str, limit: int) -> Html:
    """An `<img>` with at most `limit` bytes of data, described by `text`; a sentence instead if it is not a picture."""
    try:
        kind, data, (width, height) = _fitting(png, limit)
    except (OSError, ValueError, SyntaxError, struct.error) as error:
        return tag("p", f"This picture is left out ({error}): {text}", class_="note")
    source = f"data:image/{kind};base64,{b64encode(data).decode()}"
    return tag("img", src=source, alt=text, width=width, height=height)


def _fitting(png: bytes, limit: int) -> tuple[str, bytes, tuple[int, int]]:
    """Format, data and size. Raises ValueError or OSError if it is not a PNG, is too large, or is damaged."""
    if png[:8] != PNG:
        raise ValueError("it is not a PNG")
    width, height = struct.unpack(">II", png[16:24])
    if not 0 < width * height <= MOST_PIXELS:
        raise ValueError(f"it has {width} x {height} pixels")
    limit = limit * 3 // 4  # base64
    if len(png) <= limit:
        return "png", png, (width, height)
    from PIL import Image

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        image: Any = Image.open(io.BytesIO(png), formats=["PNG"]).convert("RGB")
    while len(data := _webp(image)) > limit and min(image.size) > 1:
        image = image.resize((max(1, image.width // 2), max(1, image.height // 2)), Image.Resampling.BOX)
    if len(data) > limit:
        raise ValueError("there is no room for it in a page of 5 MB")
    return "webp", data, image.size


def _webp(image: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, "webp", quality=80)
    return file.getvalue()


def figure(png: bytes, caption: str, text: str, limit: int) -> Html:
    """A picture with a caption."""
    return tag("figure", tag("div", picture(png, text, limit), class_="wide"), tag("figcaption", caption))
