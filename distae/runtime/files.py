"""Files of a run or model folder, which may be damaged, forged or replaced: bounded reads, atomic writes.

Anything but a regular file (a FIFO, a device, a link out of the folder) is rejected before it is opened: reading a FIFO
blocks forever, reading /dev/zero fills the memory, and writing through a link changes a file elsewhere.
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
from distae.errors import UserError

T = TypeVar("T")
SMALL = 8 << 20
"""Maximum bytes of settings, state, outcome, lock and manifest files. JSON of that size parses in less than a second."""


def decode(data: bytes, kind: type[T]) -> T:
    """Parse JSON as a `kind` and check its types. Raises ValueError if it does not match."""
    try:
        return msgspec.json.decode(data, type=kind)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error


def size_of(path: Path) -> int:
    """Bytes of a regular file, found without opening it.

    Raises OSError if it is anything else, such as a FIFO, or a link to a file outside its folder.
    """
    found = path.lstat()
    if stat.S_ISLNK(found.st_mode):
        target = Path(os.path.realpath(path))
        if not target.is_relative_to(os.path.realpath(path.parent)):
            raise OSError(errno.EINVAL, f"it is a link out of its folder, to {target}", str(path))
        if not target.exists():
            raise OSError(errno.EINVAL, f"it is a broken link, to {target}", str(path))
        found = path.stat()
    if not stat.S_ISREG(found.st_mode):
        raise OSError(errno.EINVAL, f"it is {_kind(found.st_mode)}, not a file", str(path))
    return found.st_size


def read_bytes(path: Path, limit: int = SMALL) -> bytes:
    """All of a file. Raises OSError if it cannot be read, is not a regular file in its folder, or has more than `limit` bytes."""
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
    """Parse a TOML file. Raises OSError as `read_bytes`, and ValueError if it is not valid TOML."""
    return parse_toml(read_bytes(path, LARGEST))


def open_append(path: Path) -> int:
    """A file descriptor for reading and appending; the file is created if it is missing. Raises OSError as `size_of`."""
    if os.path.lexists(path):
        size_of(path)
    return _descriptor(path, os.O_RDWR | os.O_APPEND | os.O_CREAT)


def write_atomically(path: Path, data: bytes | Iterable[bytes], durable: bool = True) -> None:
    """Write a file completely, or keep the old one if that fails or is interrupted. `durable`: it is on disk at the return.

    `data` may be an iterable of parts. Raises OSError, also if `path` is something other than a regular file.
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


def check_absent(path: Path, force: bool) -> None:
    """Raises UserError if there is something at `path` and --force is not given."""
    if path.exists() and not force:
        raise UserError(f"{path} exists: give --force to overwrite it, or another --out")


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
    """Make a folder if it is missing; its parent must exist. Raises OSError if it cannot be made, or is a link."""
    if path.is_symlink():
        raise OSError(errno.EINVAL, f"it is a link, to {os.path.realpath(path)}", str(path))
    path.mkdir(exist_ok=True)
    return path


def names_in(folder: Path) -> list[str]:
    """Names in a folder, sorted; empty if there is no such folder.

    Raises OSError if it cannot be listed, or is a broken link: `Path.glob` would treat either as an empty folder.
    """
    try:
        return sorted(p.name for p in folder.iterdir())
    except FileNotFoundError as error:
        if folder.is_symlink():
            raise OSError(errno.ENOENT, f"it is a link to {folder.readlink()}, which is not there", str(folder)) from error
        return []


def sync(path: Path) -> None:
    """fsync a file, or the entries of a folder."""
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def in_words(error: BaseException) -> str:
    """The message of an error, without errno and path."""
    if not isinstance(error, OSError):
        return str(error)
    return _WORDS.get(error.errno or 0) or error.strerror or str(error)


def with_path(error: BaseException) -> str:
    """The message of an error with its path, if known: `Read-only file system: runs/a/metrics.jsonl`."""
    return in_words(error) + (f": {error.filename}" if isinstance(error, OSError) and error.filename else "")


_WORDS = {errno.ENOSPC: "No space left on device (disk full, or no inodes left)"}


def why_unsafe(folder: Path, files: Iterable[str], folders: Iterable[str]) -> str | None:
    """What is wrong with the first of these names that exists but is not a regular file, or folder, of its own; else None."""
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
    """Open without blocking, in case a FIFO has replaced the file since `size_of`. Mode 0666 minus the umask."""
    fd = os.open(path, flags | os.O_NONBLOCK | os.O_CLOEXEC, 0o666)
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise OSError(errno.EINVAL, "it is not a file", str(path))
    return fd


def _kind(mode: int) -> str:
    kinds = {stat.S_IFDIR: "a folder", stat.S_IFLNK: "a link", stat.S_IFIFO: "a named pipe", stat.S_IFSOCK: "a socket"}
    return kinds.get(stat.S_IFMT(mode), "a device" if not stat.S_ISREG(mode) else "a file")
