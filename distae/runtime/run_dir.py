"""The run folder: making it, and checking that it is writable, complete, and has the same settings."""

import contextlib
import itertools
import os
import re
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from distae.config import TrainConfig, build, write_toml
from distae.config.check import identity_settings
from distae.errors import TrainingError, UserError
from distae.runtime import events, files, outcome
from distae.runtime.lock import RunLock, acquire

CONFIG = "config.toml"
SAVED = "saved"
"""An empty file, made with the first checkpoint: a run that has it but no checkpoint has lost them."""
FILES = (CONFIG, outcome.FILE, outcome.FORMER, "metrics.jsonl", "log.txt", events.FILE, "wandb_id", "lock", SAVED)
FOLDERS = ("images", "model", "profile")
DEEPEST = 8
"""Maximum nesting of tables in saved settings."""
WRITTEN = ("metrics.jsonl", "log.txt")


def check_run_dir(cfg: TrainConfig) -> None:
    """Raises UserError if the folder cannot be written to, lacks a part, or holds a run with other settings."""
    run_dir = Path(cfg.run_dir or ".")
    if not cfg.fresh and (why := files.why_unsafe(run_dir, FILES, FOLDERS)):
        raise UserError(f"--run-dir: {why}; remove it, or give another --run-dir")
    _check_writable(run_dir)
    if cfg.fresh:
        return
    steps = _steps_in(run_dir)
    if not steps:
        _check_unfinished(run_dir)
    if steps or (run_dir / CONFIG).exists():
        _check_settings(cfg, run_dir)


def _steps_in(run_dir: Path) -> list[int]:
    """Steps of the checkpoints, newest first; links are ignored. Raises UserError if they cannot be listed."""
    folder = run_dir / "checkpoints"
    try:
        found = [re.fullmatch(r"step_(\d+)", name) for name in files.names_in(folder) if not (folder / name).is_symlink()]
    except OSError as error:
        raise UserError(f"--run-dir: the checkpoints in {folder} cannot be listed: {files.in_words(error)}") from error
    return sorted((int(m[1]) for m in found if m), reverse=True)


def _check_unfinished(run_dir: Path) -> None:
    """Raises UserError if a run had checkpoints and has none now: it would start over and overwrite its own results."""
    end, has_model = outcome.read(run_dir), (run_dir / "model").exists()
    ended = end is not None and end.outcome != "failed"
    if not (ended or has_model or (run_dir / SAVED).exists()):
        return
    takes = " (--init-from takes its model)" if has_model else ""
    how = f"{end.outcome} at step {end.step}" if end else "finished" if has_model else f"killed{_after(run_dir)}"
    raise UserError(
        f"--run-dir: {run_dir} contains a run ({how}) whose checkpoints were deleted: it cannot be resumed.\n"
        f"Give another --run-dir{takes}, or --fresh to rename that run's folder and start a new run"
    )


def _after(run_dir: Path) -> str:
    """The step of the last complete row of metrics.jsonl, as ` after step 4`; empty if none can be read."""
    with contextlib.suppress(OSError, ValueError):
        *_, last, _ = files.read_end(run_dir / "metrics.jsonl", 1 << 16).split(b"\n")
        return f" after step {files.decode(last, _Row).step}"
    return ""


def mark_saved(run_dir: Path) -> None:
    """Note that the run has a checkpoint; if that fails, the next save tries again."""
    with contextlib.suppress(OSError):
        if not os.path.lexists(run_dir / SAVED):
            (run_dir / SAVED).touch()


@dataclass(frozen=True)
class _Row:
    """The part of a row of metrics.jsonl that is needed here."""

    step: int


def _check_settings(cfg: TrainConfig, run_dir: Path) -> None:
    if differ := _differences(read_settings(run_dir), cfg):
        raise UserError(
            f"--run-dir: {run_dir} contains a run with other settings: {differ}.\n"
            "Give another --run-dir, or --fresh to rename that run's folder and start a new run"
        )


def _differences(one: TrainConfig, other: TrainConfig) -> str:
    """Settings that define the result and differ, as text; empty if none does."""
    return differences(identity_settings(one), identity_settings(other), "there")


def differences(there: dict[str, Any], here: dict[str, Any], where: str) -> str:
    """The differences of two identities as text; empty if they are equal."""
    differ = [k for k in there | here if there.get(k) != here.get(k)]
    shown = [f"{k} is {there.get(k)} {where} and {here.get(k)} here" for k in differ[:4]]
    return "; ".join(shown) + (f"; and {len(differ) - 4} more" if len(differ) > 4 else "")


def settings_of(run_dir: Path, saved: dict[str, Any]) -> TrainConfig:
    """The settings of a run. Raises UserError if they are not those that a checkpoint has `saved`."""
    cfg = read_settings(run_dir)
    check_saved(saved, cfg)
    return cfg


def check_saved(saved: dict[str, Any], cfg: TrainConfig) -> None:
    """Raises UserError if the settings that a checkpoint has `saved` define a different result than `cfg`."""
    if differ := _differences(build(TrainConfig, _nested(saved)), cfg):
        raise UserError(f"the checkpoint has other settings: {differ}; the run's {CONFIG} or the checkpoint was changed")


@dataclass(frozen=True)
class _State:
    """The part of a checkpoint's state.json that names the settings."""

    settings: dict[str, Any]


def read_settings(run_dir: Path) -> TrainConfig:
    """The settings of a run: config.toml or, if that is missing, those in its newest checkpoint.

    A checkpoint holds only what defines the result; the rest has its defaults. Raises UserError if there are none.
    """
    path = run_dir / CONFIG
    try:
        table = files.read_toml(path)
        if not table:
            raise ValueError("it is empty; without it, the settings are those of the newest checkpoint")
    except FileNotFoundError as error:
        table = _saved_settings(run_dir)
        if not table:
            raise UserError(f"--run-dir: no run in {run_dir}: {CONFIG} is missing, and no checkpoint has its settings") from error
    except (OSError, ValueError) as error:
        raise UserError(f"--run-dir: {path} is damaged: {files.in_words(error)}") from error
    return build(TrainConfig, table)


def _saved_settings(run_dir: Path) -> dict[str, Any]:
    """The nested settings in state.json of the newest checkpoint whose settings can be read; empty if there is none."""
    for step in _steps_in(run_dir):
        for path in (run_dir / "checkpoints").glob(f"step_*{step}/state.json"):
            try:
                return _nested(files.decode(files.read_bytes(path), _State).settings)
            except (OSError, ValueError, UserError):
                continue
    return {}


def _nested(settings: dict[str, Any]) -> dict[str, Any]:
    """`{"model.name": x}` as `{"model": {"name": x}}`; None is left out. Raises UserError if they are damaged."""
    table: dict[str, Any] = {}
    for dotted, value in settings.items():
        *path, last = dotted.split(".", DEEPEST)
        inner = table
        for part in path:
            inner = inner.setdefault(part, {})
            if not isinstance(inner, dict) or "." in last:
                raise UserError(f"the settings in the checkpoint are damaged: {dotted[:80]!r} is nested in a value, or too deep")
        if value is not None:
            inner[last] = value
    return table


def _check_writable(run_dir: Path) -> None:
    """Raises UserError if the folder cannot be written to. Does not make it: a rejected run leaves nothing behind."""
    existing = next(p for p in (run_dir, *run_dir.absolute().parents) if p.exists() or p.is_symlink())
    try:
        with tempfile.TemporaryFile(dir=existing):
            pass
        for name in WRITTEN:
            if (run_dir / name).exists():
                os.close(os.open(run_dir / name, os.O_WRONLY | os.O_APPEND | os.O_NONBLOCK))
    except OSError as error:
        what = error.filename if error.filename and Path(error.filename).name in WRITTEN else run_dir
        raise UserError(f"--run-dir: cannot write to {what} ({error.strerror}); give a writable folder") from error


@dataclass
class OpenRunDir:
    """An opened run folder, and what to undo if this start is rejected."""

    path: Path
    made: list[Path]
    """Folders that were not there before, the innermost first."""
    lock: RunLock | None = None
    """Rank 0's."""
    aside: Path | None = None
    """Where `--fresh` has moved the run that was there."""

    def release(self) -> None:
        """Release the lock."""
        if self.lock:
            self.lock.release()

    def withdraw(self) -> None:
        """Release the lock and restore what was there before, unless the run has begun to write."""
        self.release()
        with contextlib.suppress(OSError):
            if self.aside:
                self.path.rmdir()
                self.aside.rename(self.path)
            for folder in self.made:
                folder.rmdir()


def make_run_dir(cfg: TrainConfig) -> OpenRunDir:
    """Make the run folder, without a lock. Raises UserError if that fails."""
    path = Path(cfg.run_dir or ".").absolute()
    made = [p for p in (path, *path.parents) if not p.exists()]
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--run-dir: cannot make {cfg.run_dir} ({error.strerror}); give a writable folder") from error
    return OpenRunDir(Path(cfg.run_dir or "."), made)


def open_run_dir(cfg: TrainConfig) -> OpenRunDir:
    """Make and lock the run folder, and rename an existing one with `--fresh`. Raises UserError if another process has it."""
    folder = make_run_dir(cfg)
    try:
        folder.lock = acquire(folder.path)
        if cfg.fresh and _holds_run(folder.path):
            folder.lock.release()
            folder.lock = None
            folder.aside = _move_aside(folder.path)
            folder.lock = acquire(folder.path)
    except UserError:
        folder.withdraw()
        raise
    return folder


def accept(cfg: TrainConfig) -> None:
    """Write the settings of a start that will train, and remove how the last one ended. Raises TrainingError."""
    run_dir = Path(cfg.run_dir or ".")
    if not (run_dir / CONFIG).exists() and _steps_in(run_dir):
        sys.stderr.write(f"distae: {run_dir / CONFIG} was missing; the settings are those of the newest checkpoint\n")
    try:
        outcome.forget(run_dir)
        files.write_atomically(run_dir / CONFIG, write_toml(cfg).encode())
    except OSError as error:
        raise TrainingError(f"--run-dir: cannot write to {run_dir / CONFIG}: {files.in_words(error)}") from error


def _holds_run(run_dir: Path) -> bool:
    return any((run_dir / name).exists() for name in (CONFIG, outcome.FILE, "checkpoints", "model", "metrics.jsonl"))


def _move_aside(run_dir: Path) -> Path:
    """Rename the run's folder and make an empty one; returns the new path. Raises UserError if the parent does not allow it."""
    try:
        aside = run_dir.rename(_aside(run_dir))
        run_dir.mkdir()
        return aside
    except OSError as error:
        raise UserError(f"--fresh: the run in {run_dir} cannot be moved aside: {error.strerror}; give another --run-dir") from error


def _aside(run_dir: Path) -> Path:
    """A free name: two runs may be renamed in the same second."""
    first = f"{run_dir.name}.{time.strftime('%Y%m%d-%H%M%S')}"
    names = itertools.chain([first], (f"{first}-{n}" for n in itertools.count(2)))
    return next(path for path in map(run_dir.with_name, names) if not path.exists())
