"""Files of a run or a model folder, which others may have damaged, forged or replaced: read within bounds, written whole.

Anything but a regular file (a FIFO, a device, a link out of the folder) is rejected before it is opened: reading a FIFO
blocks forever, reading /dev/zero fills the memory, and writing through a link changes somebody else's file.
"""

import contextlib
import errno
import os
import shutil
import stat
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from distae.config.toml import LARGEST, parse_toml

T = TypeVar("T")
SMALL = 8 << 20
"""Bytes: no settings, state, outcome, lock or manifest is larger. JSON of that size takes less than a second."""


def decode(data: bytes, kind: type[T]) -> T:
    """JSON text as a `kind`, its types checked. Raises ValueError if it is anything else."""
    try:
        return msgspec.json.decode(data, type=kind)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error


def size_of(path: Path) -> int:
    """Bytes of a regular file of the folder that it is named in. Raises OSError if it is anything else, without opening it."""
    found = path.lstat()
    if stat.S_ISLNK(found.st_mode):
        target = Path(os.path.realpath(path))
        if not target.is_relative_to(os.path.realpath(path.parent)):
            raise OSError(errno.EINVAL, f"it is a link out of its folder, to {target}", str(path))
        if not target.exists():
            raise OSError(errno.EINVAL, f"it is a link to nothing, {target}", str(path))
        found = path.stat()
    if not stat.S_ISREG(found.st_mode):
        raise OSError(errno.EINVAL, f"it is {_kind(found.st_mode)}, not a file", str(path))
    return found.st_size


def read_bytes(path: Path, limit: int = SMALL) -> bytes:
    """All of a file. Raises OSError if it cannot be read, is not a regular file of its folder, or has more than `limit` bytes."""
    if (size := size_of(path)) > limit:
        raise OSError(errno.EFBIG, f"it has {size} bytes; at most {limit} are expected", str(path))
    with open(_descriptor(path, os.O_RDONLY), "rb") as file:
        return file.read(limit)


def read_end(path: Path, limit: int) -> bytes:
    """The last `limit` bytes of a file, or all of a smaller one. Raises OSError as `size_of`."""
    size = size_of(path)
    with open(_descriptor(path, os.O_RDONLY), "rb") as file:
        file.seek(max(0, size - limit))
        return file.read(limit)


def read_toml(path: Path) -> dict[str, Any]:
    """Raises OSError as `read_bytes`, and ValueError where it is not valid TOML."""
    return parse_toml(read_bytes(path, LARGEST))


def open_append(path: Path) -> int:
    """A descriptor that writes behind what is there, in a file that is made where there is none. Raises OSError as `size_of`."""
    if os.path.lexists(path):
        size_of(path)
    return _descriptor(path, os.O_RDWR | os.O_APPEND | os.O_CREAT)


def write_atomically(path: Path, data: bytes | Iterable[bytes], durable: bool = True) -> None:
    """The whole file or, where that fails or is interrupted, the one before; `durable`: on the disk when this returns.

    `data` may come in parts. Raises OSError, also where something other than a regular file is in its place.
    """
    if os.path.lexists(path):
        size_of(path)
    fresh = path.with_name(f".{path.name}.writing")
    fresh.unlink(missing_ok=True)
    try:
        with open(_descriptor(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL), "wb") as file:
            file.writelines([data] if isinstance(data, bytes) else data)
            file.flush()
            if durable:
                os.fsync(file.fileno())
        fresh.rename(path)
    except OSError:
        fresh.unlink(missing_ok=True)
        raise
    if durable:
        sync(path.parent)


@contextlib.contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """A folder to write in, which takes the place of `path` once it is whole; what was there stays where that fails."""
    fresh, old = path.with_name(f".{path.name}.writing"), path.with_name(f".{path.name}.old")
    for left in (fresh, old):
        shutil.rmtree(left, ignore_errors=True)
    fresh.mkdir(parents=True)
    try:
        yield fresh
        sync(fresh)
        if path.exists():
            path.rename(old)
        fresh.rename(path)
        sync(path.parent)
    finally:
        for left in (fresh, old):
            shutil.rmtree(left, ignore_errors=True)


def make_folder(path: Path) -> Path:
    """A folder inside its parent, which must be there. Raises OSError if it cannot be made, or is a link."""
    if path.is_symlink():
        raise OSError(errno.EINVAL, f"it is a link, to {os.path.realpath(path)}", str(path))
    path.mkdir(exist_ok=True)
    return path


def names_in(folder: Path) -> list[str]:
    """Names in a folder, sorted; none if there is no such folder.

    Raises OSError if it cannot be listed, or is a link to nothing: `Path.glob` would take either for an empty folder.
    """
    try:
        return sorted(p.name for p in folder.iterdir())
    except FileNotFoundError as error:
        if folder.is_symlink():
            raise OSError(errno.ENOENT, f"it is a link to {folder.readlink()}, which is not there", str(folder)) from error
        return []


def sync(path: Path) -> None:
    """Make what is in a file, or the names in a folder, durable."""
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def in_words(error: BaseException) -> str:
    """An error of these functions without its number."""
    if not isinstance(error, OSError):
        return str(error)
    return _WORDS.get(error.errno or 0) or error.strerror or str(error)


def with_path(error: BaseException) -> str:
    """The same with the file that it is about, if that is known: `Read-only file system: runs/a/metrics.jsonl`."""
    return in_words(error) + (f": {error.filename}" if isinstance(error, OSError) and error.filename else "")


_WORDS = {errno.ENOSPC: "No space left on device (disk full, or no inodes left)"}


def why_unsafe(folder: Path, files: Iterable[str], folders: Iterable[str]) -> str | None:
    """The first of these names that is there and is something else than a file, or a folder, of its own; None if none is."""
    for name in [*files, *folders]:
        path = folder / name
        try:
            if name in folders and os.path.lexists(path) and not (path.is_dir() and not path.is_symlink()):
                return f"{path} is {_kind(path.lstat().st_mode)}, not a folder"
            if name in files and os.path.lexists(path):
                size_of(path)
        except OSError as error:
            return f"{path}: {in_words(error)}"
    return None


def _descriptor(path: Path, flags: int) -> int:
    """Never waits for a FIFO's other end, should one have come since `size_of`. Mode 0666 less the umask."""
    fd = os.open(path, flags | os.O_NONBLOCK | os.O_CLOEXEC, 0o666)
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise OSError(errno.EINVAL, "it is not a file", str(path))
    return fd


def _kind(mode: int) -> str:
    kinds = {stat.S_IFDIR: "a folder", stat.S_IFLNK: "a link", stat.S_IFIFO: "a named pipe", stat.S_IFSOCK: "a socket"}
    return kinds.get(stat.S_IFMT(mode), "a device" if not stat.S_ISREG(mode) else "a file")
