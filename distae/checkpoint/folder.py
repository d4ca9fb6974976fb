"""A folder of checkpoints on disk: names, validity, commit, retention. One process at a time; no torch.

step_00001000/
    shard-00001-model-00001-of-00001.safetensors    what rank 0 wrote: tensors are shared out over the ranks
    state.json                                      everything that is no tensor
    COMMIT                                          size and checksum of each file, written last: without it, no checkpoint
"""

import json
import re
import shutil
from pathlib import Path

COMMIT, STATE = "COMMIT", "state.json"


def name_of(step: int) -> str:
    return f"step_{step:08}"


def steps_in(folder: Path) -> list[int]:
    """Steps of all checkpoint folders, newest first, whether valid or not."""
    found = (re.fullmatch(r"step_(\d+)", p.name) for p in folder.glob("step_*"))
    return sorted((int(m[1]) for m in found if m), reverse=True)


def manifest_of(path: Path) -> dict[str, dict[str, object]]:
    """The files of a checkpoint, by name. Raises OSError or ValueError where the marker is missing or damaged."""
    manifest = json.loads((path / COMMIT).read_bytes())
    files = manifest.get("files") if isinstance(manifest, dict) else None
    if not isinstance(files, dict) or not all(isinstance(e, dict) and {"size", "xxh3"} <= set(e) for e in files.values()):
        raise ValueError(f"{COMMIT} is damaged")
    if any("/" in name or name.startswith(".") for name in files):
        raise ValueError(f"{COMMIT} names files outside the folder")
    return files


def why_invalid(path: Path) -> str | None:
    """What makes a checkpoint unusable, None where nothing does: its marker, and presence and size of its files."""
    try:
        files = manifest_of(path)
    except OSError:
        return f"no {COMMIT} marker"
    except ValueError:
        return f"{COMMIT} is damaged"
    if STATE not in files:
        return f"{COMMIT} is damaged"
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
