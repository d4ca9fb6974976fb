"""How a run ended, for whoever started it: outcome.json and the exit code."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from distae.runtime.files import decode, read_bytes, write_atomically

FILE = "outcome.json"
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
    """What it was stopped by, as `SIGUSR2`; the same on all ranks."""

    @property
    def exit_code(self) -> int:
        return EXIT_CODES[self.outcome]

    def write(self) -> None:
        write_atomically(Path(self.run_dir) / FILE, json.dumps(asdict(self)).encode() + b"\n")


def read(run_dir: Path) -> Outcome | None:
    """Contents of outcome.json; None if it is missing, damaged or not a regular file."""
    try:
        return decode(read_bytes(run_dir / FILE), Outcome)
    except (OSError, ValueError):
        return None
