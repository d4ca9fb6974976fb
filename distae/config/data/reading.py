"""What several files of settings share to read a file: whether it is there, within bounds, and once."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, Generic, TypeVar

import msgspec

from distae.config.data.paths import expanded
from distae.errors import UserError

V = TypeVar("V")


class Newest(Generic[V]):
    """The newest thing read from a file, with the settings it was read by: read again only where either changes.

    A file that has vanished since counts as unchanged, so that a run that has read it can end.
    """

    def __init__(self) -> None:
        self.key: Any = None
        self.stamp: tuple[int, int] | None = None
        self.value: V | None = None

    def get(self, key: Any, path: str, read: Callable[[], V]) -> V:
        stamp = _stamp(path)
        if self.value is None or key != self.key or stamp not in (None, self.stamp):
            self.put(key, read(), stamp)
        assert self.value is not None
        return self.value

    def put(self, key: Any, value: V, stamp: tuple[int, int] | None = None) -> None:
        self.key, self.stamp, self.value = key, stamp, value


def _stamp(path: str) -> tuple[int, int] | None:
    """Size and time of a file; None where there is none."""
    if not path:
        return None
    try:
        found = Path(path).expanduser().stat()
    except (OSError, RuntimeError, ValueError):
        return None
    return found.st_size, found.st_mtime_ns


def the_file(path: str, kinds: str) -> Path:
    """`--data.path`, `~` expanded. Raises UserError where nothing is there; `kinds` are the valid ones."""
    if not path:
        raise UserError(f"--data.path: a file is needed: {kinds}")
    return _there(path, Path.is_file, "is not a file", f"a file is needed: {kinds}")


def the_folder(path: str) -> Path:
    """The same of a folder of images."""
    if not path:
        raise UserError("--data.path: --data image_folder needs the folder of the images")
    return _there(path, Path.is_dir, "is a file, not a folder", "the folder of the images is needed")


def _there(path: str, fits: Callable[[Path], bool], otherwise: str, needed: str) -> Path:
    found = expanded(path, "--data.path")
    try:
        if not fits(found):
            raise UserError(f"--data.path: {found} {otherwise if found.exists() else 'is not there'}; {needed}")
    except (OSError, ValueError) as error:
        raise UserError(f"--data.path: {path!r} cannot be read ({error})") from error
    return found


def read_json(path: Path, kind: type[V], most: int) -> V:
    """A JSON file as a `kind`. Raises OSError if it cannot be read, ValueError if it is anything else, or has over `most` bytes."""
    if (size := path.stat().st_size) > most:
        raise ValueError(f"it has {size} bytes")
    try:
        return msgspec.json.decode(path.read_bytes(), type=kind)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error
