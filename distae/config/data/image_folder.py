"""Settings of a folder of images."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

from distae.config.data.base import DataConfig
from distae.config.data.reading import the_folder
from distae.config.fields import Count, Fraction
from distae.errors import UserError

CHANNELS = {"RGB": 3, "RGBA": 4, "L": 1, "F": 1}
"""Channels of a sample by `mode`."""


@dataclass(frozen=True, kw_only=True)
class ImageSettings(DataConfig):
    """What sources of image files share."""

    size: Count = 64
    """Side of a sample in pixels: the shorter side is resized to it, and a square cut out."""
    crop: Literal["center", "random"] = "center"
    """random: training crops the square at a random position of one 8/7 as large; evaluation crops its centre."""
    flip: bool = False
    """Mirror a random half of the training samples left to right."""

    @property
    def stored_side(self) -> int:
        """Side of the decoded square, of which a random crop takes a part (256 to 224, as ImageNet's)."""
        return round(self.size * 8 / 7) if self.crop == "random" else self.size


@dataclass(frozen=True, kw_only=True)
class ImageFolderConfig(ImageSettings):
    """A folder of images, nested, in any format that Pillow reads. Each top folder is a class; folders named `train`, `val` and
    `test` are the splits."""

    name: ClassVar[str] = "image_folder"

    path: str = ""
    """The folder."""
    mode: Literal["RGB", "RGBA", "L", "F"] = "RGB"
    """What all images are converted to: colour, colour and transparency, grey, or grey as floating point, which keeps 16 bits."""
    labels: Literal["folders", "none"] = "folders"
    """folders: the class of an image is the top folder that it is in, none where images lie in no folder."""
    test_fraction: Fraction = 0.1
    """Share of the images held out for the test split, where no folder `test` or list says which."""
    split_list: str | None = None
    """CSV file of path,split with paths from the folder on, and splits train, val and test. Images not in it are left out."""
    split_by: str | None = None
    """`group:REGEX`: images of one group are in one split. `time:REGEX`: the last are the test split, those before them for
    validation. The group, or the time, is what the first bracket of REGEX finds in an image's path."""

    def shape(self) -> tuple[int, ...]:
        self.folder()
        self._check_split()
        return (CHANNELS[self.mode], self.size, self.size)

    def folder(self) -> Path:
        """The folder, `~` expanded. Raises UserError if there is none."""
        return the_folder(self.path)

    def splitting(self) -> tuple[str, re.Pattern[str]] | None:
        """`group` or `time`, and the pattern. Raises UserError."""
        if self.split_by is None:
            return None
        kind, colon, pattern = self.split_by.partition(":")
        if kind not in ("group", "time") or not colon:
            raise UserError(f"--data.split-by: {self.split_by!r} is not valid; valid: group:REGEX and time:REGEX")
        try:
            return kind, re.compile(pattern)
        except re.error as error:
            raise UserError(f"--data.split-by: {pattern!r} is not a regular expression ({error})") from error

    def _check_split(self) -> None:
        if self.splitting() and self.split_list:
            raise UserError("--data.split-by and --data.split-list exclude each other: images are split in one way")
        if self.split_list and not Path(self.split_list).expanduser().is_file():
            raise UserError(f"--data.split-list: no file {self.split_list}; a CSV file of path,split is needed")
