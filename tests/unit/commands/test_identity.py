"""A run that is resumed on other data than it was trained on says so, before a step is taken."""

import json
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers import settings

from distae import data
from distae.checkpoint.retention import COMMIT, STATE, name_of
from distae.checkpoint.shards import checksum
from distae.commands import checkpoint
from distae.config import TrainConfig
from distae.errors import UserError
from distae.runtime.outcome import Outcome


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return write(200)


def write(samples: int, seed: int = 0) -> Path:
    np.save("x.npy", np.random.default_rng(seed).random((samples, 6), np.float32))
    return Path("x.npy")


def on_file(**changes: Any) -> TrainConfig:
    model = {"name": "vae", "likelihood": "gaussian"}
    return replace(settings(data={"name": "array", "path": "x.npy"}, steps=4, save_every=2, model=model), **changes)


def start(cfg: TrainConfig, capsys: Any) -> tuple[Outcome, str]:
    from distae.commands.session import run_in_turn
    from distae.runtime.environment import Environment

    cfg = replace(cfg, run_dir="run")
    return run_in_turn(cfg, Environment(), nullcontext([cfg])), capsys.readouterr().err


@pytest.mark.parametrize(("samples", "words"), [(900, "train.samples is 162 there and 729 here"), (200, "train.values is ")])
def test_a_file_replaced_between_two_starts(file: Path, capsys: Any, samples: int, words: str) -> None:
    assert start(on_file(), capsys)[0].outcome == "done"
    rows = Path("run/metrics.jsonl").read_bytes()
    write(samples, seed=1)
    with pytest.raises(UserError) as refusal:
        start(on_file(steps=8), capsys)
    assert str(refusal.value).startswith("--data.path x.npy: the data differ from those of the checkpoint at step 4: ")
    assert words in str(refusal.value)
    assert Path("run/metrics.jsonl").read_bytes() == rows
    end, report = start(on_file(steps=8, allow_changed_data=True), capsys)
    assert (end.outcome, end.step) == ("done", 8)
    assert words in report
    assert "(--allow-changed-data)" in report
    end, report = start(on_file(steps=9), capsys)
    assert (end.outcome, end.step) == ("done", 9)
    assert "the data are" not in report


def test_a_file_of_another_time_in_another_place_is_the_same_data(file: Path, capsys: Any) -> None:
    start(on_file(), capsys)
    file.rename("y.npy")
    write(200)
    assert start(on_file(steps=5), capsys)[0].step == 5


def test_a_checkpoint_that_does_not_know_its_data(file: Path, capsys: Any) -> None:
    start(on_file(), capsys)
    folder = Path("run/checkpoints") / name_of(4)
    saved = json.loads((folder / STATE).read_text())
    assert saved.pop("data") == data.identity(data.load(on_file().data))
    (folder / STATE).write_text(json.dumps(saved))
    marker = json.loads((folder / COMMIT).read_text())
    marker["files"][STATE] = {"size": (folder / STATE).stat().st_size, "xxh3": checksum(folder / STATE)}
    (folder / COMMIT).write_text(json.dumps(marker))
    end, report = start(on_file(steps=5), capsys)
    assert end.step == 5
    assert "resumed at step 4" in report
    assert "does not record its data" in report


def test_a_fork_may_have_other_data_and_says_so(file: Path, capsys: Any) -> None:
    start(on_file(), capsys)
    write(210)
    Path("run").rename("source")
    end, report = start(on_file(steps=8, fork_from="source"), capsys)
    assert end.step == 8
    assert "forked from source at step 4" in report
    assert "train.samples is 162 there and 170 here" in report


def test_the_exported_model_says_on_which_data(file: Path, capsys: Any) -> None:
    start(on_file(), capsys)
    about = json.loads(Path("run/model/config.json").read_text())
    assert about["data_identity"] == data.identity(data.load(on_file().data))
    assert checkpoint.main(["run", "--export", "4", "again"]) == 0
    assert json.loads(Path("again/model/config.json").read_text())["data_identity"] == about["data_identity"]


def test_a_checkpoint_of_other_settings_is_rejected(file: Path, capsys: Any) -> None:
    start(on_file(), capsys)
    folder = Path("run/checkpoints") / name_of(4)
    saved = json.loads((folder / STATE).read_text())
    (folder / STATE).write_text(json.dumps(saved | {"settings": saved["settings"] | {"seed": 77}}))
    commit = json.loads((folder / COMMIT).read_text())
    commit["files"][STATE] = {"size": (folder / STATE).stat().st_size, "xxh3": checksum(folder / STATE)}
    (folder / COMMIT).write_text(json.dumps(commit))
    with pytest.raises(UserError, match="the checkpoint has other settings: seed is 77 there and 3 here"):
        start(on_file(steps=8), capsys)
