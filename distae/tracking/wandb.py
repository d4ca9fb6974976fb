"""Weights & Biases."""

import contextlib
import netrc
import os
import re
import socket
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

from distae.config import to_dict
from distae.runtime.files import read_bytes, write_atomically
from distae.tracking.sink import Row, Start, register_sink


@register_sink("wandb")
class Wandb:
    """One W&B run per run folder: its id is made once and kept there; the step is a metric, so a resumed run continues."""

    def __init__(self, start: Start) -> None:
        import wandb

        run_dir, say = start.run_dir, start.say

        mode: Any = _wandb_mode(wandb)
        # create_new: runs that train together in one process have a run each
        settings = wandb.Settings(console="off", silent=True, init_timeout=15, reinit="create_new")
        config = to_dict(start.cfg) | {"environment": start.environment}
        identity = wandb_identity(run_dir, say)
        # An absolute path: the service that writes there may be a sweep agent's, in a different working directory.
        kwargs: dict[str, Any] = identity | {"dir": str(run_dir.resolve()), "config": config, "settings": settings}
        try:
            self.run = wandb.init(mode=mode, resume="allow" if mode == "online" else None, **kwargs)
        except (wandb.errors.CommError, wandb.errors.UsageError) as error:
            say(f"W&B: {error}")
            mode = "offline"
            self.run = wandb.init(mode=mode, **kwargs)
        say(_where(mode, self.run, run_dir))
        self.run.define_metric("*", step_metric="step")

    def row(self, row: Row) -> None:
        self.run.log(dict(row))

    def image(self, name: str, path: Path, step: int) -> None:
        import wandb

        self.run.log({name: wandb.Image(str(path)), "step": step})

    def close(self) -> None:
        self.run.finish()


def _where(mode: str, run: Any, run_dir: Path) -> str:
    """Whether W&B is on, where the run goes, and how to change that; one line."""
    off = "--tracking none turns it off"
    if mode == "online":
        return f"W&B is online: {run.url}; WANDB_MODE=offline keeps the run here, {off}"
    if mode == "offline":
        why = "WANDB_MODE" if os.environ.get("WANDB_MODE") == mode else "no key or no network"
        return f"W&B is offline ({why}): sync later with `distae sync {run_dir}`; wandb login puts it online, {off}"
    return f"W&B is off (WANDB_MODE={mode}); WANDB_MODE=online or offline turns it on"


def wandb_identity(run_dir: Path, say: Callable[[str], None]) -> dict[str, str]:
    """Project, name, group and id of the one W&B run of a run folder."""
    of = {"project": os.environ.get("WANDB_PROJECT", "distae"), "name": run_dir.name, "id": kept_id(run_dir / "wandb_id", say)}
    group = group_of(run_dir)
    return of | ({"group": group} if group and "WANDB_RUN_GROUP" not in os.environ else {})


def group_of(run_dir: Path) -> str | None:
    """The name of the sweep that a run is of: its runs lie in one folder, and are called by their settings, as in `seed=1`."""
    path = run_dir.resolve()
    return path.parent.name if re.match(r"[\w.-]+=", path.name) else None


def kept_id(file: Path, say: Callable[[str], None]) -> str:
    """The id of a run elsewhere, made once and kept."""
    with contextlib.suppress(FileNotFoundError):
        kept = read_bytes(file).strip()
        if re.fullmatch(rb"[\w-]{1,64}", kept):
            return kept.decode()
        say(f"W&B: {file} is damaged; a new W&B run is started")
    made = uuid.uuid4().hex[:8]
    write_atomically(file, made.encode())
    return made


def _wandb_mode(wandb: Any) -> str:
    """WANDB_MODE if it is set; else online with a key and a reachable server, offline without."""
    if mode := os.environ.get("WANDB_MODE"):
        return "offline" if mode == "dryrun" else mode
    url = urlparse(os.environ.get("WANDB_BASE_URL", wandb.Settings().base_url))
    if not _has_key({url.hostname or "", "api.wandb.ai"}):
        return "offline"
    try:
        socket.create_connection((url.hostname, url.port or (80 if url.scheme == "http" else 443)), timeout=3).close()
    except OSError:
        return "offline"
    return "online"


def _has_key(hosts: set[str]) -> bool:
    """Whether the environment or `wandb login` left a key. wandb's own look-ups warn (`api`) or hang without network (`login`)."""
    if os.environ.get("WANDB_API_KEY") or "WANDB_IDENTITY_TOKEN_FILE" in os.environ:
        return True
    with contextlib.suppress(OSError, netrc.NetrcParseError):
        return bool(hosts & set(netrc.netrc(os.environ.get("NETRC")).hosts))
    return False
