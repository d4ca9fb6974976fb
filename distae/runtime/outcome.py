"""How a run ended, for whoever started it: outcome.json and the exit code."""

import contextlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from distae.runtime.files import decode, read_bytes, write_atomically

FILE, FORMER = "outcome.json", ".outcome.json.former"
"""FORMER: the outcome of an earlier launch, until this one is accepted."""
EXIT_CODES = {"done": 0, "failed": 1, "stopped": 75}
"""stopped: after a valid save; rerun to resume. Invalid input exits with 2 and leaves no outcome."""


@dataclass(frozen=True)
class Outcome:
    """The end of a run."""

    outcome: Literal["done", "failed", "stopped"]
    step: int
    run_dir: str
    reason: str = ""
    signal: str = ""
    """The signal that stopped it, such as `SIGUSR2`; the same on all ranks."""

    @property
    def exit_code(self) -> int:
        return EXIT_CODES[self.outcome]

    def write(self) -> None:
        write_atomically(Path(self.run_dir) / FILE, json.dumps(asdict(self)).encode() + b"\n")
        (Path(self.run_dir) / FORMER).unlink(missing_ok=True)


def read(run_dir: Path) -> Outcome | None:
    """Contents of outcome.json; None if it is missing, damaged or not a regular file."""
    try:
        return decode(read_bytes(run_dir / FILE), Outcome)
    except (OSError, ValueError):
        return None


def set_aside(run_dir: Path) -> None:
    """Hide the outcome of an earlier launch: a launcher's restart would take it for that of this one."""
    with contextlib.suppress(FileNotFoundError):
        (run_dir / FILE).rename(run_dir / FORMER)


def put_back(run_dir: Path) -> None:
    """Undo `set_aside`: this launch was rejected, or was killed before it was accepted."""
    if not (run_dir / FILE).exists():
        with contextlib.suppress(FileNotFoundError):
            (run_dir / FORMER).rename(run_dir / FILE)


def forget(run_dir: Path) -> None:
    """Remove the outcome of an earlier launch: this one is accepted."""
    for name in (FILE, FORMER):
        (run_dir / name).unlink(missing_ok=True)
