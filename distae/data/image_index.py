"""The list of the image files in a folder: made by one scan, which reads every header, and cached."""

import contextlib
import hashlib
import io
import json
import os
import zipfile
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import xxhash
from filelock import FileLock
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from distae import distributed as dist
from distae.data.decode import header
from distae.data.stamps import why_changed
from distae.errors import UserError
from distae.runtime.cache import cache_folder
from distae.runtime.files import read_bytes, write_atomically

VERSION = 2
"""Version of the cache format."""
LARGEST_FILE = 1 << 30
"""Maximum bytes of an image file."""
SAMPLED_FILES, SAMPLED_FOLDERS = 256, 4096
"""Numbers of files and folders, evenly spaced, by which a cached list is compared with the disk."""
SAMPLED_CONTENTS, SAMPLED_BYTES = 64, 1 << 20
"""Number of files, evenly spaced, that have a checksum in the list, and of the first bytes that it covers."""
KEPT = "data_index.npz"
"""File in a run folder: the list at the start of the run, for a resume after files vanished."""
LARGEST_KEPT = 1 << 30
"""Maximum bytes of that file."""
HEADERS_AT_ONCE = 16
"""Threads that read headers: they mostly wait for the disk."""
CACHE_ERRORS = (OSError, ValueError, LookupError, zipfile.BadZipFile, EOFError)


class Found(NamedTuple):
    """A file found by the scan."""

    name: str
    """Relative to the root, with slashes."""
    size: int
    time: int
    """Modification time in nanoseconds."""


@dataclass(frozen=True)
class ImageIndex:
    """Image files of a folder, sorted by name, in arrays: a million names are not a million objects."""

    root: Path
    text: NDArray[np.uint8]
    """All names, concatenated, as bytes of the file system."""
    ends: NDArray[np.int64]
    sizes: NDArray[np.int64]
    times: NDArray[np.int64]
    folder: NDArray[np.int32]
    """`[N]` number of each file's folder."""
    mode: NDArray[np.uint8]
    """`[N]` number of each file's mode; arbitrary for files with a problem."""
    short_side: NDArray[np.int32]
    folders: tuple[str, ...]
    """Relative to the root, sorted; the root is "". Folders without images are included."""
    folder_times: tuple[int, ...]
    modes: tuple[str, ...]
    problems: Mapping[int, str]
    """By row: why the file cannot be an image."""
    others: int
    """Number of files of other kinds, which are left out."""
    contents: tuple[str, ...]
    """Checksums of the starts of SAMPLED_CONTENTS files, evenly spaced, when they were looked at."""
    times_count: bool = True
    """Whether a file of another time is another one; of a folder that has changed since a run began, which may be a copy, no."""

    def __len__(self) -> int:
        return len(self.ends)

    def name(self, row: int) -> str:
        start = self.ends[row - 1] if row else 0
        return os.fsdecode(self.text[start : self.ends[row]].tobytes())

    def names(self) -> list[str]:
        """All names; builds a list of strings, so only for when every name is needed."""
        text, ends = self.text.tobytes(), [0, *self.ends.tolist()]
        return [os.fsdecode(text[a:b]) for a, b in pairwise(ends)]

    def path(self, row: int) -> Path:
        return self.root / self.name(row)

    def why_changed(self, row: int) -> str | None:
        """Why the file is no longer the one in the list, if so. As the list may be one of the cache, it is then not used again."""
        path, size = self.path(row), int(self.sizes[row])
        why = why_changed(path, (size, int(self.times[row])))
        if why is None or (not self.times_count and path.exists() and path.stat().st_size == size):
            return None
        if kept := _cache_file(self.root):
            kept.unlink(missing_ok=True)
        return why

    def file(self, row: int) -> str:
        """`path` as text: making a Path takes 4% of the time that decoding a small photograph does."""
        return f"{self.root}/{self.name(row)}"

    @cached_property
    def with_images(self) -> NDArray[np.bool_]:
        """Which folders hold images, directly or in subfolders."""
        direct = np.bincount(self.folder, minlength=len(self.folders)) > 0
        held = {parent for i in direct.nonzero()[0] for parent in _parents(self.folders[i])}
        return np.array([name in held for name in self.folders], dtype=bool)


def image_index(root: Path) -> ImageIndex:
    """The files of a folder, from the cache if that is still valid. Raises UserError if the folder cannot be read.

    A cached list is true where its folders have their times, and sampled files theirs: other files are not looked at. One rank of a
    node checks it, or makes it where there is none, while the others wait.
    """
    root = root.resolve()
    kept = _cache_file(root)
    if kept is None:
        return _scan(root)
    with dist.first_in_node() as is_first:
        return _cached(kept, root, check=is_first)


def _cached(kept: Path, root: Path, check: bool) -> ImageIndex:
    """The list in the cache file, if there is one and it is true; else a new one, which is put there."""
    with FileLock(kept.with_suffix(".lock")):
        with contextlib.suppress(*CACHE_ERRORS):
            index = _load(kept, root)
            if not check or _is_true(index):
                return index
        index = _scan(root)
        with contextlib.suppress(OSError):
            write_atomically(kept, _dump(index), durable=False)
        return index


def kept_index(root: Path, run_dir: Path | None) -> tuple[ImageIndex | None, bool]:
    """The list at the start of the run, if its folder has one of `root`, and whether it is still valid."""
    with contextlib.suppress(*CACHE_ERRORS):
        if run_dir is not None:
            index = _load(io.BytesIO(read_bytes(run_dir / KEPT, LARGEST_KEPT)), root.resolve())
            still_true = _still_true(index)
            return replace(index, times_count=still_true), still_true
    return None, False


def keep_index(index: ImageIndex, run_dir: Path) -> None:
    """Write it into a run folder, unless there is one. If that fails, a resume uses the image folder as it is then."""
    if not (run_dir / KEPT).exists():
        with contextlib.suppress(OSError):
            write_atomically(run_dir / KEPT, _dump(index), durable=False)


def _still_true(index: ImageIndex) -> bool:
    with contextlib.suppress(OSError):
        return _is_true(index)
    return False


def printable(name: str) -> str:
    """A file's name for a message, whatever bytes it is made of."""
    return name.encode("utf-8", "backslashreplace").decode()


def _cache_file(root: Path) -> Path | None:
    """The cached list of a folder, in `cache_folder`; None if that cannot be written to."""
    try:
        folder = cache_folder("images")
        if not os.access(folder, os.W_OK):
            return None
        return folder / f"{hashlib.blake2b(os.fsencode(root), digest_size=12).hexdigest()}.npz"
    except OSError:
        return None


def _is_true(index: ImageIndex) -> bool:
    for i in _spread(len(index.folders), SAMPLED_FOLDERS):
        if (index.root / index.folders[i]).stat().st_mtime_ns != index.folder_times[i]:
            return False
    for row in _spread(len(index), SAMPLED_FILES):
        now = index.path(row).stat()
        if (now.st_size, now.st_mtime_ns) != (index.sizes[row], index.times[row]):
            return False
    return True


def _spread(n: int, most: int) -> list[int]:
    """Up to `most` of range(n), evenly spaced."""
    return list(range(n)) if n <= most else [i * n // most for i in range(most)]


def _scan(root: Path) -> ImageIndex:
    found: list[Found] = []
    folders: dict[str, int] = {}
    others = 0
    suffixes = tuple(Image.registered_extensions())
    try:
        for folder, entries in _walk(root):
            folders[folder] = (root / folder).stat().st_mtime_ns
            for entry in entries:
                if not entry.name.lower().endswith(suffixes):
                    others += 1
                    continue
                stat = entry.stat()
                found.append(Found(f"{folder}/{entry.name}" if folder else entry.name, stat.st_size, stat.st_mtime_ns))
    except OSError as error:
        raise UserError(f"--data.path: {error.filename or root} cannot be read ({error.strerror})") from error
    return _indexed(root, sorted(found), dict(sorted(folders.items())), others)


def _walk(root: Path) -> Iterator[tuple[str, list["os.DirEntry[str]"]]]:
    """The root and all folders below it, with their files. Skips names that start with a dot, and repeated links to a folder."""
    left, seen = [""], {_inode(root.stat())}
    while left:
        folder, files = left.pop(), []
        with os.scandir(root / folder) as entries:
            for entry in sorted(entries, key=lambda e: e.name):
                if entry.name.startswith("."):
                    continue
                if entry.is_file():
                    files.append(entry)
                elif entry.is_dir() and (inode := _inode(entry.stat())) not in seen:
                    seen.add(inode)
                    left.append(f"{folder}/{entry.name}" if folder else entry.name)
        yield folder, files


def _inode(stat: os.stat_result) -> tuple[int, int]:
    return stat.st_dev, stat.st_ino


def _indexed(root: Path, found: list[Found], folders: dict[str, int], others: int) -> ImageIndex:
    with ThreadPoolExecutor(HEADERS_AT_ONCE) as pool:
        looks = list(pool.map(lambda f: _look(root / f.name, f.size), found, chunksize=256))
    number = {name: i for i, name in enumerate(folders)}
    modes = tuple(sorted({mode for mode, _, why in looks if not why}))
    codes = {mode: i for i, mode in enumerate(modes)}
    names = [os.fsencode(f.name) for f in found]
    return ImageIndex(
        root,
        np.frombuffer(b"".join(names), np.uint8),
        np.cumsum([len(n) for n in names], dtype=np.int64),
        np.array([f.size for f in found], np.int64),
        np.array([f.time for f in found], np.int64),
        np.array([number[f.name.rpartition("/")[0]] for f in found], np.int32),
        np.array([codes.get(mode, 0) for mode, _, _ in looks], np.uint8),
        np.array([side for _, side, _ in looks], np.int32),
        tuple(folders),
        tuple(folders.values()),
        modes,
        {row: why for row, (_, _, why) in enumerate(looks) if why},
        others,
        tuple(_start_of(root / found[i].name) for i in _spread(len(found), SAMPLED_CONTENTS)),
    )


def _start_of(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return xxhash.xxh3_128_hexdigest(file.read(SAMPLED_BYTES))
    except OSError as error:
        return why(error)


def _look(path: Path, size: int) -> tuple[str, int, str]:
    """Mode, shorter side in pixels, and what is wrong with a file, or ""."""
    if not size:
        return "", 0, "it is empty (0 bytes)"
    if size > LARGEST_FILE:
        return "", 0, f"it has {size} bytes; at most {LARGEST_FILE} are expected of an image"
    try:
        return *header(path), ""
    except Exception as error:  # decoders raise anything on damaged files
        return "", 0, why(error)


def why(error: Exception) -> str:
    """Why a file cannot be read: a short message without its path."""
    if isinstance(error, UnidentifiedImageError):
        return "not an image that Pillow can read"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return " ".join(str(error).split())[:160] or type(error).__name__


_ARRAYS = ("text", "ends", "sizes", "times", "folder", "mode", "short_side")


def _dump(index: ImageIndex) -> bytes:
    rest = {k: getattr(index, k) for k in ("folders", "folder_times", "modes", "others", "contents")}
    rest |= {"version": VERSION, "root": str(index.root), "problems": list(index.problems.items())}
    data = io.BytesIO()
    header_ = np.frombuffer(json.dumps(rest).encode(), np.uint8)
    np.savez(data, allow_pickle=False, rest=header_, **{k: getattr(index, k) for k in _ARRAYS})
    return data.getvalue()


def _load(file: Path | io.BytesIO, root: Path) -> ImageIndex:
    """Raises one of CACHE_ERRORS on anything but what `_dump` makes of this folder."""
    with zipfile.ZipFile(file) as archive:
        if any(member.compress_type != zipfile.ZIP_STORED for member in archive.infolist()):
            raise ValueError("compressed, which _dump's are not")
    with np.load(file, allow_pickle=False) as members:
        rest: dict[str, Any] = json.loads(members["rest"].tobytes())
        fields: dict[str, Any] = {k: members[k] for k in _ARRAYS}
    if rest.pop("version") != VERSION or rest.pop("root") != str(root):
        raise ValueError("another version, or another folder")
    fields["problems"] = {int(row): str(text) for row, text in rest.pop("problems")}
    fields |= {k: tuple(v) if isinstance(v, list) else v for k, v in rest.items()}
    return ImageIndex(root=root, **fields)


def _parents(folder: str) -> Iterator[str]:
    """The folder and all its parents up to the root."""
    while folder:
        yield folder
        folder = folder.rpartition("/")[0]
    yield ""
