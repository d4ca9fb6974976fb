"""Who has a run folder, and when it may be taken over."""

import json
import os
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from distae.errors import TrainingError, UserError
from distae.runtime import lock as runlock


def hold(run_dir: Path, **changes: Any) -> None:
    """A lock file as another process would have left it."""
    holder = {"host": platform.node(), "pid": os.getpid(), "started": runlock._start_time(os.getpid()), "token": "theirs"}
    (run_dir / "lock").write_text(json.dumps(holder | {"slurm_job": None, "slurm_restart": "0"} | changes))


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


@pytest.mark.parametrize("changes", [{"pid": 2**22 + 1}, {"started": "1"}], ids=["gone", "pid used again"])
def test_a_process_that_is_gone_loses_it_at_once(tmp_path: Path, changes: dict[str, Any]) -> None:
    hold(tmp_path, **changes)
    clock = Clock()
    runlock.acquire(tmp_path, clock.sleep, clock).release()
    assert clock.now == 0


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


def test_a_lock_given_back_while_watched_is_free(tmp_path: Path) -> None:
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


def test_the_heart_beats(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
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
