"""Downloaded files on this node's disk: shared by its processes, complete or absent, bounded in size."""

import contextlib
import os
import threading
from collections.abc import Sequence
from pathlib import Path

import xxhash
from filelock import FileLock

from distae.config.data.remote import filesystem, is_url, retried
from distae.runtime.cache import cache_folder, make_room


class FileCache:
    """Local copies of URLs; the least recently used are deleted to make room for new ones."""

    def __init__(self, limit: int) -> None:
        """At most `limit` bytes, over all processes that share the folder."""
        self.limit = limit
        self.known: dict[str, tuple[str, int]] = {}

    def fetch(self, file: str) -> Path:
        """The local copy of a URL, downloaded if it is missing; a path is returned as it is. Raises what the file system raises."""
        if not is_url(file):
            return Path(file)
        name, size = self._name(file)
        path = cache_folder("files") / name
        if not path.exists():
            with FileLock(f"{path}.lock"):
                if not path.exists():
                    self._download(file, path, size)
        with contextlib.suppress(OSError):
            os.utime(path)
        return path

    def size(self, file: str) -> int:
        return self._name(file)[1] if is_url(file) else Path(file).stat().st_size

    def _name(self, file: str) -> tuple[str, int]:
        """Name of the copy, different for each version of the file, and its size in bytes."""
        if file not in self.known:
            fs, path = filesystem(file)
            info = retried(lambda: fs.info(path))
            version = [str(info.get(k)) for k in ("ETag", "etag", "md5Hash", "mtime", "LastModified", "last_modified")]
            key = xxhash.xxh3_128_hexdigest("\n".join([file, str(info["size"]), *version]).encode())
            self.known[file] = f"{key}{Path(path).suffix}", int(info["size"])
        return self.known[file]

    def _download(self, file: str, path: Path, size: int) -> None:
        fs, remote = filesystem(file)
        fresh = path.with_name(f".{path.name}.writing")
        try:
            make_room(path.parent, size, self.limit)
            retried(lambda: fs.get_file(remote, str(fresh)))
            if fresh.stat().st_size != size:
                raise OSError(f"{file}: {fresh.stat().st_size} of {size} bytes arrived")
            fresh.rename(path)
        finally:
            fresh.unlink(missing_ok=True)


class Prefetch:
    """Fills the cache in the background with all files, if they fit; if not, the workers that read ahead download as needed."""

    def __init__(self, cache: FileCache, files: Sequence[str]) -> None:
        self.cache, self.files = cache, [file for file in files if is_url(file)]
        self.thread: threading.Thread | None = None
        self.lock = threading.Lock()

    def start(self) -> None:
        """Start at the first read; ranks on the same node share the work, file by file."""
        with self.lock:
            if self.files and self.thread is None and sum(map(self.cache.size, self.files)) <= self.cache.limit:
                self.thread = threading.Thread(target=self._fill, name="distae-cache", daemon=True)
                self.thread.start()

    def _fill(self) -> None:
        for file in self.files:
            with contextlib.suppress(Exception):  # reported when the file is needed
                self.cache.fetch(file)
