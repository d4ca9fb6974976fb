"""The one W&B run of a run folder, made from what always is on disk.

Each start of a run without network leaves an offline folder of its own with the same id, and of those the one that is synced last
overwrites the others. So one run is built from metrics.jsonl and the pictures, and that is synced: as often as one likes.
"""

import json
import re
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from distae.config import TrainConfig, build, to_dict
from distae.config.cli import read_toml
from distae.errors import UserError
from distae.tracking import wandb_identity

FOLDER = "wandb_sync"


def rebuild(run_dir: Path) -> Path:
    """Write the run as one offline folder of W&B; returns that. Raises UserError where there is no run."""
    if not (run_dir / "metrics.jsonl").is_file():
        raise UserError(f"no run in {run_dir}: metrics.jsonl is missing")
    import wandb

    cfg = build(TrainConfig, read_toml(str(run_dir / "config.toml")))
    folder = run_dir / FOLDER
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    kwargs: dict[str, Any] = wandb_identity(run_dir, _say) | {"dir": str(folder), "config": to_dict(cfg)}
    run = wandb.init(mode="offline", settings=wandb.Settings(console="off", silent=True), **kwargs)
    run.define_metric("*", step_metric="step")
    for row in _rows(run_dir):
        run.log({k: wandb.Image(str(v)) if isinstance(v, Path) else v for k, v in row.items()})
    run.finish()
    return next((folder / "wandb").glob("offline-run-*"))


def _say(text: str) -> None:
    sys.stderr.write(f"{text}\n")


def _rows(run_dir: Path) -> Iterator[dict[str, Any]]:
    """The rows of metrics.jsonl, and the pictures as paths, by step."""
    rows = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    for path in sorted((run_dir / "images").glob("*.png")):
        if found := re.fullmatch(r"(\w+?)_(\w+)_(\d+)", path.stem):
            rows.append({f"{found[1]}/{found[2]}": path, "step": int(found[3])})
    yield from sorted(rows, key=lambda row: int(row["step"]))
