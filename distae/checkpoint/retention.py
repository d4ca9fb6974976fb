"""A folder of checkpoints on disk: names, validity, commit, retention. One process at a time; no torch.

step_00001000/
    shard-00001-model-00001-of-00001.safetensors    what rank 0 wrote: tensors are shared out over the ranks
    state.json                                      everything that is no tensor
    COMMIT                                          size and checksum of each file, written last: without it, no checkpoint
"""

import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypedDict

from distae.runtime.files import decode

COMMIT, STATE = "COMMIT", "state.json"


class Entry(TypedDict):
    """A file as the manifest has it."""

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


@dataclass(frozen=True)
class Summary:
    """The part of state.json that a listing needs."""

    world_size: int
    state: Progress
    transform: dict[str, Any] | None = None
    """What made the model's values of the stored ones."""


def name_of(step: int) -> str:
    return f"step_{step:08}"


def steps_in(folder: Path) -> list[int]:
    """Steps of all checkpoint folders, newest first, whether valid or not."""
    found = (re.fullmatch(r"step_(\d+)", p.name) for p in folder.glob("step_*"))
    return sorted((int(m[1]) for m in found if m), reverse=True)


def manifest_of(path: Path) -> dict[str, Entry]:
    """The files of a checkpoint, by name. Raises OSError or ValueError where the marker is missing or damaged."""
    files = decode((path / COMMIT).read_bytes(), Manifest).files
    for name in files:
        if not re.fullmatch(r"[a-z][\w.-]{0,200}", name, re.ASCII):
            raise ValueError(f"{name[:80]!r} is no file of a checkpoint")
    return files


def summary_of(path: Path) -> Summary | None:
    """What a listing needs of state.json; None where that is damaged."""
    try:
        return decode((path / STATE).read_bytes(), Summary)
    except (OSError, ValueError):
        return None


def why_invalid(path: Path) -> str | None:
    """What makes a checkpoint unusable, None where nothing does: its marker, and presence and size of its files."""
    try:
        files = manifest_of(path)
    except OSError:
        return f"no {COMMIT} marker"
    except ValueError as error:
        return f"{COMMIT} is damaged: {error}"
    if STATE not in files:
        return f"{COMMIT} is damaged: {STATE} is not in it"
    for name, entry in files.items():
        file = path / name
        if not file.is_file():
            return f"{name} is missing"
        if file.stat().st_size != entry["size"]:
            return f"{name} has {file.stat().st_size} bytes instead of {entry['size']}"
    return None


def retain(folder: Path, keep_latest_k: int, best_step: int | None) -> None:
    """Delete all but the newest `keep_latest_k` valid checkpoints and the best. What cannot be deleted stays."""
    valid = [s for s in steps_in(folder) if why_invalid(folder / name_of(s)) is None]
    for step in valid[keep_latest_k:]:
        if step != best_step:
            remove(folder / name_of(step))


def remove(path: Path) -> None:
    """Delete a checkpoint, its marker first: what an interruption leaves does not look valid."""
    try:
        (path / COMMIT).unlink(missing_ok=True)
    except OSError:
        return
    shutil.rmtree(path, ignore_errors=True)
