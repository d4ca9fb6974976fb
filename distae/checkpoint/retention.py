"""A folder of checkpoints on disk: names, validity, commit, retention. One process at a time; no torch.

step_00001000/
    shard-00001-model-00001-of-00001.safetensors    what rank 0 wrote: tensors are shared out over the ranks
    state.json                                      everything but tensors
    COMMIT                                          size and checksum of each file, written last: without it, no checkpoint
"""

import os
import re
import shutil
import stat
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypedDict

from distae.runtime.files import decode, in_words, read_bytes

COMMIT, STATE = "COMMIT", "state.json"


class Entry(TypedDict):
    """A file's entry in the manifest."""

    size: int
    """Bytes."""
    xxh3: str
    """Checksum, 128 bits in hex."""


@dataclass(frozen=True)
class Manifest:
    """What COMMIT holds."""

    step: int
    files: dict[str, Entry]


@dataclass(frozen=True)
class Progress:
    best_step: int | None
    step: int | None = None


@dataclass(frozen=True)
class _StateFile:
    """The part of state.json that is needed to check a checkpoint and to find the best."""

    state: Progress


@dataclass(frozen=True)
class Summary:
    """The part of state.json that a listing needs."""

    world_size: int
    state: Progress
    transform: dict[str, Any] | None = None
    """Transform from stored values to the model's."""
    data: dict[str, Any] | None = None
    """The data that it was trained on: see `data.identity`."""
    settings: dict[str, Any] = field(default_factory=dict)
    """The settings that define the result."""


def name_of(step: int) -> str:
    return f"step_{step:08}"


def step_of(path: Path) -> int:
    return int(path.name.removeprefix("step_"))


def checkpoints_in(folder: Path) -> list[Path]:
    """All folders named like a checkpoint, newest first, valid or not. Raises OSError if the folder cannot be listed."""
    try:
        found = [p for p in folder.iterdir() if re.fullmatch(r"step_[0-9]+", p.name)]
    except FileNotFoundError:
        if folder.is_symlink():  # to a disk that is not mounted, say: not the same as no checkpoints
            raise
        return []
    return sorted(found, key=lambda p: (-step_of(p), p.name))


def steps_in(folder: Path) -> list[int]:
    """Steps of all checkpoint folders, newest first, whether valid or not."""
    return [step_of(p) for p in checkpoints_in(folder)]


def manifest_of(path: Path) -> Manifest:
    """The manifest in a checkpoint's marker. Raises OSError if it is missing or unreadable, ValueError if it is damaged."""
    manifest = decode(read_bytes(path / COMMIT), Manifest)
    for name in manifest.files:
        if not re.fullmatch(r"[a-z][\w.-]{0,200}", name, re.ASCII):
            raise ValueError(f"{name[:80]!r} is not a file of a checkpoint")
    if STATE not in manifest.files:
        raise ValueError(f"{STATE} is not in it")
    return manifest


def summary_of(path: Path) -> Summary | None:
    """The part of state.json that a listing needs; None if it is damaged."""
    try:
        return decode(read_bytes(path / STATE), Summary)
    except (OSError, ValueError):
        return None


def _progress_of(path: Path) -> Progress | None:
    """Step and best step at the save; None if state.json is damaged. The rest of that file is not made into objects."""
    try:
        return decode(read_bytes(path / STATE), _StateFile).state
    except (OSError, ValueError):
        return None


def why_invalid(path: Path) -> str | None:
    """Why a checkpoint is unusable, as `usable_manifest` checks it; None if it is usable."""
    try:
        usable_manifest(path)
    except ValueError as error:
        return str(error)
    return None


def usable_manifest(path: Path) -> Manifest:
    """The manifest of a checkpoint whose marker, step, and presence and size of files are right. Checksums are not compared.

    Raises ValueError naming what is wrong.
    """
    if path.is_symlink():
        raise ValueError("it is a link")
    try:
        manifest = manifest_of(path)
    except FileNotFoundError:
        raise ValueError(f"no {COMMIT} marker") from None
    except OSError as error:
        raise ValueError(f"{COMMIT} cannot be read ({in_words(error)})") from error
    except ValueError as error:
        raise ValueError(f"{COMMIT} is damaged: {error}") from error
    if name_of(manifest.step) != path.name:
        raise ValueError(f"it contains step {manifest.step}")
    if why := next(filter(None, (_why_bad(path / name, entry) for name, entry in manifest.files.items())), None):
        raise ValueError(why)
    progress = _progress_of(path)
    if progress and progress.step not in (None, manifest.step):
        raise ValueError(f"{STATE} is of step {progress.step}")
    return manifest


def _why_bad(file: Path, entry: Entry) -> str | None:
    try:
        found = file.lstat()
    except FileNotFoundError:
        return f"{file.name} is missing"
    except OSError as error:
        return f"{file.name} cannot be read ({error.strerror})"
    if not stat.S_ISREG(found.st_mode):
        return f"{file.name} is not a regular file"
    if found.st_size != entry["size"]:
        return f"{file.name} has {found.st_size} bytes instead of {entry['size']}"
    return None


def best_of(valid: list[Path], best_step: int | None) -> int | None:
    """`best_step` if it is among `valid`; if not (its save failed), the newest earlier best that is, as their states record."""
    steps = {step_of(p) for p in valid}
    if best_step is None or best_step in steps:
        return best_step
    former = (progress.best_step for progress in map(_progress_of, valid) if progress)
    return next((step for step in former if step in steps), None)


def retain(folder: Path, keep_latest_k: int, committed: int, best_step: int | None) -> None:
    """Delete all valid checkpoints up to `committed`, except the newest `keep_latest_k` of them and the best.

    Newer ones are left from before the run was resumed at an earlier step: they are kept. What cannot be deleted stays.
    """
    valid = [p for p in checkpoints_in(folder) if step_of(p) <= committed and why_invalid(p) is None]
    best = best_of(valid, best_step)
    for path in valid[keep_latest_k:]:
        if step_of(path) not in (committed, best):
            remove(path)


def remove(path: Path) -> None:
    """Delete a checkpoint, its marker first, so that an interruption leaves no valid one. Of a link, only the link."""
    if path.is_symlink():
        path.unlink()
        return
    try:
        (path / COMMIT).unlink(missing_ok=True)
    except OSError:
        return
    shutil.rmtree(path, ignore_errors=True)


def replace(path: Path, new: Path) -> None:
    """Replace a checkpoint by `new`. If that is interrupted, `recover` finds one or the other."""
    old = path.with_name(f".{path.name}.replaced")
    shutil.rmtree(old, ignore_errors=True)
    path.rename(old)
    new.rename(path)
    shutil.rmtree(old, ignore_errors=True)


def recover(folder: Path) -> None:
    """Put back what an interrupted `replace` moved away."""
    for old in folder.glob(".step_*.replaced"):
        path = folder / old.name[1:].removesuffix(".replaced")
        if os.path.lexists(path):
            shutil.rmtree(old, ignore_errors=True)
        else:
            old.rename(path)


def remove_remains(folder: Path, newest: int) -> None:
    """Delete what is left of checkpoints before `newest` whose deletion was interrupted: folders that no longer have a marker."""
    for path in checkpoints_in(folder):
        if step_of(path) < newest and path.is_dir() and not path.is_symlink() and not os.path.lexists(path / COMMIT):
            shutil.rmtree(path, ignore_errors=True)


def set_aside(path: Path) -> Path:
    """Rename a damaged checkpoint, so that it is no longer used but its bytes are kept. Returns the new path."""
    names = [f"damaged_{path.name}", *(f"damaged_{path.name}.{n}" for n in range(2, 1000))]
    target = next(path.with_name(n) for n in names if not os.path.lexists(path.with_name(n)))
    path.rename(target)
    return target
