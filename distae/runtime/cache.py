"""The cache folder of a node, for what can be recreated: decoded data, downloaded files, indices of folders."""

import os
from pathlib import Path

from filelock import FileLock

VARIABLE = "DISTAE_CACHE"


def cache_folder(name: str) -> Path:
    """The subfolder `name` of $DISTAE_CACHE, by default of $XDG_CACHE_HOME/distae or ~/.cache/distae.

    Raises OSError if it cannot be made.
    """
    try:
        base = Path(os.environ.get(VARIABLE) or Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "distae").expanduser()
    except RuntimeError as error:
        raise OSError(f"{VARIABLE}: {error}") from error
    folder = base / name
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def make_room(folder: Path, size: int, limit: int) -> None:
    """Delete the least recently used files until `size` more bytes fit into `limit`; a process that maps one keeps its data."""
    with FileLock(folder / "room.lock"):
        files = [(path, path.stat()) for path in folder.iterdir() if path.suffix != ".lock" and not path.name.startswith(".")]
        excess = sum(found.st_size for _, found in files) + size - limit
        for path, found in sorted(files, key=lambda file: file[1].st_mtime):
            if excess > 0:
                path.unlink(missing_ok=True)
                excess -= found.st_size
