"""Checkpoints of other versions: of torch they resume, of distae they are read, and resumed only where that is exact.

Each of torch-* holds steps 6 and 12 of the same run, made by that torch; order-1 is a run that distae 8062223 made.
To make them again, with the interpreter of each version:

    run="python -m distae.train --run-dir tests/data/checkpoints/torch-2.11 --net.hidden 2 --model.latent-dim 2 --ema 0.9
    --precision fp64 --data.limit 48 --data.val-fraction 0 --global-batch-size 16 --tracking none --device cpu --threads 1"
    $run --steps 6 && $run --steps 12
    cd tests/data/checkpoints/torch-2.11 && rm -r images model metrics.jsonl outcome.json log.txt
"""

import shutil
import tomllib
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from helpers import ROOT

from distae import data, load
from distae.checkpoint import read_tensors
from distae.checkpoint.retention import name_of
from distae.commands import train
from distae.commands.checkpoint import main as checkpoint
from distae.config import TrainConfig, build, check
from distae.config.cli import read_toml
from distae.noise import ORDER
from distae.runtime.environment import Environment
from distae.runtime.signals import StopRequest
from distae.training.state import state_dict
from distae.training.trainer import Trainer

FOLDER = ROOT / "tests" / "data" / "checkpoints"
RECORDED = sorted(FOLDER.glob("torch-*"))


@pytest.fixture(params=RECORDED, ids=lambda path: path.name)
def recorded(request):
    return request.param


@pytest.fixture
def cfg(recorded, tmp_path):
    """Settings of a copy of the recorded run that stands at step 6."""
    shutil.copytree(recorded, tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "checkpoints" / name_of(12))
    cfg = check(build(TrainConfig, read_toml(str(recorded / "config.toml"))), 1)
    return replace(cfg, run_dir=str(tmp_path / "run"))


def test_there_is_one_of_the_oldest_and_one_of_a_newer_torch():
    assert [path.name for path in RECORDED] == ["torch-2.11", "torch-2.15"]


def test_a_checkpoint_of_another_torch_is_loaded_bit_for_bit(recorded, cfg):
    trainer = Trainer(cfg, data.load(cfg.data), StopRequest(), 1)
    trainer.resume()
    there, here = read_tensors(recorded / "checkpoints" / name_of(6)), state_dict(trainer.train_step)
    trainer.close()
    assert trainer.state.step == 6
    assert set(here) == set(there)
    assert {k.split(".")[0] for k in here} == {"model", "ema", "optim"}
    assert all(torch.equal(here[k], there[k]) and here[k].dtype == there[k].dtype for k in here)


def test_a_run_of_another_torch_ends_where_that_one_did(recorded, cfg):
    assert train.run(cfg, Environment()).outcome == "done"
    there, here = (read_tensors(path / "checkpoints" / name_of(12)) for path in (recorded, Path(cfg.run_dir)))
    assert set(here) == set(there)
    for name, tensor in here.items():  # not bit for bit: other kernels may add in another order
        torch.testing.assert_close(tensor, there[name], rtol=1e-9, atol=1e-12)


@pytest.fixture
def first_order(tmp_path):
    """A copy of a run of the first order of rows and noise."""
    shutil.copytree(FOLDER / "order-1", tmp_path / "old")
    return tmp_path / "old"


def again(run_dir: Path, *argv: str) -> int:
    return train.main(["--config", str(run_dir / "config.toml"), "--run-dir", str(run_dir), *argv])


def test_a_run_of_another_order_is_not_resumed(first_order, capsys):
    before = sorted(p.relative_to(first_order) for p in first_order.rglob("*"))
    assert again(first_order, "--steps", "18") == 2
    first, second = capsys.readouterr().err.splitlines()[-2:]
    assert f"is of another version of distae (order 1, here {ORDER})" in first
    assert all(way in second for way in ("--fresh", "--fork-from", "--init-from", "distae.load", "--export"))
    after = sorted(p.relative_to(first_order) for p in first_order.rglob("*"))
    assert [p for p in after if p.name.startswith("step_")] == [p for p in before if p.name.startswith("step_")]


def test_a_run_of_another_order_is_still_read(first_order, tmp_path):
    expected = read_tensors(first_order / "checkpoints" / name_of(12))
    assert checkpoint([str(first_order), "--export", "12", str(tmp_path / "exported")]) == 0
    for model in (load(first_order).module, load(tmp_path / "exported").module):
        assert all(torch.equal(v, expected[f"ema.{k}"]) for k, v in model.state_dict().items())


@pytest.mark.parametrize("way", ["--init-from", "--fork-from"])
def test_a_run_of_another_order_is_a_start_for_others(first_order, tmp_path, way):
    there = tomllib.loads((first_order / "config.toml").read_text())
    there["run_dir"], there["steps"] = str(tmp_path / "new"), 14
    cfg = check(build(TrainConfig, there | {way[2:].replace("-", "_"): str(first_order)}), 1)
    assert train.run(cfg, Environment()).outcome == "done"
    assert again(tmp_path / "new") == 0


def test_a_run_of_another_order_may_be_started_anew(first_order):
    assert again(first_order, "--fresh") == 0
    assert again(first_order, "--no-fresh", "--steps", "13") == 0
