"""Signals to a job under each launcher: a save by all ranks together, the exit code, and the restart."""

import contextlib
import json
import os
import re
import signal
import socket
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
from distae.runtime.signals import StopRequest, listening

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


def test_launch_local_says_what_only_one_rank_sees_and_who_was_killed(tmp_path: Path) -> None:
    """Rank 1's node lacks the plugin that all are given; and one process that has no time for last words."""
    (tmp_path / "only_rank_0.py").write_text(
        "import os, time\nif os.environ.get('RANK') == '1':\n    time.sleep(15)\n    raise RuntimeError('gone')\n"
    )
    (tmp_path / "killed.py").write_text("import os\nif os.environ.get('RANK'):\n    os.kill(os.getpid(), 9)\n")
    for name, code, said in (
        ("only_rank_0", 2, r"^distae: rank 1 \(.*\): --plugin: only_rank_0.py, line 4: RuntimeError: gone$"),
        ("killed", 1, r"^distae: rank [01] \(.*\) was ended by SIGKILL$"),
    ):
        begun = time.monotonic()
        done = subprocess.run(
            [sys.executable, *LOCAL, *JOB.split(), "--plugin", f"{name}.py"],
            cwd=tmp_path, env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True, timeout=200, check=False,
        )  # fmt: skip
        assert done.returncode == code, done.stderr
        assert time.monotonic() - begun < 60, done.stderr  # and not after torchrun's 120 s for the other to save
        assert re.search(said, done.stderr, re.MULTILINE), done.stderr


def test_a_rank_that_still_waits_for_the_others_ends_at_once(tmp_path: Path) -> None:
    """Inside torch no handler runs: it would stay for --timeout."""
    with socket.socket() as free:
        free.bind(("", 0))
        port = free.getsockname()[1]
    rank = {"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "PYTHONPATH": str(ROOT)}
    with subprocess.Popen([sys.executable, "-m", "distae.train", *JOB.split()], cwd=tmp_path, env=os.environ | rank) as job:
        while True:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
                break
            assert job.poll() is None
            time.sleep(0.1)
        job.send_signal(signal.SIGTERM)
        assert job.wait(20) == -signal.SIGTERM


def test_bare_torchrun_saves_too_but_hides_the_exit_code(tmp_path: Path) -> None:
    with running([*TORCHRUN, *ENDLESS], tmp_path) as job:
        job.send_signal(signal.SIGINT)
        assert job.wait(60) != 75
    end = outcome(tmp_path)
    assert (end["outcome"], end["signal"]) == ("stopped", "SIGINT")
    assert why_invalid(tmp_path / "run" / "checkpoints" / name_of(end["step"])) is None


def test_a_crashed_rank_is_restarted_from_the_newest_checkpoint_but_not_a_stopped_run(tmp_path: Path) -> None:
    """Of this run, though torchrun repeats its --fresh."""
    local = ["-m", "launch.local", "--nproc", "2", "--max-restarts", "3", "--", *ENDLESS, "--fresh"]
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
    assert [p.name for p in tmp_path.glob("run*")] == ["run"]


def test_plain_python(tmp_path: Path) -> None:
    with running(["-m", "distae.train", *ENDLESS], tmp_path) as job:
        job.send_signal(signal.SIGINT)
        assert job.wait(60) == 75
    assert outcome(tmp_path)["signal"] == "SIGINT"


def test_a_closed_terminal_saves_and_nohup_trains_on(tmp_path: Path) -> None:
    """SIGHUP is what a dropped ssh sends. Under nohup it is ignored from the start, and stays so."""
    with running([*LOCAL, *ENDLESS], tmp_path) as job:
        job.send_signal(signal.SIGHUP)
        assert job.wait(60) == 75
    assert outcome(tmp_path)["signal"] == "SIGHUP"
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with running([*LOCAL, *ENDLESS], tmp_path) as job:
            while (tmp_path / "log").read_text().count("resumed at step") < 1:
                time.sleep(0.1)
            job.send_signal(signal.SIGHUP)
            os.kill(main_rank(tmp_path), signal.SIGUSR1)
            assert job.wait(60) == 75
    finally:
        signal.signal(signal.SIGHUP, before)
    assert outcome(tmp_path)["signal"] == "SIGUSR1"


def test_an_ignored_hangup_stays_ignored(monkeypatch: pytest.MonkeyPatch) -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with listening() as request:
            signal.raise_signal(signal.SIGHUP)
            assert request.signum == 0
        signal.signal(signal.SIGHUP, signal.SIG_DFL)
        with listening() as request:
            signal.raise_signal(signal.SIGHUP)
            assert request.signum == signal.SIGHUP
    finally:
        signal.signal(signal.SIGHUP, before)


def _save_for_ever(rank: int) -> None:
    from distae.training.trainer import Trainer

    def never(self: Trainer) -> bool:
        (self.run_dir / "saving").touch()
        while True:
            time.sleep(0.1)

    Trainer._save_and_leave = never  # type: ignore[method-assign]


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


SLOW = """
import sys, time
from pathlib import Path
from distae.config import tables
def read(*args):
    Path("torch").write_text(str("torch" in sys.modules))
    Path("reading").touch()
    time.sleep(60)
tables.read = read
"""


def test_ctrl_c_while_a_long_table_is_read_ends_in_words(tmp_path: Path) -> None:
    """Before anything listens; training reads it before torch is imported."""
    (tmp_path / "slow.py").write_text(SLOW)
    (tmp_path / "x.csv").write_text("a,b\n1,2\n")
    table = ["--data", "table", "--plugin", str(tmp_path / "slow.py"), "--data.path", str(tmp_path / "x.csv")]
    jobs = {}
    for command in (["distae.train"], ["distae", "train"], ["distae", "data"], ["distae", "prepare", str(tmp_path / "x.csv"), "d"]):
        cwd = tmp_path / " ".join(command[:2]).replace("/", "")
        cwd.mkdir()
        argv = [sys.executable, "-m", *command, *table]
        jobs[cwd] = subprocess.Popen(argv, cwd=cwd, env=os.environ | {"PYTHONPATH": str(ROOT)}, stderr=subprocess.PIPE, text=True)
    for cwd, job in jobs.items():
        with job:
            while not (cwd / "reading").exists():
                assert job.poll() is None, job.communicate()[1]
                time.sleep(0.05)
            job.send_signal(signal.SIGINT)
            said = job.communicate(timeout=20)[1]
        resumes = ": rerun to resume" * (cwd.name == "distae prepare")
        assert (job.returncode, said) == (130, f"distae: interrupted by Ctrl-C{resumes}\n")
        assert (cwd / "torch").read_text() == str("train" not in cwd.name)
