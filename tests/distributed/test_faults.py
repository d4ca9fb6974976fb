"""Faults injected for real: full and read-only disks, two runs on one folder, ranks that die or raise."""

import json
import os
import re
import signal
import subprocess
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
from helpers import metrics, run, settings

from benchmarks import crash
from benchmarks.crash import processes
from distae.checkpoint.retention import steps_in, why_invalid
from distae.tracking import Tracker

JOB = (
    "--model.latent-dim 4 --net.hidden 16 --global-batch-size 24 --data.limit 240 --steps 60 --eval-every 100 --log-every 10 "
    "--save-every 3 --tracking none --device cpu --threads 1"
)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 2 MiB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(disk)]
    if os.geteuid() or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("only root may mount a small file system")
    yield disk
    subprocess.run(["umount", "-l", str(disk)], check=True)


def on_line(words: str, action: Any) -> Any:
    """Patch the tracker: do `action` when it says `words` for the first time."""
    line, todo = Tracker.line, [action]

    def patched(self: Tracker, text: str) -> None:
        line(self, text)
        if words in text and todo:
            todo.pop()()

    return mock.patch.object(Tracker, "line", patched)


def at_row(step: int, action: Any) -> Any:
    """Patch the tracker: do `action` before the row of `step`."""
    row = Tracker.row

    def patched(self: Tracker, values: Any) -> None:
        if values["step"] == step:
            action()
        row(self, values)

    return mock.patch.object(Tracker, "row", patched)


def test_a_full_disk_costs_a_checkpoint_but_not_the_run(small_disk: Path, capsys: Any) -> None:
    """Full from step 2 on, until the first save has failed: every row is there, whole, and the next save is good."""
    ballast, run_dir = small_disk / "ballast", small_disk / "run"

    def fill() -> None:
        with pytest.raises(OSError, match="No space left"), ballast.open("wb", buffering=0) as file:  # noqa: PT012
            while file.write(bytes(4096)):
                pass

    cfg = settings(steps=20, save_every=4, log_every=1, eval_every=100, data={"val_fraction": 0})
    with at_row(2, fill), on_line("saving a checkpoint failed", ballast.unlink):
        assert run(cfg, run_dir).outcome == "done"
    (told,) = [line for line in capsys.readouterr().err.splitlines() if "saving a checkpoint failed" in line]
    assert "tries again: No space left on device (disk full, or no inodes left): /" in told
    assert "/run/checkpoints/" in told
    assert "Errno" not in told
    assert "rank 0" not in told
    assert [r["step"] for r in metrics(run_dir) if "train/loss" in r] == list(range(1, 21))
    assert steps_in(run_dir / "checkpoints")[0] == 20
    assert not list((run_dir / "checkpoints").glob(".*"))


def test_a_disk_that_stays_full_ends_in_one_message(small_disk: Path, capsys: Any) -> None:
    (small_disk / "run").mkdir()
    (small_disk / "ballast").write_bytes(bytes(2020 << 10))
    end = run(settings(steps=8, save_every=4, eval_every=100), small_disk / "run")
    assert (end.outcome, end.exit_code) == ("failed", 1)
    assert re.match(r"the checkpoint of step 8 could not be saved: No space left on device \(disk full, .*: /.*/run/", end.reason)
    assert "Traceback" not in capsys.readouterr().err


def test_a_run_folder_turned_read_only(tmp_path: Path, capsys: Any) -> None:
    """Read-only from step 6 on, until the first save has failed: every row is there, and the next save is good."""
    run_dir = tmp_path / "run"

    def read_only() -> None:
        while 4 not in steps_in(run_dir / "checkpoints"):
            time.sleep(0.01)
        subprocess.run(["mount", "--bind", str(run_dir), str(run_dir)], check=True)
        subprocess.run(["mount", "-o", "remount,bind,ro", str(run_dir)], check=True)

    if os.geteuid():
        pytest.skip("only root may remount a folder")
    writable = partial(subprocess.run, ["umount", "-l", str(run_dir)], check=True)
    cfg = settings(steps=16, save_every=4, log_every=1, eval_every=100)
    with at_row(6, read_only), on_line("saving a checkpoint failed", writable):
        assert run(cfg, run_dir).outcome == "done"
    assert "Read-only file system" in capsys.readouterr().err
    assert [r["step"] for r in metrics(run_dir) if "train/loss" in r] == list(range(1, 17))
    assert steps_in(run_dir / "checkpoints")[0] == 16


def test_two_runs_on_one_folder(tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    job = [*JOB.replace("--steps 60", "--steps 100000").split(), "--run-dir", str(run_dir)]
    (first,) = crash.start(job, 1, tmp_path / "first.log")
    while not steps_in(run_dir / "checkpoints"):
        assert first.is_alive(), (tmp_path / "first.log").read_text()
        time.sleep(0.02)
    (second,) = crash.start(job, 1, tmp_path / "second.log")
    second.join()
    assert second.exitcode == 2
    text = (tmp_path / "second.log").read_text()
    assert f"{run_dir} is in use by process {first.pid}" in text
    assert text.count("\n") == 1
    os.kill(first.pid, signal.SIGTERM)
    first.join()
    assert first.exitcode == 75
    assert json.loads((run_dir / "outcome.json").read_text())["outcome"] == "stopped"


def _die_in_third_save(rank: int) -> None:
    from distae.checkpoint.shards import ShardWriter

    write, saves = ShardWriter.write_data, []

    def patched(self: ShardWriter, *args: Any) -> Any:
        saves.append(1)
        future = write(self, *args)
        if rank == 1 and len(saves) == 3:
            os.kill(os.getpid(), signal.SIGKILL)
        return future

    mock.patch.object(ShardWriter, "write_data", patched).start()


def test_a_rank_that_dies_in_the_middle_of_a_save(tmp_path: Path) -> None:
    straight, run_dir = tmp_path / "straight", tmp_path / "run"
    job = JOB.split()
    crash.finish([*job, "--run-dir", str(straight)], 2, straight)
    processes = crash.start([*job, "--run-dir", str(run_dir)], 2, tmp_path / "log", _die_in_third_save)
    for process in processes:
        process.join(30)
    assert [p.exitcode for p in processes] == [1, -signal.SIGKILL]
    left = steps_in(run_dir / "checkpoints")
    assert left == [6, 3]
    assert all(why_invalid(run_dir / "checkpoints" / f"step_{s:08}") is None for s in left)
    assert "lost contact with another rank" in json.loads((run_dir / "outcome.json").read_text())["reason"]
    crash.finish([*job, "--run-dir", str(run_dir)], 2, run_dir)
    assert not crash.differences(straight, run_dir)


def _raise_at_step_five(rank: int) -> None:
    from distae.training.step import TrainStep

    step = TrainStep.__call__

    def patched(self: TrainStep, number: int, rows: Any) -> None:
        if rank == 2 and number == 5:
            raise ValueError("a bug on rank 2")
        step(self, number, rows)

    mock.patch.object(TrainStep, "__call__", patched).start()


def test_a_rank_that_raises_ends_all_with_its_error(tmp_path: Path) -> None:
    run_dir, log = tmp_path / "run", tmp_path / "log"
    processes = crash.start([*JOB.split(), "--run-dir", str(run_dir)], 3, log, _raise_at_step_five)
    for process in processes:
        process.join(30)
    assert [p.exitcode for p in processes] == [1, 1, 1]
    text = log.read_text()
    assert text.count("Traceback") == 1
    assert "failed: rank 2: ValueError: a bug on rank 2" in text
    assert json.loads((run_dir / "outcome.json").read_text())["reason"] == "rank 2: ValueError: a bug on rank 2"


def _third_step_fails(rank: int) -> None:
    """A plant: on every rank, as a bug would."""
    from distae.training.step import TrainStep

    step = TrainStep.__call__

    def patched(self: TrainStep, number: int, rows: Any) -> Any:
        if number == 2:
            raise RuntimeError("planted")
        return step(self, number, rows)

    TrainStep.__call__ = patched  # type: ignore[method-assign]


def test_a_smoke_that_fails_on_every_rank_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "runs").mkdir()
    argv = [*JOB.split(), "--smoke", "--run-dir", str(tmp_path / "runs" / "a")]
    end = processes.run(argv, 2, tmp_path / "log", plant=_third_step_fails)
    assert end.codes == [1, 1]
    assert "RuntimeError: planted" in end.text
    assert not [*(tmp_path / "runs").iterdir()]
