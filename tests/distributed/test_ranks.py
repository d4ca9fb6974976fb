"""Ranks that differ, fail, freeze or die at the start, as real processes."""

import json
import os
import signal
import time
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from benchmarks import crash
from distae.checkpoint.retention import steps_in
from distae.errors import UserError

OPTIONS = (
    "--model.latent-dim 4 --net.hidden 16 --global-batch-size 24 --data.limit 240 --steps 100000 --eval-every 1000 --log-every 10 "
    "--save-every 3 --tracking none --device cpu --threads 1"
)
JOB = OPTIONS.split()


def ended(processes: list[Any], seconds: float) -> list[int | None]:
    """The exit codes; None where one had not ended in time."""
    end = time.monotonic() + seconds
    for process in processes:
        process.join(max(0, end - time.monotonic()))
    codes = [process.exitcode for process in processes]
    for process in processes:
        process.kill()
    return codes


class _Given:
    """These options on rank 1 alone."""

    def __init__(self, argv: tuple[str, ...]) -> None:
        self.argv = argv

    def __call__(self, rank: int) -> None:
        train: Any = import_module("distae.commands.train")
        parse = train.parse
        train.parse = lambda cls, argv, *rest: parse(cls, [*argv, *(self.argv if rank else ())], *rest)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (["--optim.lr", "0.5"], " on rank 0 and 0.5 here"),
        (["--data.path", "other.npy"], "data: train.values is "),
        (["--data.path", "missing.npy"], "--data.path: no file missing.npy"),
    ],
)
def test_a_rank_of_other_settings_or_data(given: list[str], words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    values = np.random.default_rng(0).random((200, 6), np.float32)
    np.save("x.npy", values)
    np.save("other.npy", values + np.float32(0.25) * (values < 0.5))
    job = [*JOB, "--data", "array", "--data.path", "x.npy", "--model.likelihood", "gaussian", "--run-dir", "run"]
    began = time.monotonic()
    assert ended(crash.start(job, 2, Path("log"), _Given(tuple(given))), 60) == [2, 2], Path("log").read_text()
    assert time.monotonic() - began < 40  # --timeout is 600
    lines = Path("log").read_text().splitlines()
    assert len(lines) == 2
    assert all(line.startswith("distae: rank 1 (") and words in line for line in lines), lines
    assert not (tmp_path / "run" / "config.toml").exists()


class _AtLoad:
    """The ranks send themselves a signal when they load their data."""

    def __init__(self, rank: int, signum: int) -> None:
        self.rank, self.signum = rank, signum

    def __call__(self, rank: int) -> None:
        data: Any = import_module("distae.data")
        load = data.load

        def patched(*args: Any) -> Any:
            if rank == self.rank:
                os.kill(os.getpid(), self.signum)
            return load(*args)

        data.load = patched


@pytest.mark.parametrize("rank", [0, 1])
@pytest.mark.parametrize("signum", [signal.SIGKILL, signal.SIGSTOP])
def test_a_rank_lost_at_the_start(rank: int, signum: int, tmp_path: Path) -> None:
    processes = crash.start(
        [*JOB, "--timeout", "4", "--run-dir", str(tmp_path / "run")], 3, tmp_path / "log", _AtLoad(rank, signum)
    )
    lost = processes.pop(rank)
    codes = ended(processes, 60)
    text = (tmp_path / "log").read_text()
    assert codes == [1, 1], text
    assert ended([lost], 0) == [-signal.SIGKILL if signum == signal.SIGKILL else None]
    assert "Traceback" not in text
    assert "lost contact with" in text


def _count_sockets(rank: int) -> None:
    from distae.training.trainer import Trainer

    steps = Trainer.steps

    def patched(self: Trainer) -> Any:
        names = [str(fd.readlink()) for fd in Path("/proc/self/fd").iterdir() if fd.exists() or fd.is_symlink()]
        (self.run_dir.parent / "sockets").write_text(json.dumps(sum(name.startswith("socket:") for name in names)))
        return steps(self)

    if rank == 1:
        Trainer.steps = patched  # type: ignore[method-assign]


def test_rank_0_frozen_in_training_and_the_sockets_of_three_ranks(tmp_path: Path) -> None:
    processes = crash.start([*JOB, "--timeout", "5", "--run-dir", str(tmp_path / "run")], 3, tmp_path / "log", _count_sockets)
    while not steps_in(tmp_path / "run" / "checkpoints"):
        assert processes[0].is_alive(), (tmp_path / "log").read_text()
        time.sleep(0.05)
    os.kill(processes[0].pid, signal.SIGSTOP)
    began = time.monotonic()
    assert ended(processes[1:], 25) == [1, 1]
    (tmp_path / "seconds").write_text(str(time.monotonic() - began))
    processes[0].kill()
    text = (tmp_path / "log").read_text()
    assert "Traceback" not in text
    assert text.count("lost contact with another rank (") == 2
    assert json.loads((tmp_path / "sockets").read_text()) <= 2 * (3 - 1) + 3


class _Looks:
    """Each rank notes in `looks` that it looks at the disk; rank 0 is slow at it, and fails where `error` is given."""

    def __init__(self, error: str = "") -> None:
        self.error = error

    def __call__(self, rank: int) -> None:
        index: Any = import_module("distae.data.image_index")

        def noting(name: str, look: Any) -> Any:
            def noted(*args: Any) -> Any:
                with Path("looks").open("a") as file:
                    file.write(f"rank {rank} {name}\n")
                time.sleep(0 if rank else 1)
                if self.error:
                    raise UserError(self.error)
                return look(*args)

            return noted

        index._scan, index._is_true = noting("scans", index._scan), noting("checks", index._is_true)


def test_one_rank_of_a_node_looks_at_a_folder_of_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It scans, and at the next start checks; what it finds wrong ends all ranks in the same words."""
    monkeypatch.chdir(tmp_path)
    for i, x in enumerate(np.random.default_rng(0).integers(0, 256, (40, 8, 8), np.uint8)):
        Path(f"x/{i % 2}").mkdir(parents=True, exist_ok=True)
        Image.fromarray(x).save(f"x/{i % 2}/{i}.png")
    images = ["--data", "image_folder", "--data.path", "x", "--data.size", "8", "--eval-batch-size", "4", "--steps", "2"]
    for steps, error, looks in (("2", "", "scans"), ("3", "", "checks"), ("4", "--data.path: x cannot be read", "checks")):
        Path("looks").unlink(missing_ok=True)
        job = [*JOB, *images, "--steps", steps, "--run-dir", "run"]
        codes = ended(crash.start(job, 2, Path("log"), _Looks(error), cache=tmp_path / "cache"), 60)
        assert codes == ([2, 2] if error else [0, 0]), Path("log").read_text()
        assert Path("looks").read_text() == f"rank 0 {looks}\n"
    said = [line for line in Path("log").read_text().splitlines() if "cannot be read" in line]
    assert said == ["distae: --data.path: x cannot be read"]
