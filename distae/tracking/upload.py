"""The one W&B run of a run folder, built from the files that are always on disk.

Without network, each start of a run leaves its own offline folder with the same id, and the one that is synced last
overwrites the others. So one run is built from metrics.jsonl and the pictures, and synced; that can be repeated.
"""

import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from distae.config import to_dict
from distae.runtime.run_dir import read_settings
from distae.tracking import wandb_identity
from distae.tracking.recorded import pictures, rows

FOLDER = "wandb_sync"


class Extra(NamedTuple):
    """What a W&B run gets besides its rows and the pictures of training."""

    figures: Sequence[Mapping[str, Any]] = ()
    """The table of `distae evaluate`: rows of equal keys."""
    pictures: Mapping[str, Path] = {}
    model: Path | None = None
    """The folder of the exported model, which becomes an artifact."""


def rebuild(run_dir: Path, extra: Extra | None = None) -> Path:
    """Write the run as one offline folder of W&B; returns its path. Raises UserError if there is no run, or it is damaged."""
    recorded, cfg = _rows(run_dir), read_settings(run_dir)
    import wandb

    folder = run_dir / FOLDER
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    kwargs: dict[str, Any] = wandb_identity(run_dir, _say) | {"dir": str(folder), "config": to_dict(cfg)}
    run = wandb.init(mode="offline", settings=wandb.Settings(console="off", silent=True), **kwargs)
    run.define_metric("*", step_metric="step")
    for row in recorded:
        run.log({k: wandb.Image(str(v)) if isinstance(v, Path) else v for k, v in row.items()})
    _add(run, extra or Extra(), recorded[-1]["step"] if recorded else 0)
    run.finish()
    return next((folder / "wandb").glob("offline-run-*"))


def _add(run: Any, extra: Extra, step: int) -> None:
    import wandb

    if extra.figures:
        columns: list[str | int] = [*extra.figures[0]]
        table = wandb.Table(columns=columns, data=[[row[str(name)] for name in columns] for row in extra.figures])
        run.log({"evaluation": table, "step": step})
    for name, path in extra.pictures.items():
        run.log({name: wandb.Image(str(path)), "step": step})
    if extra.model:
        artifact = wandb.Artifact(f"model-{run.id}", type="model")
        artifact.add_dir(str(extra.model))
        run.log_artifact(artifact)


def _say(text: str) -> None:
    sys.stderr.write(f"{text}\n")


def _rows(run_dir: Path) -> list[dict[str, Any]]:
    """The rows of metrics.jsonl, and the pictures as paths, by step."""
    found = rows(run_dir) + [{picture.name: picture.path, "step": picture.step} for picture in pictures(run_dir)]
    return sorted(found, key=lambda row: int(row["step"]))
