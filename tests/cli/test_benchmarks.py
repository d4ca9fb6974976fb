"""The benchmarks run; what they measure is not tested."""

import json
import os
import runpy
import subprocess
import sys

import numpy as np
import pytest
from helpers import ROOT

from benchmarks.crash import selfcheck
from distae.config import TrainConfig
from distae.config.data import DigitsConfig
from distae.config.models import VAEConfig
from distae.data import Transform
from distae.models import build
from distae.models.serialization import export


def run(name: str, *args: str) -> dict:
    """The JSON object that `benchmarks/NAME` ends with."""
    command = [sys.executable, f"benchmarks/{name}", *args]
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


@pytest.fixture
def run_here(monkeypatch, capsys):
    """The same in this process, which has torch already."""
    monkeypatch.syspath_prepend(ROOT / "benchmarks")

    def main(name: str, *args: str) -> dict:
        monkeypatch.setattr(sys, "argv", [name, *args])
        runpy.run_path(str(ROOT / "benchmarks" / name), run_name="__main__")
        return json.loads(capsys.readouterr().out.splitlines()[-1])

    return main


def test_cost_of_checkpoints(tmp_path):
    result = run("checkpoint.py", "--quick", "--dir", str(tmp_path))
    for ranks in (1, 2):
        report = result[f"ranks_{ranks}"]
        assert {"raw_write", "torch_save", "dcp_save", "ours_sync", "ours_async", "memory"} <= set(report)
        assert sum(m["staging_bytes"] for m in report["memory"]) == report["bytes"]
        assert all(s["durable"]["min"] > 0 for s in report.values() if isinstance(s, dict) and "durable" in s)
    assert not list(tmp_path.iterdir())


def test_round_trips_of_the_explorer(run_here):
    figures = run_here("explore.py", "--requests", "20", "--recipes", "vae_mnist")["vae_mnist"]
    assert 0 < figures["median"] <= figures["p95"] <= figures["largest"]


def test_training_speed(run_here):
    result = run_here("train.py", "--workloads", "ae-32", "--rounds", "0", "--scale", "0.01")
    report = result["ae-32"]
    assert report["parameters"] == 438180
    assert {"ours", "tutorial"} <= set(report["of_limit"])
    assert all(
        least <= median <= most for least, median, most in [[o["cpu"][i] for i in (1, 0, 2)] for o in report["ours_over"].values()]
    )


def test_compression(run_here, tmp_path):
    cfg = TrainConfig(model=VAEConfig(latent_dim=4), data=DigitsConfig())
    export(build(cfg.model, cfg.net, (1, 8, 8)), cfg, tmp_path / "a" / "model", 1, Transform(16.0), None)
    result = run_here("compression.py", str(tmp_path / "a"), "--steps", "0.5", "--sheets", "2")
    (row,) = result[str(tmp_path / "a")]["steps"]
    assert row["bits_per_pixel"] == 8 * row["bytes"] / 6400
    assert {"ours", "pca"} <= set(row)
    assert 1 < result[str(tmp_path / "a")]["coder"]["of_entropy"] < 1.2


def test_two_processes(run_here):
    more = ("--ours-args", "--ema 0.9", "--parallel", "fsdp")
    result = run_here("ddp.py", "--workloads", "ae-32", "--rounds", "0", "--scale", "0.01", *more)
    ours = {"ours", "ours --ema 0.9", "ours --parallel fsdp"}
    assert set(result["ae-32"]["over"]) == {"apart", "by hand", "in step", "by hand, apart"} | ours
    assert result["ae-32"]["step_time_over_ddp"]["fsdp"][0] > 0
    assert min(result["ae-32"]["samples_per_second"].values()) > 0


def test_data(run_here):
    result = run_here("data.py", "wait", "--rounds", "0", "--steps", "9", "--scale", "0.02")
    assert 0 < result["wait"]["wait, units, 4 threads"][0] < 1


def test_growth(run_here):
    result = run_here("growth.py", "--rounds", "0", "--points", "1", "--no-plot")
    assert [len(result[line]) for line in ("batch", "width", "depth", "images", "saves")] == [1] * 5
    assert {"save_ms", "evaluation_s", "parameters"} <= set(result["saves"][0])


def test_noise_costs_the_same_on_any_number_of_ranks(run_here):
    result = run_here("noise.py", "--rounds", "1", "--accumulation")
    last, first = max(point["mib"] for point in result["over_ranks"]), result["over_ranks"][0]["mib"]
    assert last <= 1.1 * first
    assert len(result["against_one_draw"]) == 3


def test_the_gpu_benchmark_on_the_cpu(run_here):
    names = ("vq-256", "resnet-128px", "kl_f8-after-256px")
    result = run_here("gpu.py", "--device", "cpu", "--tiny", "--rounds", "0", "--no-pair", "--no-variants", "--jobs", *names)
    assert {"limit", "ours"} <= set(result["vq-256"]["samples_per_second"])
    assert result["resnet-128px"]["flops_per_sample"] > 1e6


def test_the_tokenizer_by_hand_and_beside_diffusers_logic(run_here, tmp_path):
    small = ("--batch", "2", "--width", "4")
    result = run_here("tokenizer_step.py", "--rounds", "1", "--side", "16", *small)
    assert all(result[when]["ratio"][0] > 0 for when in ("before", "after"))
    np.save(tmp_path / "images.npy", np.random.default_rng(0).integers(0, 256, (12, 3, 32, 32), np.uint8))
    files = ("--images", str(tmp_path / "images.npy"), "--out", str(tmp_path / "out"))
    row = run_here("tokenizer_beside.py", *files, "--steps", "2", "--start", "1", "--held", "4", "--seeds", "0", *small)
    assert len(list((tmp_path / "out").iterdir())) == 4
    assert {"psnr", "msssim", "random_lpips"} <= set(row)


def test_the_network_of_pythae_by_hand_and_as_a_plugin(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    from pythae_net import PythaeConvConfig
    from workloads import conv_coder, count

    net = PythaeConvConfig(width=2)
    assert count(build(VAEConfig(latent_dim=16), net, (1, 28, 28))) == count(conv_coder(2))


def test_the_crash_harness_finds_what_is_planted(tmp_path):
    assert [name for name, found in selfcheck.check(tmp_path / "check") if not found] == []
