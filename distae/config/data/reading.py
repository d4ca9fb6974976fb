"""What several files of settings share to read a file: where it is, and reading it once."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, Generic, TypeVar

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
    try:
        found = Path(path).expanduser()
        if not found.is_file():
            raise UserError(f"--data.path: {found} is not {'a file' if found.exists() else 'there'}; a file is needed: {kinds}")
    except RuntimeError as error:
        raise UserError(f"--data.path: {path} names no user's home folder") from error
    except (OSError, ValueError) as error:
        raise UserError(f"--data.path: {path!r} cannot be read ({error})") from error
    return found
