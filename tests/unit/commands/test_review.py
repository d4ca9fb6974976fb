"""Mistakes at the start, each answered in words before anything is made; and disks that are full."""

import errno
import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import settings
from safetensors import SafetensorError

from distae.commands import train
from distae.config import TrainConfig, parse
from distae.config.cli import read_toml
from distae.errors import UserError
from distae.models import serialization
from distae.models.size import check_size
from distae.runtime import run_dir
from distae.runtime.environment import Environment
from distae.runtime.outcome import Outcome
from distae.runtime.run_dir import accept, check_run_dir, open_run_dir
from launch import status

pytestmark = pytest.mark.slow


def test_settings_are_read_from_a_file_of_sane_size_only(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    with (tmp_path / "sparse").open("wb") as file:
        file.truncate(1 << 40)
    (tmp_path / "number").write_text(f"seed = {'9' * 5000}\n")
    (tmp_path / "good").write_text("seed = 4\n")
    (tmp_path / "link").symlink_to(tmp_path / "good")
    bad = {"/dev/zero": "not a file", "fifo": "not a file", "sparse": "at most", "number": "not valid TOML", ".": "not a file"}
    for name, why in bad.items():
        with pytest.raises(UserError, match=why):
            read_toml(str(tmp_path / name))
    assert read_toml(str(tmp_path / "link")) == {"seed": 4}


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"model": {"latent_dim": 10**12}}, "weights and gradients take"),
        ({"net": {"hidden": [10**12]}}, "weights and gradients take"),
        ({"net": {"hidden": [10**12, 10**12]}}, "cannot be built"),
        ({"net": {"name": "resnet", "blocks": 10**9}}, "deeper"),
    ],
)
def test_a_model_that_cannot_fit_is_refused_before_a_folder_is_made(tmp_path: Path, change: dict[str, Any], why: str) -> None:
    cfg = settings(data={"name": "digits", "limit": 96}, steps=2, **change)
    with pytest.raises(UserError, match=why):
        train.run(replace(cfg, run_dir=str(tmp_path / "run")), Environment())
    assert not list(tmp_path.iterdir())


def test_the_size_is_weights_and_gradients() -> None:
    cfg = settings(model={"latent_dim": 1}, net={"hidden": [2]})
    weights = (8 * 2 + 2) + (2 * 1 + 1) + (1 * 2 + 2) + (2 * 8 + 8)
    check_size(cfg, (8,), 2 * 4 * weights)
    with pytest.raises(UserError, match="weights and gradients take"):
        check_size(cfg, (8,), 2 * 4 * weights - 1)


def test_a_full_disk_at_the_export_has_its_number(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What makes `train` report it in words."""

    def full(*_: object) -> None:
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    monkeypatch.setattr(serialization, "save_file", full)
    with pytest.raises(OSError, match="No space left") as error:
        serialization.export({"a": torch.zeros(1)}, settings(), tmp_path / "model", 1, None, None)
    assert error.value.errno == errno.ENOSPC


def test_status_reads_the_end_of_the_rows_and_no_pipe(tmp_path: Path) -> None:
    """Where a row is damaged, or a value is null, the others are still shown."""
    row = {"step": 7, "epoch": 0.5, "train/loss": 2.0, "train/kl": None}
    with (tmp_path / "metrics.jsonl").open("w") as file:
        file.truncate(1 << 40)
        file.seek(0, os.SEEK_END)
        file.write("\n" + json.dumps(row) + '\n{"val/loss": 1}\n{"step": [], "x/y": {}}\n{"step": 8, "epo')
    assert ("train", "step 7 epoch 0.50 train/loss=2 train/kl=nan") in [*status.report(tmp_path)]
    (tmp_path / "metrics.jsonl").unlink()
    os.mkfifo(tmp_path / "metrics.jsonl")
    assert [*status.report(tmp_path)] == [("run", str(tmp_path))]


def test_a_run_that_cannot_be_moved_aside_is_refused_and_its_lock_given_back(tmp_path: Path) -> None:
    """As where a file system is mounted on it, or the folder above is another user's."""
    cfg = settings(run_dir=str(tmp_path / "run"), fresh=True)
    open_run_dir(replace(cfg, fresh=False)).release()
    accept(cfg)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run_dir, "_aside", lambda _: tmp_path / "not there" / "aside")
        with pytest.raises(UserError, match=r"--fresh: .* cannot be moved aside: No such file or directory"):
            open_run_dir(cfg)
    open_run_dir(cfg).release()
    assert len([*tmp_path.glob("run.*")]) == 1


def test_an_option_that_is_gone_is_not_suggested() -> None:
    with pytest.raises(UserError, match="unknown option '--nois'") as error:
        parse(TrainConfig, ["--nois", "global"], {}, "distae train")
    assert "did you mean '--noise'" not in str(error.value)


def test_only_a_run_with_a_model_is_named_for_init_from(tmp_path: Path) -> None:
    cfg = settings(run_dir=str(tmp_path))
    open_run_dir(cfg).release()
    Outcome("stopped", 4, str(tmp_path)).write()
    with pytest.raises(UserError, match="deleted") as error:
        check_run_dir(cfg)
    assert "--init-from" not in str(error.value)
    (tmp_path / "model").mkdir()
    with pytest.raises(UserError, match="--init-from takes its model"):
        check_run_dir(cfg)


def test_a_fork_from_another_model_is_a_users_mistake_and_says_both_shapes(tmp_path: Path) -> None:
    cfg = settings(data={"name": "digits", "limit": 96}, steps=2, save_every=2, run_dir=str(tmp_path / "a"))
    assert train.run(cfg, Environment()).outcome == "done"
    other = replace(cfg, fork_from=cfg.run_dir, run_dir=str(tmp_path / "b"))
    for changed, why in (
        (
            replace(other, model=replace(cfg.model, latent_dim=5)),
            r"--fork-from: .* is float32 \[8, 4\] there and float32 \[8, 5\] here",
        ),
        (replace(other, model=settings(model={"name": "vq_vae"}).model), "--fork-from: .* is in only one of the two"),
    ):
        with pytest.raises(UserError, match=why):
            train.run(replace(changed, fresh=True), Environment())
    (tmp_path / "a" / "outcome.json").unlink()
    assert train.run(replace(cfg, steps=1), Environment()).step == 2
    assert "resumed at step 2, which is more than the 1 steps asked for" in (tmp_path / "a" / "log.txt").read_text()
