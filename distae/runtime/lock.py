"""One run per run folder: a lock with a heartbeat, taken over when its holder is gone."""

import contextlib
import json
import os
import platform
import threading
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

from distae.errors import TrainingError, UserError
from distae.runtime.files import decode

FILE = "lock"
BEAT_SECONDS, STALE_SECONDS = 10.0, 60.0


class RunLock:
    """Held by rank 0 while a run is under way.

    The file says who holds it: host, pid, the process's start time, the Slurm job; its modification time is the heartbeat.
    """

    def __init__(self, run_dir: Path, token: str) -> None:
        self.path, self.token = run_dir / FILE, token
        self.ended = threading.Event()
        self.beats = threading.Thread(target=self._beat, name="heartbeat", daemon=True)
        self.beats.start()

    def check(self) -> None:
        """Raises TrainingError where another process has taken the run folder over."""
        with contextlib.suppress(OSError):
            if _holder(self.path).get("token") != self.token:
                raise TrainingError(f"another process has taken over the run folder {self.path.parent}; nothing more is saved here")

    def release(self) -> None:
        """Stop the heartbeat and remove the file, if it is still ours."""
        self.ended.set()
        self.beats.join()
        with contextlib.suppress(TrainingError, OSError):
            self.check()
            self.path.unlink()

    def _beat(self) -> None:
        while not self.ended.wait(BEAT_SECONDS):
            with contextlib.suppress(OSError, TrainingError):
                self.check()
                os.utime(self.path)


def acquire(run_dir: Path, sleep: Callable[[float], None] = time.sleep, clock: Callable[[], float] = time.monotonic) -> RunLock:
    """Take the lock of a run folder. Raises UserError where a live process holds it.

    A holder is known to be gone where it was an earlier start of the same Slurm job, or a process of this host that no longer runs.
    Otherwise it is watched: a heartbeat within 60 s shows it alive, none shows it gone.
    """
    path, mine = run_dir / FILE, _describe_self()
    while not _create(path, mine):
        try:
            holder = _holder(path)
        except FileNotFoundError:
            continue
        if not _is_gone(holder, mine) and _beats(path, holder, sleep, clock):
            raise UserError(
                f"--run-dir: {run_dir} is in use by process {holder.get('pid')} on {holder.get('host')}; "
                "wait for it to end, stop it, or give another --run-dir"
            )
        with contextlib.suppress(OSError):
            if _holder(path) == holder:
                path.unlink()
    return RunLock(run_dir, str(mine["token"]))


def _describe_self() -> dict[str, Any]:
    return {
        "host": platform.node(),
        "pid": os.getpid(),
        "started": _start_time(os.getpid()),
        "slurm_job": os.environ.get("SLURM_JOB_ID"),
        "slurm_restart": os.environ.get("SLURM_RESTART_COUNT", "0"),
        "token": uuid.uuid4().hex,
    }


def _create(path: Path, mine: dict[str, Any]) -> bool:
    """Whether the lock file could be made; it appears whole, by a hard link, which fails where one exists."""
    fresh = path.with_name(f".{FILE}.{mine['token']}")
    fresh.write_text(json.dumps(mine))
    try:
        os.link(fresh, path)
    except FileExistsError:
        return False
    finally:
        fresh.unlink()
    return True


def _holder(path: Path) -> dict[str, Any]:
    """What the lock file says; nothing where it is damaged. Raises OSError where it cannot be read."""
    try:
        return decode(path.read_bytes(), dict[str, Any])
    except ValueError:
        return {}


def _is_gone(holder: dict[str, Any], mine: dict[str, Any]) -> bool:
    if holder.get("host") == mine["host"] and isinstance(holder.get("pid"), int):
        return _start_time(holder["pid"]) != holder.get("started")
    same_job = mine["slurm_job"] is not None and holder.get("slurm_job") == mine["slurm_job"]
    return same_job and holder.get("slurm_restart") != mine["slurm_restart"]


def _beats(path: Path, holder: dict[str, Any], sleep: Callable[[float], None], clock: Callable[[], float]) -> bool:
    """Whether the holder shows a sign of life within 60 s; at once where it is a process of this host."""
    if holder.get("host") == platform.node():
        return True
    seen, end = _modified(path), clock() + STALE_SECONDS
    while clock() < end:
        sleep(1.0)
        if _modified(path) != seen:
            return seen is not None and path.exists()
    return False


def _modified(path: Path) -> int | None:
    try:
        return path.stat().st_mtime_ns
    except OSError:
        return None


def _start_time(pid: int) -> str | None:
    """When a process of this host started, in clock ticks since boot; None where there is none, or only a zombie."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rsplit(") ", 1)[1].split()
    except OSError:
        return None
    return None if fields[0] == "Z" else fields[19]
