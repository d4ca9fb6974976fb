"""Compares two finished runs: bit for bit, or up to rounding."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

UNSTEADY = ("_seconds", "_per_second", "_fraction", "_bytes")
EXEMPT = ("log.txt", "lock", "config.toml", "outcome.json", "metrics.jsonl", "events.jsonl", "state.json", "COMMIT", "config.json")
"""Files that hold times, the name of the run folder, or sizes that follow from these: compared by parts, or by name only."""
VIEWS = ("report.html", ".report.html.writing")
"""Written after outcome.json, from the other files: a run that is killed there is done, and has no report."""


def timeless(row: dict[str, Any]) -> dict[str, Any]:
    """A row of metrics.jsonl without what differs between any two runs: times, rates and memory."""
    return {k: v for k, v in row.items() if k != "time" and not k.endswith(UNSTEADY)}


def rows_of(run: Path) -> list[Any]:
    """The rows of metrics.jsonl, timeless; a string for a line that is not a row."""
    rows: list[Any] = []
    for line in (run / "metrics.jsonl").read_bytes().splitlines():
        try:
            rows.append(timeless(json.loads(line)))
        except (ValueError, AttributeError):
            rows.append(f"no row: {line[:60]!r}")
    return rows


def last_checkpoint(run: Path) -> Path:
    return max((run / "checkpoints").glob("step_*"))


def state_of(run: Path) -> dict[str, Any]:
    """state.json of the last checkpoint without size and checksum of metrics.jsonl, which depend on how times are written."""
    state: dict[str, Any] = json.loads((last_checkpoint(run) / "state.json").read_bytes())
    return {k: v for k, v in state.items() if k not in ("metrics_bytes", "metrics_xxh3")}


def differences(a: Path, b: Path, steady_saves: bool = True) -> list[str]:
    """What differs between two finished runs, bit for bit: files and their contents, state, rows.

    With `steady_saves` false (`--save-every auto`) only the last checkpoint is compared: older ones are of different steps.
    """
    bare = [f"no checkpoint in {run.name}" for run in (a, b) if not any((run / "checkpoints").glob("step_*"))]
    if bare:
        return bare
    names = [_files(run, steady_saves) for run in (a, b)]
    found = [f"only in {a.name}: {name}" for name in sorted(names[0] - names[1])]
    found += [f"only in {b.name}: {name}" for name in sorted(names[1] - names[0])]
    for name in sorted(names[0] & names[1]):
        if Path(name).name not in EXEMPT and (a / name).read_bytes() != (b / name).read_bytes():
            found.append(f"bytes of {name}")
    one, two = state_of(a), state_of(b)
    found += [
        f"state.json: {k} is {str(one.get(k))[:60]} and {str(two.get(k))[:60]}" for k in one | two if one.get(k) != two.get(k)
    ]
    return found + _row_differences(rows_of(a), rows_of(b))


def leftovers(run: Path) -> list[str]:
    """Files that an interrupted start left behind."""
    return sorted(
        str(p.relative_to(run))
        for p in run.rglob("*")
        if (".writing" in str(p.relative_to(run)) or p.name.startswith(".lock")) and p.name not in VIEWS
    )


def _files(run: Path, steady_saves: bool) -> set[str]:
    names = {str(p.relative_to(run)) for p in run.rglob("*") if p.is_file() and p.name not in VIEWS}
    if steady_saves:
        return names
    last = last_checkpoint(run).name
    return {n for n in names if not re.match(r"checkpoints/step_", n) or last in n}


def _row_differences(a: list[Any], b: list[Any]) -> list[str]:
    found = [f"row {i}: {str(x)[:80]} != {str(y)[:80]}" for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y][:3]
    return [*found, f"{len(a)} rows and {len(b)}"] if len(a) != len(b) else found


def beyond(a: Path, b: Path, tolerance: float) -> list[str]:
    """What differs by more than `tolerance`, relative where the value is above 1: tensors of the last checkpoint, and rows."""
    from distae.checkpoint import read_tensors  # imports torch

    found = []
    one, two = ({k: v.numpy() for k, v in read_tensors(last_checkpoint(run)).items()} for run in (a, b))
    if one.keys() != two.keys():
        return [f"other tensors: {sorted(one.keys() ^ two.keys())[:4]}"]
    for name, x in one.items():
        difference = float(np.max(np.abs(x - two[name]) / np.maximum(np.abs(x), 1), initial=0))
        if not difference <= tolerance:
            found.append(f"{name}: {difference:.1e}")
    rows = rows_of(a), rows_of(b)
    if any(isinstance(r, str) for r in rows[0] + rows[1]) or [r.keys() for r in rows[0]] != [r.keys() for r in rows[1]]:
        return [*found, f"other rows: {len(rows[0])} and {len(rows[1])}"]
    return found + list(_values_beyond(*rows, tolerance))[:3]


def _values_beyond(a: list[Any], b: list[Any], tolerance: float) -> Iterator[str]:
    for i, (x, y) in enumerate(zip(a, b, strict=True)):
        for key, value in x.items():
            if not abs(value - y[key]) <= tolerance * max(1, abs(value)):
                yield f"row {i} {key}: {value} and {y[key]}"
