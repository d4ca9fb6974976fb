"""Which process holds a run folder, and when another may take it over."""

import contextlib
import errno
import fcntl
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from distae.errors import TrainingError, UserError
from distae.runtime import lock as runlock


def hold(run_dir: Path, **changes: Any) -> None:
    """A lock file as another process would have left it."""
    holder = runlock._describe_self() | {"token": "theirs", "slurm_job": None, "slurm_restart": "0"} | changes
    (run_dir / "lock").write_text(json.dumps(holder))


class Clock:
    """Time that passes only by sleeping; `at` does something at a moment."""

    def __init__(self) -> None:
        self.now = 0.0
        self.at: dict[float, Any] = {}

    def __call__(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds
        self.at.pop(self.now, lambda: None)()


def test_it_is_made_and_removed(tmp_path: Path) -> None:
    lock = runlock.acquire(tmp_path)
    assert json.loads((tmp_path / "lock").read_text())["pid"] == os.getpid()
    lock.release()
    assert list(tmp_path.iterdir()) == []


def test_a_live_process_of_this_host_keeps_it(tmp_path: Path) -> None:
    hold(tmp_path)
    with pytest.raises(UserError, match=f"in use by process {os.getpid()} on {platform.node()}"):
        runlock.acquire(tmp_path, Clock().sleep, Clock())


@pytest.mark.parametrize("changes", [{"pid_namespace": "pid:[1]"}, {"boot": "another"}, {"boot": None, "pid_namespace": None}])
def test_a_pid_of_another_namespace_or_boot_says_nothing(tmp_path: Path, changes: dict[str, Any]) -> None:
    """Containers with the host's name: its pid 1 is not ours. The heartbeat tells."""
    hold(tmp_path, pid=2**22 + 1, **changes)
    clock = Clock()
    clock.at[10.0] = lambda: os.utime(tmp_path / "lock", (1, 1))
    with pytest.raises(UserError, match="in use by process"):
        runlock.acquire(tmp_path, clock.sleep, clock)
    runlock.acquire(tmp_path, clock.sleep, clock).release()
    assert clock.now == 70


@pytest.mark.parametrize("changes", [{"pid": 2**22 + 1}, {"started": "1"}], ids=["gone", "pid used again"])
def test_a_process_that_is_gone_loses_it_at_once(tmp_path: Path, changes: dict[str, Any]) -> None:
    hold(tmp_path, **changes)
    clock = Clock()
    runlock.acquire(tmp_path, clock.sleep, clock).release()
    assert clock.now == 0


@pytest.mark.spawn
def test_a_killed_process_loses_it(tmp_path: Path) -> None:
    """A real one, which has not been waited for: a zombie counts as gone."""
    code = (
        f"from distae.runtime import lock as runlock; from pathlib import Path; runlock.acquire(Path({str(tmp_path)!r})); input()"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE) as process:
        while not (tmp_path / "lock").exists():
            assert process.poll() is None
        with pytest.raises(UserError, match=str(process.pid)):
            runlock.acquire(tmp_path)
        process.kill()
        while runlock._start_time(process.pid) is not None:
            pass
        runlock.acquire(tmp_path).release()


def test_the_same_job_after_a_requeue_takes_it_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_JOB_ID", "77")
    monkeypatch.setenv("SLURM_RESTART_COUNT", "2")
    hold(tmp_path, host="another", slurm_job="77", slurm_restart="1")
    clock = Clock()
    runlock.acquire(tmp_path, clock.sleep, clock).release()
    assert clock.now == 0


def test_another_host_without_a_beat_loses_it_after_a_minute(tmp_path: Path) -> None:
    hold(tmp_path, host="another")
    clock = Clock()
    runlock.acquire(tmp_path, clock.sleep, clock).release()
    assert clock.now == 60


def test_another_host_with_a_beat_keeps_it(tmp_path: Path) -> None:
    hold(tmp_path, host="another")
    clock = Clock()
    clock.at[10.0] = lambda: os.utime(tmp_path / "lock", (1, 1))
    with pytest.raises(UserError, match="on another"):
        runlock.acquire(tmp_path, clock.sleep, clock)
    assert clock.now == 10


def test_a_lock_released_while_watched_is_free(tmp_path: Path) -> None:
    hold(tmp_path, host="another")
    clock = Clock()
    clock.at[5.0] = (tmp_path / "lock").unlink
    runlock.acquire(tmp_path, clock.sleep, clock).release()
    assert clock.now == 5


def test_a_damaged_file_is_taken_over_after_a_minute(tmp_path: Path) -> None:
    (tmp_path / "lock").write_text("\x80garbage")
    clock = Clock()
    runlock.acquire(tmp_path, clock.sleep, clock).release()
    assert clock.now == 60


@pytest.mark.spawn
def test_what_a_start_left_that_was_killed_while_it_took_the_lock_is_removed(tmp_path: Path) -> None:
    """Killed before and after its temporary file was whole; and by an earlier version, whose names say nothing."""
    code = (
        "import os, signal, sys; from pathlib import Path; from distae.runtime import files, lock\n"
        "run_dir, step = Path(sys.argv[1]), sys.argv[2]\n"
        "kill = lambda *args: os.kill(os.getpid(), signal.SIGKILL)\n"
        "setattr(*{'writing': (files.Path, 'rename'), 'linking': (os, 'link')}[step], kill)\n"
        "lock.acquire(run_dir)"
    )
    for step in ("writing", "linking"):
        subprocess.run([sys.executable, "-c", code, str(tmp_path), step], check=False)
    assert len([*tmp_path.iterdir()]) == 2
    for name, age in ((".lock.0123", 61), (".lock.4567", 0), (".my.lock.txt", 61)):
        (tmp_path / name).touch()
        os.utime(tmp_path / name, (time.time() - age,) * 2)
    mine = runlock._write_temporary(tmp_path / "lock", runlock._describe_self())  # of a start that is under way
    runlock.acquire(tmp_path).release()
    assert {p.name for p in tmp_path.iterdir()} == {mine.name, ".lock.4567", ".my.lock.txt"}


def test_the_lock_has_a_heartbeat(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runlock, "BEAT_SECONDS", 0.01)
    lock = runlock.acquire(tmp_path)
    os.utime(tmp_path / "lock", (1, 1))
    while (tmp_path / "lock").stat().st_mtime == 1:
        pass
    lock.release()


def test_a_holder_that_lost_it_knows_and_leaves_it_alone(tmp_path: Path) -> None:
    lock = runlock.acquire(tmp_path)
    hold(tmp_path)
    with pytest.raises(TrainingError, match="another process has taken over"):
        lock.check()
    lock.release()
    assert json.loads((tmp_path / "lock").read_text())["token"] == "theirs"


def test_of_two_that_saw_the_same_stale_lock_one_has_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another one comes after the first has looked for the last time, and before it puts its own lock there."""
    hold(tmp_path, pid=2**22 + 1)
    real, others = Path.rename, ThreadPoolExecutor(1)
    other: list[Future[Any]] = []

    def slow(source: Path, target: Path) -> Path:
        if target == tmp_path / "lock" and not other:
            other.append(others.submit(lambda: _or_none(lambda: runlock.acquire(tmp_path))))
            time.sleep(0.3)
        return real(source, target)

    monkeypatch.setattr(Path, "rename", slow)
    lock = runlock.acquire(tmp_path)
    assert other[0].result() is None
    lock.check()
    lock.release()
    assert list(tmp_path.iterdir()) == []


def test_many_at_once_take_a_stale_lock_once(tmp_path: Path) -> None:
    for _ in range(5):
        hold(tmp_path, pid=2**22 + 1)
        with ThreadPoolExecutor(8) as pool:
            ends = list(pool.map(lambda _: _or_none(lambda: runlock.acquire(tmp_path)), range(8)))
        (lock,) = filter(None, ends)
        lock.check()
        lock.release()
        assert list(tmp_path.iterdir()) == []


def _or_none(work: Callable[[], Any]) -> Any:
    with contextlib.suppress(UserError):
        return work()


def test_where_files_cannot_be_locked_the_slower_one_notices(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fcntl, "flock", refusing(errno.ENOLCK))
    hold(tmp_path, pid=2**22 + 1)
    runlock.acquire(tmp_path).release()
    assert list(tmp_path.iterdir()) == []


def refusing(number: int) -> Callable[..., None]:
    def refuse(*args: Any) -> None:
        raise OSError(number, os.strerror(number))

    return refuse


@pytest.mark.parametrize("number", [errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS])
def test_a_file_system_without_hard_links_works(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    monkeypatch.setattr(os, "link", refusing(number))
    lock = runlock.acquire(tmp_path)
    lock.check()
    with pytest.raises(UserError, match="in use"):
        runlock.acquire(tmp_path)
    lock.release()
    assert list(tmp_path.iterdir()) == []


def test_a_link_that_was_made_though_the_answer_was_lost_is_ours(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """NFS sends a request again, and the second one finds what the first made."""
    real = os.link

    def twice(source: Path, target: Path) -> None:
        real(source, target)
        real(source, target)

    monkeypatch.setattr(os, "link", twice)
    runlock.acquire(tmp_path).release()


def test_a_full_disk_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "link", refusing(errno.ENOSPC))
    with pytest.raises(UserError, match=r"the lock of .* cannot be taken: No space left on device"):
        runlock.acquire(tmp_path)


def test_something_else_in_its_place_is_reported(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "lock")
    with pytest.raises(UserError, match="cannot be taken: it is a named pipe"):
        runlock.acquire(tmp_path)


def test_a_lock_that_was_removed_is_lost(tmp_path: Path) -> None:
    lock = runlock.acquire(tmp_path)
    (tmp_path / "lock").unlink()
    with pytest.raises(TrainingError, match="was removed"):
        lock.check()
    lock.release()
    with pytest.raises(TrainingError):
        lock.check()


@pytest.mark.parametrize("anew", [False, True])
def test_a_folder_moved_under_its_holder_is_lost(tmp_path: Path, anew: bool) -> None:
    (tmp_path / "run").mkdir()
    lock = runlock.acquire(tmp_path / "run")
    (tmp_path / "run").rename(tmp_path / "moved")
    if anew:
        (tmp_path / "run").mkdir()
        (tmp_path / "run" / "lock").write_bytes((tmp_path / "moved" / "lock").read_bytes())
    with pytest.raises(TrainingError, match="was moved"):
        lock.check()
    lock.release()
    assert (tmp_path / "run").exists() == anew


@pytest.mark.spawn
def test_a_live_holder_in_another_pid_namespace_keeps_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As two containers on one host: neither sees the other's processes, both have the host's name."""
    monkeypatch.setattr(runlock, "BEAT_SECONDS", 0.2)
    code = (
        f"from pathlib import Path; from distae.runtime import lock\nlock.STALE_SECONDS = 10; lock.acquire(Path({str(tmp_path)!r}))"
    )
    lock = runlock.acquire(tmp_path)
    isolated = ["unshare", "--pid", "--fork", "--mount-proc", sys.executable, "-c", code]
    done = subprocess.run(isolated, capture_output=True, text=True, check=False)
    lock.check()
    lock.release()
    if "unshare failed" in done.stderr or "unshare: " in done.stderr:
        pytest.skip("no new PID namespace may be made here")
    assert "is in use by process" in done.stderr
