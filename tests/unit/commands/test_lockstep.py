"""Several runs in one process: each is what it would be alone, also after a stop, and what they read is read once."""

import itertools
import re
import signal
from collections.abc import Generator
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from helpers import settings
from safetensors.torch import load_file

from distae.__main__ import main
from distae.commands import lockstep, session
from distae.commands.session import train_run
from distae.config import TrainConfig
from distae.data import load
from distae.data.datasets.synthetic_features import Generated
from distae.errors import UserError
from distae.runtime.environment import Environment
from distae.runtime.outcome import Outcome
from distae.runtime.signals import StopRequest

DATA = {"name": "synthetic_features", "samples": 400, "features": 40, "dim": 12}


def configs(folder: Path) -> list[TrainConfig]:
    """Other k, widths, lengths and seeds of two variants."""
    shared: dict[str, Any] = {"data": DATA, "save_every": 7, "ema": 0.9}
    found = [
        settings(model={"name": "batch_topk_sae", "latent_dim": 24, "k": 2}, **shared),
        settings(model={"name": "batch_topk_sae", "latent_dim": 48, "k": 4}, **shared | {"steps": 17}),
        settings(model={"name": "topk_sae", "latent_dim": 24, "k": 3}, **shared | {"seed": 4}),
    ]
    return [replace(cfg, run_dir=str(folder / str(number))) for number, cfg in enumerate(found)]


@pytest.fixture
def streamed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("distae.data.datasets.synthetic_features.SMALL_BYTES", 0)
    monkeypatch.setattr("distae.data.storage.SMALL_BYTES", 0)


def weights(cfg: TrainConfig) -> dict[str, torch.Tensor]:
    return load_file(Path(str(cfg.run_dir)) / "model" / "model.safetensors")


@pytest.mark.slow
def test_runs_are_what_they_are_alone(tmp_path: Path, streamed: None) -> None:
    """To the bit, in one piece and stopped in the middle and resumed."""
    straight = configs(tmp_path / "alone")
    for cfg in straight:
        assert train_run(cfg, load(cfg.data), StopRequest(), 1).outcome == "done"
    together = configs(tmp_path / "together")
    assert lockstep.run_in_lockstep(together, Environment()).outcome == "done"
    stopped, stop, steps = configs(tmp_path / "stopped"), StopRequest(), session.run_steps

    def stopping(*args: Any) -> Generator[None, None, Outcome]:
        run = steps(*args)
        for number in itertools.count():
            try:
                next(run)
            except StopIteration as end:
                return end.value  # type: ignore[no-any-return]
            if number == 9:
                stop(signal.SIGTERM, None)
            yield
        raise AssertionError

    with mock.patch.object(lockstep, "run_steps", stopping):
        assert lockstep.train(stopped, load(stopped[0].data), stop, 1).outcome == "stopped"
    assert lockstep.run_in_lockstep(stopped, Environment()).outcome == "done"
    for cfgs in (together, stopped):
        for cfg, alone in zip(cfgs, straight, strict=True):
            found, expected = weights(cfg), weights(alone)
            assert found.keys() == expected.keys()
            assert all(torch.equal(found[k], expected[k]) for k in expected)


def test_samples_are_read_once_for_all(streamed: None) -> None:
    splits = load(settings(data=DATA).data)
    source, rows = splits["train"].source, torch.arange(5)
    with mock.patch.object(Generated, "read", autospec=True, side_effect=Generated.read) as read:
        shared = lockstep.with_shared_reads(splits, 3)
        train, test = shared["train"].source, shared["test"].source
        assert train is test
        for number in (1, 1, 1, 2):
            assert torch.equal(train.read(rows), source.read(rows))
            assert sum(call.args[0] is train for call in read.call_args_list) == number
        assert train.features is source.features
        assert len(train) == 400
    del train.__dict__["read"]


def test_the_oldest_samples_go_and_errors_are_not_kept() -> None:
    reads = []

    def read(rows: torch.Tensor) -> torch.Tensor:
        reads.append(rows.tolist())
        if rows[0] < 0:
            raise OSError("gone")
        return rows

    shared = lockstep.SharedReads(read, 2, most=4)
    for first in (0, 3, 6):
        shared(torch.arange(first, first + 3))
    assert (shared.rows, len(shared.kept)) == (3, 1)
    shared(torch.arange(6, 9))
    assert (shared.rows, len(shared.kept), len(reads)) == (0, 0, 3)
    for _ in range(2):
        with pytest.raises(OSError, match="gone"):
            shared(-torch.ones(2, dtype=torch.int64))
    assert (shared.rows, len(reads)) == (0, 5)


def test_runs_of_other_data_are_an_error(tmp_path: Path) -> None:
    one, two = configs(tmp_path)[:2]
    other = replace(two, data=replace(two.data, val_fraction=0.2))
    with pytest.raises(UserError, match="--together: all runs must have the same --data"):
        lockstep.run_in_lockstep([one, other], Environment())


def test_a_profile_is_of_one_run(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="--profile is for one run: leave it out with --together"):
        lockstep.run_in_lockstep([replace(cfg, profile=True) for cfg in configs(tmp_path)], Environment())


@pytest.mark.slow
def test_each_has_its_own_run_of_wandb(tmp_path: Path) -> None:
    cfgs = [replace(cfg, tracking="wandb", steps=steps) for cfg, steps in zip(configs(tmp_path)[:2], (3, 5), strict=True)]
    assert lockstep.run_in_lockstep(cfgs, Environment()).outcome == "done"
    files = [[*Path(str(cfg.run_dir)).glob("wandb/offline-run-*/*.wandb")] for cfg in cfgs]
    assert [len(of_run) for of_run in files] == [1, 1]
    for cfg, (file,) in zip(cfgs, files, strict=True):
        assert (Path(str(cfg.run_dir)) / "wandb_id").read_text() in file.name


@pytest.mark.slow
def test_a_sweep_together(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    base = str(tmp_path / "sweep")
    words = [
        "--model",
        "topk_sae",
        "--model.latent-dim",
        "24",
        "--data",
        "synthetic_features",
        "--data.samples",
        "400",
        "--steps",
        "3",
    ]
    words += ["--global-batch-size", "32", "--run-dir", base, "--tracking", "none", "--device", "cpu", "--threads", "1"]
    assert main(["sweep", "--together", "--grid", "model.k=2,4", "--", *words]) == 0
    out, err = capsys.readouterr()
    assert "model.k=4" in out
    for name in ("model.k=2", "model.k=4"):
        assert re.search(rf"^{name}: \S+ \S+ step 3 ", err, re.MULTILINE)
    assert all((tmp_path / "sweep" / name / "model" / "model.safetensors").exists() for name in ("model.k=2", "model.k=4"))
    assert main(["sweep", "--together", "--jobs", "2", "--grid", "model.k=2,4", "--", *words]) == 2
    assert "--together is one process: --jobs cannot be given" in capsys.readouterr().err
