"""The run folder: where it is, whether it may be written, and whether it holds a run of other settings."""

import itertools
import os
import tempfile
import time
from pathlib import Path

from distae.config import TrainConfig, build, write_toml
from distae.config.check import identity_settings
from distae.config.cli import read_toml
from distae.errors import UserError
from distae.runtime.lock import RunLock, acquire

CONFIG = "config.toml"
WRITTEN = ("metrics.jsonl", "log.txt")


def check_run_dir(cfg: TrainConfig) -> None:
    """Raises UserError where the folder cannot be written to, or holds a run whose result is defined by other settings."""
    run_dir = Path(cfg.run_dir or ".")
    _check_writable(run_dir)
    if cfg.fresh or not (run_dir / CONFIG).is_file():
        return
    there, here = identity_settings(build(TrainConfig, read_toml(str(run_dir / CONFIG), "run-dir"))), identity_settings(cfg)
    differ = [f"{k} is {there.get(k)} there and {here.get(k)} here" for k in there | here if there.get(k) != here.get(k)]
    if differ:
        shown = "; ".join(differ[:4]) + (f"; and {len(differ) - 4} more" if len(differ) > 4 else "")
        raise UserError(
            f"--run-dir: {run_dir} holds a run of other settings: {shown}.\n"
            "Give another --run-dir, or --fresh to move that run aside and start anew"
        )


def _check_writable(run_dir: Path) -> None:
    """Without making it: a run that is refused leaves nothing. Raises UserError."""
    existing = next(p for p in (run_dir, *run_dir.absolute().parents) if p.exists() or p.is_symlink())
    try:
        with tempfile.TemporaryFile(dir=existing):
            pass
        for name in WRITTEN:
            if (run_dir / name).exists():
                os.close(os.open(run_dir / name, os.O_WRONLY | os.O_APPEND | os.O_NONBLOCK))
    except OSError as error:
        what = error.filename if error.filename and Path(error.filename).name in WRITTEN else run_dir
        raise UserError(f"--run-dir: cannot write to {what} ({error.strerror}); give a folder that can be written") from error


def make_run_dir(cfg: TrainConfig) -> None:
    """The run folder. Raises UserError where it cannot be made."""
    try:
        Path(cfg.run_dir or ".").mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--run-dir: cannot make {cfg.run_dir} ({error.strerror}); give a folder that can be written") from error


def open_run_dir(cfg: TrainConfig) -> RunLock:
    """Take the run folder, move an existing run aside where `--fresh` says so, and keep the settings in config.toml.

    Raises UserError where another process has the folder.
    """
    run_dir = Path(cfg.run_dir or ".")
    make_run_dir(cfg)
    lock = acquire(run_dir)
    if cfg.fresh and (run_dir / CONFIG).is_file():
        lock.release()
        run_dir.rename(_aside(run_dir))
        run_dir.mkdir()
        lock = acquire(run_dir)
    fresh = run_dir / f".{CONFIG}.writing"
    fresh.write_text(write_toml(cfg))
    fresh.rename(run_dir / CONFIG)
    return lock


def _aside(run_dir: Path) -> Path:
    """A name that is free: two runs may be moved aside in one second."""
    first = f"{run_dir.name}.{time.strftime('%Y%m%d-%H%M%S')}"
    names = itertools.chain([first], (f"{first}-{n}" for n in itertools.count(2)))
    return next(path for path in map(run_dir.with_name, names) if not path.exists())
