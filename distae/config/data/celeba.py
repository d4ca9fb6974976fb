"""Settings of CelebA."""

from dataclasses import dataclass
from typing import ClassVar

from distae.config.data.image_folder import ImageSettings


@dataclass(frozen=True, kw_only=True)
class CelebAConfig(ImageSettings):
    """CelebA, 202,599 faces, aligned, with its own splits (Liu 2015): the central 148x148 pixels of 178x218, as is usual for
    autoencoders, resized to --data.size. The files are decoded as they are needed."""

    name: ClassVar[str] = "celeba"

    root: str = "data"
    """Folder that `celeba` is in, or is downloaded to; in it `img_align_celeba` and list_eval_partition.txt."""
    attribute: str | None = None
    """Attribute that is the label, 0 or 1, such as Smiling; it needs list_attr_celeba.txt."""

    def shape(self) -> tuple[int, ...]:
        return (3, self.size, self.size)
