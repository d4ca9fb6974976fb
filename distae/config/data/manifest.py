"""The manifest of a folder that `distae prepare` made: what its shards hold, and what could not be read. No torch."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

from msgspec import Meta

from distae.config.data.paths import MANIFEST
from distae.config.data.reading import read_json
from distae.config.fields import Count, Index
from distae.errors import UserError

VERSION = 1
LARGEST = 256 << 20
"""Bytes: a million names of files that could not be read."""
X, Y = "x", "y"
"""Names of the samples and the labels inside a shard."""


@dataclass(frozen=True)
class Shard:
    """One file of the folder."""

    file: Annotated[str, Meta(pattern=r"^[\w-]+\.safetensors$")]
    rows: Index
    bytes: Index


@dataclass(frozen=True)
class Unread:
    """A sample of the source that is left out."""

    file: str
    reason: str


@dataclass(frozen=True)
class Manifest:
    """What `distae prepare` wrote."""

    shape: list[Count]
    """Of one sample, as the model takes it."""
    transform: dict[str, Any]
    """From the stored values to the model's, and back."""
    splits: dict[str, list[Shard]]
    """Of `train`, `val` and `test`; empty as long as the folder is not complete."""
    classes: list[str] = field(default_factory=list)
    """Names of the classes, by label."""
    labelled: bool = False
    for_model: dict[str, Any] = field(default_factory=dict)
    """Settings of the model that follow from the data."""
    source: dict[str, Any] = field(default_factory=dict)
    """Settings of the source that the folder was made of."""
    unread: list[Unread] = field(default_factory=list)
    """Samples of the source that are left out."""
    key: str = ""
    """Checksum of the data and how it is cut."""
    version: int = VERSION


def manifest_in(folder: Path) -> Manifest | None:
    """The manifest of a folder; None if it has none. Raises UserError if it is damaged, or of a newer version."""
    path = folder / MANIFEST
    try:
        if not path.is_file():
            return None
        manifest = read_json(path, Manifest, LARGEST)
    except (OSError, ValueError) as error:
        raise UserError(f"--data.path: {path} is damaged ({error}): make it again with distae prepare") from error
    if manifest.version > VERSION:
        raise UserError(f"--data.path: {path} has version {manifest.version}; this distae reads up to {VERSION}")
    return manifest
