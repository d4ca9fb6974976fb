"""The one W&B run of a run folder, built from the files that are always on disk.

Without network, each start of a run leaves its own offline folder with the same id, and the one that is synced last
overwrites the others. So one run is built from metrics.jsonl and the pictures, and synced; that can be repeated.
"""

import json
import re
import shutil
import sys
from pathlib import Path
from typing import Any

from distae.config import to_dict
from distae.errors import UserError
from distae.runtime.files import in_words, read_bytes
from distae.runtime.run_dir import read_settings
from distae.tracking import wandb_identity
from distae.tracking.jsonl import LONGEST_ROW

FOLDER = "wandb_sync"
LARGEST = 4 << 30
"""Largest metrics.jsonl in bytes: about ten million rows."""


def rebuild(run_dir: Path) -> Path:
    """Write the run as one offline folder of W&B; returns its path. Raises UserError if there is no run, or it is damaged."""
    rows, cfg = _rows(run_dir), read_settings(run_dir)
    import wandb

    folder = run_dir / FOLDER
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    kwargs: dict[str, Any] = wandb_identity(run_dir, _say) | {"dir": str(folder), "config": to_dict(cfg)}
    run = wandb.init(mode="offline", settings=wandb.Settings(console="off", silent=True), **kwargs)
    run.define_metric("*", step_metric="step")
    for row in rows:
        run.log({k: wandb.Image(str(v)) if isinstance(v, Path) else v for k, v in row.items()})
    run.finish()
    return next((folder / "wandb").glob("offline-run-*"))


def _say(text: str) -> None:
    sys.stderr.write(f"{text}\n")


def _rows(run_dir: Path) -> list[dict[str, Any]]:
    """The rows of metrics.jsonl, and the pictures as paths, by step."""
    path = run_dir / "metrics.jsonl"
    try:
        rows = [_row(line, number) for number, line in enumerate(read_bytes(path, LARGEST).splitlines(), 1)]
    except FileNotFoundError as error:
        raise UserError(f"no run in {run_dir}: metrics.jsonl is missing") from error
    except (OSError, ValueError) as error:
        raise UserError(f"{path} is damaged: {in_words(error)}") from error
    for picture in sorted((run_dir / "images").glob("*.png")):
        if found := re.fullmatch(r"(\w+?)_(\w+)_(\d+)", picture.stem):
            rows.append({f"{found[1]}/{found[2]}": picture, "step": int(found[3])})
    return sorted(rows, key=lambda row: int(row["step"]))


def _row(line: bytes, number: int) -> dict[str, Any]:
    """Raises ValueError if the line is not a row of numbers with a step."""
    try:
        row = json.loads(line) if len(line) <= LONGEST_ROW else {}
        if all(isinstance(value, int | float) for value in row.values()) and int(row["step"]) >= 0:
            return dict(row)
    except (ValueError, LookupError, AttributeError, OverflowError, RecursionError):
        pass
    raise ValueError(f"line {number} is not a row of metrics; remove it to upload the others")
