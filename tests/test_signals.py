"""Signals to a job under each launcher: a save by all ranks together, the exit code, and what a restart makes of it."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from helpers import ROOT

from benchmarks import crash
from distae.checkpoint.retention import name_of, steps_in, why_invalid
from distae.runtime.signals import StopRequest

JOB = (
    "--model.latent-dim 4 --net.hidden 16 --global-batch-size 24 --data.limit 240 --eval-every 1000 --save-every 50 "
    "--tracking none --device cpu --threads 1 --run-dir run"
)
LOCAL = ["-m", "launch.local", "--nproc", "2", "--"]
TORCHRUN = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m", "distae.train"]
ENDLESS = ["--steps", "1000000"]


@contextmanager
def running(command: list[str], cwd: Path) -> Iterator[subprocess.Popen[str]]:
    """The job, from its first checkpoint on; killed at the end if it is still there."""
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    with (cwd / "log").open("a") as log:
        process = subprocess.Popen([sys.executable, *command, *JOB.split()], cwd=cwd, env=env, stdout=log, stderr=log, text=True)
    try:
        while not steps_in(cwd / "run" / "checkpoints"):
            assert process.poll() is None, (cwd / "log").read_text()
            time.sleep(0.05)
        yield process
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()


def outcome(cwd: Path) -> dict[str, Any]:
    end: dict[str, Any] = json.loads((cwd / "run" / "outcome.json").read_text())
    return end


def main_rank(cwd: Path) -> int:
    return int(json.loads((cwd / "run" / "lock").read_text())["pid"])


def test_launch_local_passes_a_signal_on_and_the_exit_code_back(tmp_path: Path) -> None:
    with running([*LOCAL, *ENDLESS], tmp_path) as job:
        job.send_signal(signal.SIGTERM)
        assert job.wait(60) == 75
    end = outcome(tmp_path)
    assert (end["outcome"], end["signal"]) == ("stopped", "SIGTERM")
    assert why_invalid(tmp_path / "run" / "checkpoints" / name_of(end["step"])) is None
    assert not (tmp_path / "run" / "lock").exists()
    with running([*LOCAL, "--steps", str(end["step"] + 20)], tmp_path) as job:
        assert job.wait(60) == 0
    assert (outcome(tmp_path)["outcome"], outcome(tmp_path)["step"]) == ("done", end["step"] + 20)
    assert f"resumed at step {end['step']} of" in (tmp_path / "log").read_text()
    with running([*LOCAL, "--steps", str(end["step"] + 20)], tmp_path) as job:
        assert job.wait(60) == 0
    assert "is complete at step" in (tmp_path / "log").read_text()


def test_bare_torchrun_saves_too_but_hides_the_exit_code(tmp_path: Path) -> None:
    with running([*TORCHRUN, *ENDLESS], tmp_path) as job:
        job.send_signal(signal.SIGINT)
        assert job.wait(60) != 75
    end = outcome(tmp_path)
    assert (end["outcome"], end["signal"]) == ("stopped", "SIGINT")
    assert why_invalid(tmp_path / "run" / "checkpoints" / name_of(end["step"])) is None


def test_a_crashed_rank_is_restarted_from_the_newest_checkpoint_but_not_a_stopped_run(tmp_path: Path) -> None:
    local = ["-m", "launch.local", "--nproc", "2", "--max-restarts", "3", "--", *ENDLESS]
    with running(local, tmp_path) as job:
        first = main_rank(tmp_path)
        os.kill(first, signal.SIGKILL)
        while "resumed at step" not in (tmp_path / "log").read_text():
            assert job.poll() is None, (tmp_path / "log").read_text()
            time.sleep(0.1)
        second = main_rank(tmp_path)
        assert second != first
        os.kill(second, signal.SIGUSR1)
        assert job.wait(60) == 75
    end = outcome(tmp_path)
    assert (end["outcome"], end["signal"]) == ("stopped", "SIGUSR1")
    assert steps_in(tmp_path / "run" / "checkpoints")[0] == end["step"]
    assert (tmp_path / "log").read_text().count("resumed at step") == 1


def test_plain_python(tmp_path: Path) -> None:
    with running(["-m", "distae.train", *ENDLESS], tmp_path) as job:
        job.send_signal(signal.SIGINT)
        assert job.wait(60) == 75
    assert outcome(tmp_path)["signal"] == "SIGINT"


def _save_for_ever(rank: int) -> None:
    from distae.training.trainer import Trainer

    def never(self: Trainer) -> bool:
        (self.run_dir / "saving").touch()
        while True:
            time.sleep(0.1)

    Trainer.save_and_leave = never  # type: ignore[method-assign]


def test_a_second_ctrl_c_leaves_at_once(tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    (job,) = crash.start([*JOB.split(), *ENDLESS, "--run-dir", str(run_dir)], 1, tmp_path / "log", _save_for_ever)
    while not steps_in(run_dir / "checkpoints"):
        assert job.is_alive()
    os.kill(job.pid, signal.SIGINT)
    while not (run_dir / "saving").exists():
        assert job.is_alive()
    time.sleep(1.1)
    os.kill(job.pid, signal.SIGINT)
    job.join(10)
    assert job.exitcode == 130


def test_one_ctrl_c_that_arrives_twice_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    left: list[int] = []
    monkeypatch.setattr(os, "_exit", left.append)
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    request = StopRequest()
    for moment in (100.0, 100.1, 102.0):
        now[0] = moment
        request(signal.SIGINT, None)
        assert request.signum == signal.SIGINT
    assert left == [130]
