"""The run folder: written to, compared, moved aside."""

from dataclasses import replace

import pytest
from helpers import settings

from distae import runfolder
from distae.errors import UserError


def test_a_folder_that_cannot_be_written_is_refused():
    with pytest.raises(UserError, match=r"--run-dir: cannot write to /proc/distae .*; give a folder that can be written"):
        runfolder.check(replace(settings(), run_dir="/proc/distae"))


def test_other_settings_are_told(tmp_path):
    cfg = replace(settings(seed=3), run_dir=str(tmp_path))
    runfolder.check(cfg)
    runfolder.prepare(cfg, main=True)
    runfolder.check(replace(cfg, steps=99, log_every=1, run_dir=str(tmp_path)))
    other = replace(settings(seed=4, optim={"lr": 0.5}), run_dir=str(tmp_path))
    with pytest.raises(UserError) as caught:
        runfolder.check(other)
    first, second = str(caught.value).splitlines()
    assert (
        first
        == f"--run-dir: {tmp_path} holds a run of other settings: optim.lr is 0.01 there and 0.5 here; seed is 3 there and 4 here."
    )
    assert second == "Give another --run-dir, or --fresh to move that run aside and start anew"
    runfolder.check(replace(other, fresh=True))


def test_many_differences_are_counted(tmp_path):
    runfolder.prepare(replace(settings(), run_dir=str(tmp_path)), main=True)
    other = settings(seed=9, ema=0.5, noise="per_rank", precision="fp64", model={"name": "vae"}, net={"name": "conv"})
    with pytest.raises(UserError, match=r"; and \d+ more\."):
        runfolder.check(replace(other, run_dir=str(tmp_path)))


def test_fresh_moves_a_run_aside(tmp_path):
    cfg = replace(settings(), run_dir=str(tmp_path / "a"))
    runfolder.check(cfg)
    runfolder.prepare(cfg, main=True)
    (tmp_path / "a" / "metrics.jsonl").write_text("{}")
    runfolder.prepare(replace(cfg, fresh=True), main=True)
    assert sorted(p.name for p in (tmp_path / "a").iterdir()) == ["config.toml"]
    (aside,) = tmp_path.glob("a.*")
    assert (aside / "metrics.jsonl").read_text() == "{}"


def test_other_ranks_write_nothing(tmp_path):
    runfolder.prepare(replace(settings(), run_dir=str(tmp_path)), main=False)
    assert not list(tmp_path.iterdir())
