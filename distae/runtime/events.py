"""events.jsonl: when and where a run started and was saved."""

import contextlib
import json
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from distae.runtime.files import decode, open_append, read_bytes

FILE = "events.jsonl"
LARGEST = 64 << 20
"""Most bytes that are read: some hundred thousand events."""


@dataclass(frozen=True)
class Event:
    """A line of events.jsonl. A run that was resumed from an earlier step has later events of lower steps."""

    event: Literal["start", "checkpoint"]
    step: int
    time: float
    """Seconds since 1970."""
    environment: dict[str, Any] = field(default_factory=dict)
    """Of a start: commit, versions and devices."""


def record(run_dir: Path, event: Literal["start", "checkpoint"], step: int, **environment: Any) -> None:
    """Append an event; if that fails, the run continues without it."""
    line = {"event": event, "step": step, "time": time.time()} | ({"environment": environment} if environment else {})
    with contextlib.suppress(OSError):
        descriptor = open_append(run_dir / FILE)
        try:
            os.write(descriptor, json.dumps(line).encode() + b"\n")
        finally:
            os.close(descriptor)


def read(run_dir: Path) -> list[Event]:
    """The events of a run, oldest first; lines that are torn or damaged are left out. Empty for runs of earlier versions."""
    return [*_decoded(run_dir / FILE)]


def _decoded(path: Path) -> Iterator[Event]:
    with contextlib.suppress(OSError):
        for line in read_bytes(path, LARGEST).splitlines():
            with contextlib.suppress(ValueError):
                yield decode(line, Event)
