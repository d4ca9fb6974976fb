"""Files by path or by URL (fsspec): listed, opened and read in part; a server that is busy is asked again. No torch."""

import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from distae.config.data.paths import files_of
from distae.config.extras import needs
from distae.errors import UserError

T = TypeVar("T")
WAITS = (0.5, 1.0, 2.0, 4.0, 8.0)
"""Seconds between the tries of a request."""
BUSY = (408, 425, 429, 500, 502, 503, 504)
"""Statuses of HTTP after which another try may succeed."""
FINAL = (FileNotFoundError, PermissionError, IsADirectoryError, NotADirectoryError)


def is_url(text: str) -> bool:
    """Whether it is a URL such as `s3://bucket/x.parquet`, and not a path."""
    return bool(re.match(r"[a-z][a-z0-9+.-]+://", text))


def listed(text: str, setting: str, suffixes: tuple[str, ...]) -> list[str]:
    """Files and URLs of `--data.path`: of each part the file, what matches the glob, or all below the folder, sorted by name.

    Raises UserError if there are none.
    """
    if not is_url(text):
        return [str(path) for path in files_of(text, setting, suffixes)]
    found: list[str] = []
    for url in filter(None, text.split(",")):
        found += _listed(url, setting, suffixes) if is_url(url) else map(str, files_of(url, setting, suffixes))
    return found


def _listed(url: str, setting: str, suffixes: tuple[str, ...]) -> list[str]:
    fs, path = filesystem(url, setting)

    def ask() -> list[str]:
        if any(c in path for c in "*?["):
            return sorted(fs.glob(path))
        return sorted(p for p in fs.find(path) if p.endswith(suffixes)) if fs.isdir(path) else [path] * bool(fs.exists(path))

    found = [fs.unstrip_protocol(p) for p in asked(url, ask, setting)]
    if not found:
        raise UserError(f"{setting}: {url}: there are no {' or '.join(suffixes)} files")
    return found


def filesystem(url: str, setting: str = "--data.path") -> tuple[Any, str]:
    """fsspec's file system of a URL or a path, and the path in it. Raises UserError if it, or what it needs, is not known."""
    fsspec = needs("fsspec", "data", f"{setting} {url}")
    try:
        return fsspec.core.url_to_fs(url)  # type: ignore[no-any-return]
    except (ImportError, ValueError) as error:
        raise UserError(f"{setting}: {url} cannot be opened ({error})") from error


def asked(url: str, request: Callable[[], T], setting: str = "--data.path") -> T:
    """The result of a request before training. Raises UserError that names the URL if it fails for good."""
    try:
        return retried(request)
    except Exception as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"{setting}: {url} cannot be read ({said(error)})") from error


def retried(request: Callable[[], T]) -> T:
    """The result of a request, made again where the server is busy or the connection broke. Raises what the last one did."""
    for wait in WAITS:
        try:
            return request()
        except Exception as error:
            if not may_pass(error):
                raise
            time.sleep(wait)
    return request()


def may_pass(error: Exception) -> bool:
    """Whether another try may succeed: the server was busy, or the connection broke."""
    status = getattr(error, "status", None) or getattr(error, "code", None)
    if isinstance(status, int):
        return status in BUSY
    busy = re.search(r"\b(429|50[0234])\b|SlowDown|timed? ?out", str(error), re.IGNORECASE)
    return bool(busy) or (isinstance(error, OSError) and not isinstance(error, FINAL))


def said(error: Exception) -> str:
    """An error in one line, its status first."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) < 200 else f"{text[:200]}…"


def size_of(file: str) -> int:
    """Bytes of a file or what a URL leads to."""
    if not is_url(file):
        return Path(file).stat().st_size
    fs, path = filesystem(file)
    return int(retried(lambda: fs.info(path))["size"])


def opened(file: str) -> Any:
    """A file or a URL, to be read in part."""
    if not is_url(file):
        return Path(file).open("rb")
    fs, path = filesystem(file)
    return retried(lambda: fs.open(path, "rb", block_size=1 << 20))


def read_part(file: str, start: int, end: int) -> bytes:
    """The bytes `[start, end)` of a file or a URL."""
    if is_url(file):
        fs, path = filesystem(file)
        return retried(lambda: bytes(fs.cat_file(path, start=start, end=end)))
    with Path(file).open("rb") as local:
        local.seek(start)
        return local.read(end - start)
