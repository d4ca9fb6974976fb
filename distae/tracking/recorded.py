"""What a run folder has recorded: rows of metrics.jsonl, and pictures."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from distae.errors import UserError
from distae.runtime.files import in_words, read_bytes
from distae.tracking.jsonl import LONGEST_ROW
from distae.tracking.sink import Row, Sink

LARGEST = 4 << 30
"""Largest metrics.jsonl in bytes: about ten million rows."""


class Picture(NamedTuple):
    """A file of RUN/images."""

    name: str
    """Such as `val/samples`."""
    path: Path
    step: int


def rows(run_dir: Path) -> list[dict[str, Any]]:
    """The rows of metrics.jsonl. Raises UserError if there is none, or it is damaged."""
    path = run_dir / "metrics.jsonl"
    try:
        return [_row(line, number) for number, line in enumerate(read_bytes(path, LARGEST).splitlines(), 1)]
    except FileNotFoundError as error:
        raise UserError(f"no run in {run_dir}: metrics.jsonl is missing") from error
    except (OSError, ValueError) as error:
        raise UserError(f"{path} is damaged: {in_words(error)}") from error


def _row(line: bytes, number: int) -> dict[str, Any]:
    """Raises ValueError if the line is not a row of numbers with a step."""
    try:
        row = json.loads(line) if len(line) <= LONGEST_ROW else {}
        if all(isinstance(value, int | float) for value in row.values()) and int(row["step"]) >= 0:
            return dict(row)
    except (ValueError, LookupError, AttributeError, OverflowError, RecursionError):
        pass
    raise ValueError(f"line {number} is not a row of metrics; remove it to upload the others")


def pictures(run_dir: Path) -> Iterator[Picture]:
    """All, by name."""
    for path in sorted((run_dir / "images").glob("*.png")):
        if found := re.fullmatch(r"(\w+?)_(\w+)_(\d+)", path.stem):
            yield Picture(f"{found[1]}/{found[2]}", path, int(found[3]))


def metrics_of(row: Row) -> dict[str, float]:
    """Without step, epoch and time."""
    return {name: float(value) for name, value in row.items() if "/" in name}


def repeat(run_dir: Path, sink: Sink) -> None:
    """Give a sink all that was recorded before this start: a sink that begins with nothing then has each row once.

    Rows after the checkpoint that a run resumes from are no longer in metrics.jsonl. Pictures count if the evaluation that they are
    of has a row.
    """
    try:
        there = rows(run_dir)
    except UserError:  # that metrics.jsonl is damaged was reported when it was opened
        return
    evaluated = {(name.partition("/")[0], int(row["step"])) for row in there for name in metrics_of(row)}
    for row in there:
        sink.row(row)
    for picture in pictures(run_dir):
        if (picture.name.partition("/")[0], picture.step) in evaluated:
            sink.image(*picture)
