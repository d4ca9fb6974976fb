"""Checkpoints of other versions of torch resume: two recorded runs, one made by torch 2.11 and one by 2.15.

Each holds steps 6 and 12 of the same run. To make them again, with the interpreter of each version:

    run="python -m distae.train --run-dir tests/data/checkpoints/torch-2.11 --net.hidden 2 --model.latent-dim 2 --ema 0.9
    --precision fp64 --data.limit 48 --data.val-fraction 0 --global-batch-size 16 --tracking none --device cpu --threads 1"
    $run --steps 6 && $run --steps 12
    cd tests/data/checkpoints/torch-2.11 && rm -r images model metrics.jsonl outcome.json log.txt
"""

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from distae import data
from distae.checkpoint import read_tensors
from distae.checkpoint.retention import name_of
from distae.commands import train
from distae.config import TrainConfig, build, check
from distae.config.cli import read_toml
from distae.runtime.environment import Environment
from distae.runtime.signals import StopRequest
from distae.training.state import state_dict
from distae.training.trainer import Trainer

RECORDED = sorted((Path(__file__).parent / "data" / "checkpoints").glob("torch-*"))


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
