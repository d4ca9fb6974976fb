"""Settings of drawn shapes."""

from dataclasses import dataclass
from math import prod
from typing import ClassVar, Literal

from distae.config.data.base import DataConfig
from distae.config.fields import Count, Fraction
from distae.errors import UserError

FACTORS = ("shape", "scale", "orientation", "x", "y")
"""What each image is drawn from, in the order of its number in the full set: y changes first."""
KINDS = ("square", "ellipse", "heart")
PIXELS = 1 << 34
"""Of all images together, at most: each is a byte in memory."""


@dataclass(frozen=True, kw_only=True)
class ShapesConfig(DataConfig):
    """White squares, ellipses and hearts on black, drawn from known factors in the manner of dSprites (Matthey 2017), which has
    3 x 6 x 40 x 32 x 32 of them. Nothing is downloaded; the factors come with the samples."""

    name: ClassVar[str] = "shapes"

    size: Count = 32
    """Side of an image in pixels; dSprites has 64."""
    samples: Count | Literal["all"] = 20000
    """Number of samples, with factors drawn at random; all: every combination once."""
    scales: Count = 6
    """Different scales, from 0.5 to 1."""
    orientations: Count = 40
    """Different orientations, from 0 to 2 pi."""
    positions: Count = 32
    """Different places, in x and in y."""
    label: Literal["shape", "scale", "orientation", "x", "y"] = "shape"
    """Factor that is the label."""
    antialias: bool = True
    """Grey edges; otherwise each pixel is black or white, as in dSprites."""
    test_fraction: Fraction = 0.1
    """Share of the samples held out for the test split."""

    @property
    def sizes(self) -> tuple[int, ...]:
        """How many values each factor has."""
        return (len(KINDS), self.scales, self.orientations, self.positions, self.positions)

    @property
    def count(self) -> int:
        return prod(self.sizes) if self.samples == "all" else self.samples

    def shape(self) -> tuple[int, ...]:
        if self.size < 8:
            raise UserError(f"--data.size {self.size}: shapes need 8 pixels at least")
        if self.count * self.size**2 > PIXELS:
            raise UserError(
                f"--data.samples {self.samples}: {self.count} images of {self.size}x{self.size} take {self.count * self.size**2} "
                f"bytes; at most {PIXELS}: give fewer --data.samples, or fewer --data.orientations and --data.positions"
            )
        return (1, self.size, self.size)
