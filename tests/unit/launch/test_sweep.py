"""Sweeps on this machine: which backend, what is run again, and the table at the end."""

import csv
import os
import signal
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from helpers import settings

from distae.config import parse, write_toml
from distae.errors import UserError
from distae.runtime.outcome import Outcome
from launch import here, partitions, slurm, sweep

GRID = ["--grid", "model.beta=1,4", "seed=0,1"]
TRAIN = (
    "--model vae --model.latent-dim 2 --net.hidden 8 --steps 4 --data.limit 100 --global-batch-size 20 --eval-every 2 "
    "--tracking none --device cpu"
)


def chosen(*words: str, cluster: bool, monkeypatch: pytest.MonkeyPatch) -> bool:
    monkeypatch.setattr(partitions, "partitions", lambda: [partitions.Partition("p", True, None, 1, 1, 0)] if cluster else [])
    return sweep.is_local(parse(sweep.SweepConfig, words, slurm.SWITCHES, "", "cluster").settings, words)


def test_a_sweep_is_local_unless_there_is_a_cluster_or_an_option_of_jobs(monkeypatch):
    assert chosen(*GRID, cluster=False, monkeypatch=monkeypatch)
    assert not chosen(*GRID, cluster=True, monkeypatch=monkeypatch)
    assert chosen(*GRID, "--jobs", "2", cluster=True, monkeypatch=monkeypatch)
    assert chosen(*GRID, "--backend", "local", cluster=True, monkeypatch=monkeypatch)
    assert not chosen(*GRID, "--nodes=1", cluster=False, monkeypatch=monkeypatch)
    assert not chosen(*GRID, "--backend", "slurm", cluster=False, monkeypatch=monkeypatch)
    for words in (["--jobs", "2", "--nodes", "2"], ["--backend", "local", "--time", "10"], ["--backend", "slurm", "--jobs", "2"]):
        with pytest.raises(UserError, match=r"--jobs|--backend local"):
            chosen(*GRID, *words, cluster=False, monkeypatch=monkeypatch)
    with pytest.raises(UserError, match="--together trains in this process: --backend slurm"):
        chosen(*GRID, "--together", "--backend", "slurm", cluster=True, monkeypatch=monkeypatch)


def test_mistakes_end_a_sweep_before_its_first_run(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(here.Workers, "run", lambda self: pytest.fail("it began"))
    train = [*TRAIN.split(), "--run-dir", str(tmp_path / "sweep")]
    for grid, words in {"model.beta=1,x": "--model.beta: 'x' is not valid", "seed": "--grid: 'seed' is not NAME=VALUE"}.items():
        assert sweep.main(["--jobs", "1", "--grid", grid, "--", *train]) == 2
        assert words in capsys.readouterr().err
    other = settings(model={"name": "vae"}, run_dir=str(tmp_path / "sweep" / "seed=1"))
    (tmp_path / "sweep" / "seed=1").mkdir(parents=True)
    (tmp_path / "sweep" / "seed=1" / "config.toml").write_text(write_toml(other))
    assert sweep.main(["--jobs", "1", "--grid", "seed=0,1", "--", *train]) == 2
    assert "seed=1 contains a run with other settings" in capsys.readouterr().err


def test_a_run_is_done_if_it_has_ended_with_these_settings(tmp_path):
    cfg = settings(model={"name": "vae"}, run_dir=str(tmp_path))
    (tmp_path / "config.toml").write_text(write_toml(cfg))
    assert not here.Task("a", cfg).is_done
    Outcome("done", 20, str(tmp_path)).write()
    assert here.Task("a", cfg).is_done
    changed: dict[str, Any] = {"threads": 4, "steps": 40, "seed": 9, "fresh": True}
    assert [here.Task("a", replace(cfg, **{k: v})).is_done for k, v in changed.items()] == [True, False, False, False]
    Outcome("stopped", 20, str(tmp_path)).write()
    assert not here.Task("a", cfg).is_done


def test_each_run_has_a_gpu_of_its_own(monkeypatch):
    task = here.Task("a", settings(device="auto"))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,5")
    assert [here.Workers._environment(task, slot)["CUDA_VISIBLE_DEVICES"] for slot in (0, 1, 2)] == ["3", "5", "3"]
    assert here.Workers._environment(here.Task("a", settings(device="cpu")), 1)["CUDA_VISIBLE_DEVICES"] == "3,5"


@pytest.fixture
def base(tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(Path(here.__file__).parents[1]))
    return tmp_path / "sweep"


@pytest.mark.spawn
def test_a_sweep_on_this_machine_is_resumed_and_compared(base, capfd):
    """A run that fails leaves the others alone; rerun, what is done is not run again."""
    argv = ["--jobs", "3", "--grid", "seed=0,1", "--", *TRAIN.split(), "--run-dir", str(base)]
    assert sweep.main([*argv[:3], "optim.lr=0.01,1e30", *argv[3:]]) == 1
    out = capfd.readouterr().out
    assert out.count(": done at step 4 (") == 2
    assert out.count(": failed: ") == 2
    assert f"(all of it: {base}/sweep/optim.lr=1e30,seed=" in out
    before = {p: p.stat().st_mtime_ns for p in base.glob("*/model/model.safetensors")}
    assert len(before) == 2
    assert sweep.main([*argv[:3], "optim.lr=0.01", *argv[3:]]) == 0
    out = capfd.readouterr().out
    assert out.count(": done before\n") == 2
    assert "mean ± standard deviation over seeds\nseeds " in out
    assert {p: p.stat().st_mtime_ns for p in before} == before
    with (base / "compare.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row["optim.lr"] == "0.01"]
    assert [row["statistic"] for row in rows] == ["", "", "mean", "std"]
    losses = [float(row["best val/loss"]) for row in rows]
    assert sum(losses[:2]) / 2 == pytest.approx(losses[2])


@pytest.mark.spawn
def test_a_signal_saves_what_runs_and_begins_no_further_run(base, capfd):
    def ask() -> None:
        while not list(base.glob("*/metrics.jsonl")):
            time.sleep(0.1)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=ask, daemon=True).start()
    train = TRAIN.replace("--steps 4", "--steps 1000000")
    assert sweep.main(["--backend", "local", *GRID, "--", *train.split(), "--run-dir", str(base)]) == 75
    out, err = capfd.readouterr()
    assert ": stopped at step " in out
    assert "distae: stopped; rerun the command to resume" in err
    assert [p.name for p in base.iterdir() if p.name != "sweep"] == ["model.beta=1,seed=0"]
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
