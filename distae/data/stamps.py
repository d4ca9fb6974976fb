"""Whether a file is still the one that a run began with."""

from pathlib import Path

Stamp = tuple[int, int]
"""Size in bytes, and time of change in nanoseconds."""


def stamp_of(path: Path) -> Stamp:
    found = path.stat()
    return found.st_size, found.st_mtime_ns


def why_changed(path: Path, stamp: Stamp) -> str | None:
    """Why a file with this stamp at the start must not be read any more, if so: past a mapped one's end that kills the process."""
    try:
        now = stamp_of(path)
    except OSError as error:
        return f"{path} cannot be read any more ({error.strerror})"
    if now == stamp:
        return None
    return f"{path} was changed during the run" + (f": it has {now[0]} bytes, and had {stamp[0]}" if now[0] != stamp[0] else "")
