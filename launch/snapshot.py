"""A copy of the code: jobs run the code as submitted."""

import hashlib
import os
import shutil
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import distae
from distae.config import plugin
from distae.errors import UserError

ROOT = Path(distae.__file__).parents[1]


def take(into: Path, include: Sequence[str] = (), of_user: str | None = None, root: Path = ROOT) -> Path:
    """Copy the files that git tracks, as they are now, `include` and the plugin `of_user` to `into/HASH`; returns that folder.

    It also holds COMMIT and DIFF (against that commit). The same code is copied once. Raises UserError outside a git checkout.
    """
    commit, diff = _git(root, "rev-parse", "HEAD"), _git(root, "diff", "HEAD", "--binary")
    files = {Path(name): root / name for name in _names(root) if (root / name).is_file()}
    files |= {file.relative_to(root): file for name in include for file in _expand(root, name)}
    if of_user:
        files |= {home(of_user, root) / name: file for name, file in plugin.files(of_user).items()}
    if left_out := set(_names(root, "--others", "--exclude-standard")) - {name.as_posix() for name in files}:
        shown = ", ".join(sorted(left_out)[:4]) + (" …" if len(left_out) > 4 else "")
        sys.stderr.write(f"not in the snapshot, because git does not track it: {shown} (--snapshot-include, or git add)\n")
    folder = into / _digest(commit, files)
    if folder.is_dir():
        return folder
    fresh = folder.with_name(f".{folder.name}.writing.{os.getpid()}")
    for name, file in files.items():
        copy = fresh / name
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(file, copy)
    (fresh / "COMMIT").write_bytes(commit)
    (fresh / "DIFF").write_bytes(diff)
    fresh.rename(folder)
    return folder


def home(of_user: str, root: Path = ROOT) -> Path:
    """The folder in a snapshot that holds the plugin: that of the checkout, or `plugin` if it is from outside."""
    folder = Path(of_user).resolve().parent
    return folder.relative_to(root) if folder.is_relative_to(root) else Path("plugin")


def _expand(root: Path, name: str) -> Iterable[Path]:
    path = (root / name).resolve()
    if not path.is_relative_to(root) or not path.exists():
        raise UserError(f"--snapshot-include: no {name} in {root}")
    return [path] if path.is_file() else [p for p in sorted(path.rglob("*")) if p.is_file()]


def _digest(commit: bytes, files: Mapping[Path, Path]) -> str:
    digest = hashlib.sha256(commit)
    for name, file in files.items():
        digest.update(str(name).encode() + b"\0" + file.read_bytes())
    return digest.hexdigest()[:12]


def _names(root: Path, *options: str) -> list[str]:
    return [name for name in _git(root, "ls-files", "-z", *options).decode().split("\0") if name]


def _git(root: Path, *args: str) -> bytes:
    done = subprocess.run(["git", "-C", str(root), *args], capture_output=True, check=False)
    if done.returncode:
        raise UserError(
            f"no snapshot: {root} is not a git checkout ({done.stderr.decode().strip()}); --no-snapshot runs the code there"
        )
    return done.stdout
