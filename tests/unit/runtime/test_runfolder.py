"""The run folder: written to, compared, moved aside."""

import time
from dataclasses import replace

import pytest
from helpers import settings

from distae.errors import UserError
from distae.runtime.run_dir import accept, check_run_dir, open_run_dir


def test_a_folder_that_cannot_be_written_is_rejected():
    with pytest.raises(UserError, match=r"--run-dir: cannot write to /proc/distae .*; give a writable folder"):
        check_run_dir(replace(settings(), run_dir="/proc/distae"))


def begin(cfg):
    """What a start does up to its first step."""
    folder = open_run_dir(cfg)
    accept(cfg)
    folder.release()


@pytest.fixture
def opened(tmp_path):
    """Settings of a run that was there before."""
    cfg = replace(settings(seed=3), run_dir=str(tmp_path / "run"))
    check_run_dir(cfg)
    begin(cfg)
    return cfg


def test_other_settings_are_reported(opened):
    check_run_dir(replace(opened, steps=99, log_every=1))
    other = replace(settings(seed=4, optim={"lr": 0.5}), run_dir=opened.run_dir)
    with pytest.raises(UserError) as caught:
        check_run_dir(other)
    first, second = str(caught.value).splitlines()
    there = "optim.lr is 0.01 there and 0.5 here; seed is 3 there and 4 here"
    assert first == f"--run-dir: {opened.run_dir} contains a run with other settings: {there}."
    assert second == "Give another --run-dir, or --fresh to rename that run's folder and start a new run"
    check_run_dir(replace(other, fresh=True))


def test_many_differences_are_counted(opened):
    other = settings(seed=9, ema=0.5, precision="fp64", model={"name": "vae"}, net={"name": "conv"})
    with pytest.raises(UserError, match=r"; and \d+ more\."):
        check_run_dir(replace(other, run_dir=opened.run_dir))


def test_fresh_moves_a_run_aside(opened, tmp_path):
    (tmp_path / "run" / "metrics.jsonl").write_text("{}")
    begin(replace(opened, fresh=True))
    assert sorted(p.name for p in (tmp_path / "run").iterdir()) == ["config.toml"]
    (aside,) = tmp_path.glob("run.*")
    assert (aside / "metrics.jsonl").read_text() == "{}"


def test_fresh_twice_in_a_second(opened, tmp_path, monkeypatch):
    monkeypatch.setattr(time, "strftime", lambda form: "then")
    for _ in range(3):
        begin(replace(opened, fresh=True))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["run", "run.then", "run.then-2", "run.then-3"]


@pytest.mark.parametrize("name", ["metrics.jsonl", "log.txt"])
def test_a_file_that_cannot_be_written_to(opened, tmp_path, name):
    (tmp_path / "run" / name).mkdir()  # as another user's would be, but to root, too
    with pytest.raises(UserError, match=f"--run-dir: .*run/{name}: it is a folder, not a file"):
        check_run_dir(opened)


def test_a_check_makes_nothing(tmp_path):
    cfg = replace(settings(), run_dir=str(tmp_path / "runs" / "a"))
    check_run_dir(cfg)
    assert not list(tmp_path.iterdir())
    (tmp_path / "link").symlink_to(tmp_path / "not-mounted")
    with pytest.raises(UserError, match=r"--run-dir: cannot write to .*link"):
        check_run_dir(replace(cfg, run_dir=str(tmp_path / "link" / "a")))


def test_two_runs_in_one_folder_are_rejected(opened):
    lock = open_run_dir(opened)
    with pytest.raises(UserError, match=r"--run-dir: .*run is in use by process \d+ on "):
        open_run_dir(opened)
    lock.release()
    open_run_dir(opened).release()
