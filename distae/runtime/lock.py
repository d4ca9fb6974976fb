"""One run per run folder: a lock with a heartbeat, taken over once its holder is gone."""

import contextlib
import errno
import fcntl
import json
import os
import platform
import re
import threading
import time
import uuid
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from distae.errors import TrainingError, UserError
from distae.runtime.files import decode, in_words, read_bytes, write_atomically

FILE = "lock"
BEAT_SECONDS, STALE_SECONDS = 10.0, 60.0
PID_SCOPE = ("host", "boot", "pid_namespace")
NO_HARD_LINKS = (errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK)


class RunLock:
    """Held by rank 0 while a run is under way.

    The file says who holds it: host, boot, PID namespace, pid, the process's start time, the Slurm job; its modification time is
    the heartbeat. The folder is kept open, to notice if another one replaces it.
    """

    def __init__(self, run_dir: Path, token: str) -> None:
        self.path, self.token = run_dir / FILE, token
        self.folder = os.open(run_dir, os.O_RDONLY | os.O_DIRECTORY)
        self.lost: str | None = None
        self.ended = threading.Event()
        self.beats = threading.Thread(target=self._beat, name="heartbeat", daemon=True)
        self.beats.start()

    def check(self) -> None:
        """Raises TrainingError if another process has taken over the run folder, or it was moved or removed."""
        self.lost = self.lost or self._why_lost()
        if self.lost:
            raise TrainingError(f"{self.lost}; nothing more is written there")

    def _why_lost(self) -> str | None:
        """Why the lock is lost; None if it is held, or if that cannot be determined now."""
        run_dir = self.path.parent
        try:
            if not os.path.samestat(run_dir.stat(), os.fstat(self.folder)):
                return f"the run folder {run_dir} was moved during the run, and another folder has its name"
        except FileNotFoundError:
            return f"the run folder {run_dir} was moved or removed during the run"
        except OSError:
            return None
        try:
            taken = _holder(self.path).get("token") != self.token
        except FileNotFoundError:
            return f"the lock of the run folder {run_dir} was removed"
        except OSError:
            return None
        return f"another process has taken over the run folder {run_dir}" if taken else None

    def release(self) -> None:
        """Stop the heartbeat and remove the file, if it is still ours."""
        self.ended.set()
        self.beats.join()
        with contextlib.suppress(TrainingError, OSError):
            self.check()
            self.path.unlink()
        self.lost = self.lost or f"the run folder {self.path.parent} was released"
        os.close(self.folder)

    def _beat(self) -> None:
        while not self.ended.wait(BEAT_SECONDS):
            with contextlib.suppress(OSError, TrainingError):
                self.check()
                os.utime(self.path)


def acquire(run_dir: Path, sleep: Callable[[float], None] = time.sleep, clock: Callable[[], float] = time.monotonic) -> RunLock:
    """Take the lock of a run folder. Raises UserError if a live process holds it, or it cannot be taken.

    A holder is known to be gone if it was an earlier start of the same Slurm job, or a process that this one could see (same
    host, boot and PID namespace) and that no longer runs. Otherwise it is watched: a heartbeat within 60 s shows it alive.
    """
    path, mine = run_dir / FILE, _describe_self()
    try:
        while not _create(path, mine):
            with contextlib.suppress(FileNotFoundError):
                holder = _holder(path)
                if not _is_gone(holder, mine) and _is_alive(path, holder, mine, sleep, clock):
                    raise UserError(
                        f"--run-dir: {run_dir} is in use by process {holder.get('pid')} on {holder.get('host')}; "
                        "wait for it to end, stop it, or give another --run-dir"
                    )
                if _take_over(path, holder, mine):
                    break
        _remove_leftovers(run_dir, mine)
        return RunLock(run_dir, str(mine["token"]))
    except OSError as error:
        raise UserError(f"--run-dir: the lock of {run_dir} cannot be taken: {in_words(error)}") from error


def _describe_self() -> dict[str, Any]:
    return {
        "host": platform.node(),
        "boot": _boot(),
        "pid_namespace": _pid_namespace(),
        "pid": os.getpid(),
        "started": _start_time(os.getpid()),
        "slurm_job": os.environ.get("SLURM_JOB_ID"),
        "slurm_restart": os.environ.get("SLURM_RESTART_COUNT", "0"),
        "token": uuid.uuid4().hex,
    }


def _write_temporary(path: Path, mine: dict[str, Any]) -> Path:
    """Write a complete lock file under a temporary name that identifies this process; returns its path."""
    fresh = path.with_name(f".{FILE}.{_pid_scope(mine)}.{mine['pid']}.{mine['started']}.{mine['token']}")
    write_atomically(fresh, json.dumps(mine).encode())
    return fresh


def _pid_scope(mine: dict[str, Any]) -> str:
    """Checksum of host, boot and PID namespace, within which a process id is unique."""
    return f"{zlib.crc32(repr([mine[k] for k in PID_SCOPE]).encode()):08x}"


def _remove_leftovers(run_dir: Path, mine: dict[str, Any]) -> None:
    """Remove temporary files of processes that were killed while they took the lock; those of other hosts once they are stale."""
    for path in (*run_dir.glob(f".{FILE}.*"), *run_dir.glob(f"..{FILE}.*.writing")):
        found = re.search(rf"{FILE}\.(\w+)\.(\d+)\.(\d+)\.", path.name)
        with contextlib.suppress(OSError):
            gone = found and found[1] == _pid_scope(mine) and _start_time(int(found[2])) != found[3]
            if gone or time.time() - path.lstat().st_mtime > STALE_SECONDS:
                path.unlink()


def _create(path: Path, mine: dict[str, Any]) -> bool:
    """Whether the lock file could be made; by a hard link, so that it appears complete, if the file system supports them."""
    fresh = _write_temporary(path, mine)
    try:
        os.link(fresh, path)
    except FileExistsError:
        return fresh.stat().st_nlink == 2  # NFS: the reply was lost, and the existing link is ours
    except OSError as error:
        if error.errno not in NO_HARD_LINKS:
            raise
        return _create_exclusively(path, fresh.read_bytes())
    finally:
        fresh.unlink()
    return True


def _create_exclusively(path: Path, data: bytes) -> bool:
    try:
        with path.open("xb") as file:
            file.write(data)
    except FileExistsError:
        return False
    return True


def _take_over(path: Path, holder: dict[str, Any], mine: dict[str, Any]) -> bool:
    """Replace the lock of a holder that is gone, unless another process was faster.

    Of several processes that saw the same holder, the one that gets the file lock replaces the file; the others then find that it
    has changed. If the file system has no file locks, the last one to replace it wins, and the others notice before they write.
    """
    with path.open("r+b" if os.access(path, os.W_OK) else "rb") as file:
        with contextlib.suppress(OSError):
            fcntl.flock(file, fcntl.LOCK_EX)
        if not os.path.samestat(os.fstat(file.fileno()), path.stat()) or _holder(path) != holder:
            return False
        _write_temporary(path, mine).rename(path)
    return True


def _holder(path: Path) -> dict[str, Any]:
    """Contents of the lock file; empty if it is damaged. Raises OSError if it cannot be read."""
    try:
        return decode(read_bytes(path), dict[str, Any])
    except ValueError:
        return {}


def _is_visible(holder: dict[str, Any], mine: dict[str, Any]) -> bool:
    """Whether this process could see the holder by its pid: containers may share a host name, but not pids."""
    return isinstance(holder.get("pid"), int) and all(holder.get(k) == mine[k] for k in PID_SCOPE)


def _is_gone(holder: dict[str, Any], mine: dict[str, Any]) -> bool:
    if _is_visible(holder, mine):
        return _start_time(holder["pid"]) != holder.get("started")
    same_job = mine["slurm_job"] is not None and holder.get("slurm_job") == mine["slurm_job"]
    return same_job and holder.get("slurm_restart") != mine["slurm_restart"]


def _is_alive(
    path: Path, holder: dict[str, Any], mine: dict[str, Any], sleep: Callable[[float], None], clock: Callable[[], float]
) -> bool:
    """Whether the holder is alive: known at once if this process can see it, else by a heartbeat within 60 s."""
    if _is_visible(holder, mine):
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
    """When a process of this host started, in clock ticks since boot; None if there is none, or only a zombie."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rsplit(") ", 1)[1].split()
    except OSError:
        return None
    return None if fields[0] == "Z" else fields[19]


def _boot() -> str | None:
    """Identifier of this boot of the machine."""
    with contextlib.suppress(OSError):
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return None


def _pid_namespace() -> str | None:
    """Identifier of this process's PID namespace."""
    with contextlib.suppress(OSError):
        return str(Path("/proc/self/ns/pid").readlink())
    return None
