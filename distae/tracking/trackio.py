"""Trackio: a run in the local database of the package, or on a server that its variables name."""

import contextlib
import io
import os
from pathlib import Path
from typing import Any

from distae.config import to_dict
from distae.tracking.recorded import metrics_of, repeat
from distae.tracking.sink import Row, Start, register_sink
from distae.tracking.wandb import group_of, kept_id

ELSEWHERE = ("TRACKIO_SPACE_ID", "TRACKIO_SERVER_URL")


@register_sink("trackio")
class Trackio:
    """One run per run folder. A local one is written anew at each start from what is recorded, so that no row is there twice; one
    elsewhere is continued."""

    def __init__(self, start: Start) -> None:
        import trackio

        project = os.environ.get("TRACKIO_PROJECT", "distae")
        name = f"{start.run_dir.resolve().name} {kept_id(start.run_dir / 'trackio_id', start.say)}"
        is_local = not any(os.environ.get(variable) for variable in ELSEWHERE)
        config = to_dict(start.cfg) | {"environment": start.environment}
        with _quiet():
            if is_local:
                _delete(trackio, project, name)
            how: dict[str, Any] = {"group": group_of(start.run_dir), "embed": False, "auto_log_gpu": False, "auto_log_cpu": False}
            self.run = trackio.init(project, name, config=config, resume="never" if is_local else "allow", **how)
        if is_local:
            repeat(start.run_dir, self)
        start.say(f"Trackio: run {name!r} of project {project}; trackio show --project {project}")

    def row(self, row: Row) -> None:
        self.run.log(metrics_of(row), step=int(row["step"]))

    def image(self, name: str, path: Path, step: int) -> None:
        import trackio

        self.run.log({name: trackio.Image(str(path))}, step=step)

    def close(self) -> None:
        with _quiet():
            self.run.finish()


def _delete(trackio: Any, project: str, name: str) -> None:
    """Delete what was sent at the last start."""
    with contextlib.suppress(ValueError):  # there is no such project yet
        for run in trackio.Api().runs(project):
            if run.name == name:
                run.delete()


def _quiet() -> contextlib.redirect_stdout[io.StringIO]:
    """Without what the package prints."""
    return contextlib.redirect_stdout(io.StringIO())
