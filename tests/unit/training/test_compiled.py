"""--compile against the same run without: tracing with torch's own eager backend, and real programs of inductor."""

import functools
from dataclasses import replace
from pathlib import Path
from typing import Any

import gate
import pytest
import torch
from helpers import IS_OLDEST, SHIPPED, fitted, metrics, settings, start

from distae.config.models import ModelConfig
from distae.noise import Noise, NoiseRecorder, Rows, replay
from distae.train import main

TRACED: dict[str, dict[str, Any]] = {
    "ramp": {"model": {"name": "vae", "beta": "0:1@3"}, "grad_accum_steps": 2, "ema": 0.5},
    "times": {"model": {"name": "piwae"}},
    "permutation": {"model": {"name": "factor_vae"}},
    "common": {"model": {"name": "swae"}},
    "codebook": {"model": {"name": "vq_vae", "restart_below": 0.1}},
    "phases": {"model": {"name": "wae_gan"}},
    "rejection": {"model": {"name": "svae"}},
    "top k": {"model": {"name": "batch_topk_sae", "latent_dim": 32, "k": 2, "dead_after": 20}},
    "threshold": {"model": {"name": "jumprelu_sae", "latent_dim": 32, "k": 2}},
    "conv": {"net": {"name": "conv", "norm": "batch", "dropout": 0.2}, "channels_last": True},
}
"""What could be traced wrongly; benchmarks/compile.py goes through all variants with inductor."""


def losses(cfg, run_dir: Path) -> list[float]:
    fitted(cfg, run_dir)
    return [row[k] for row in metrics(run_dir) for k in row if k.endswith("/loss")]


@pytest.fixture
def traced():
    """Programs without code generation."""
    with gate.traced():
        yield


@pytest.mark.slow
@pytest.mark.parametrize("case", TRACED)
def test_a_program_is_the_model(case, tmp_path, traced):
    if IS_OLDEST and case in ("top k", "threshold"):
        pytest.skip("torch 2.11 compiles neither batch_topk_sae nor jumprelu_sae: --compile ends with that message")
    cfg = settings(**TRACED[case], steps=5, log_every=1, eval_every=5, precision="fp64")
    eager, compiled = (losses(replace(cfg, compile=c), tmp_path / str(c)) for c in (False, True))
    assert compiled == pytest.approx(eager, rel=1e-12)


@pytest.mark.slow
def test_a_process_may_train_many_models(tmp_path, traced):
    for latent_dim in range(2, 12):
        fitted(settings(model={"name": "ae", "latent_dim": latent_dim}, steps=2, compile=True), tmp_path / str(latent_dim))


@pytest.mark.slow
def test_autocast_reaches_into_the_program(tmp_path, traced):
    cfg = settings(steps=3, log_every=1, precision="bf16")
    eager, compiled = (losses(replace(cfg, compile=c), tmp_path / str(c)) for c in (False, True))
    single = losses(replace(cfg, precision="fp32"), tmp_path / "fp32")
    assert compiled == pytest.approx(eager, rel=1e-6)
    assert compiled != pytest.approx(single, rel=1e-6)


@pytest.mark.slow
def test_inductors_programs_agree_and_resume_bit_for_bit(tmp_path):
    cfg = settings(model={"name": "vae", "beta": "0:1@3"}, steps=6, log_every=1, eval_every=6, compile=True)
    eager, compiled = losses(replace(cfg, compile=False), tmp_path / "eager"), losses(cfg, tmp_path / "compiled")
    assert compiled == pytest.approx(eager, rel=1e-5)
    for steps in (4, 6):
        fitted(replace(cfg, steps=steps), tmp_path / "stopped")
    assert [r["train/loss"] for r in metrics(tmp_path / "stopped") if "train/loss" in r] == compiled[:-2]
    weights = [(tmp_path / run / "model" / "model.safetensors").read_bytes() for run in ("stopped", "compiled")]
    assert weights[0] == weights[1]


@pytest.mark.spawn
def test_without_a_compiler_it_says_so_and_trains(tmp_path):
    """Real: no program called g++ is in PATH, and inductor's cache is empty."""
    argv = "--compile --steps 2 --tracking none --device cpu --threads 1 --data.limit 200 --net.hidden 8 --run-dir run"
    done = start(*argv.split(), cwd=tmp_path, PATH=str(tmp_path), CXX=None, TORCHINDUCTOR_CACHE_DIR=str(tmp_path / "cache"))
    assert done.returncode == 0, done.stderr
    (line,) = [text for text in done.stderr.splitlines() if "--compile" in text]
    assert "finds no compiler here, training continues without" in line
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("argv", "why"),
    [
        ("--model rae_gp --compile", "--compile: rae_gp takes gradients within its objective"),
        ("--cuda-graphs", "--cuda-graphs requires --compile"),
        ("--cuda-graphs --compile --device cpu", "--cuda-graphs requires --compile"),
        ("--cuda-graphs --compile --grad-accum-steps 2", "--grad-accum-steps 1 (now 1 and 2)"),
    ],
)
def test_what_cannot_be_is_rejected(argv, why, capsys):
    assert main([*argv.split(), "--tracking", "none"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert why in line


def test_gradients_within_the_objective_are_all_that_does_not_compile():
    assert {name for name in SHIPPED if not ModelConfig.choices()[name].compiles} == {"contractive_ae", "rae_gp", "tokenizer"}


def test_a_plan_draws_what_was_recorded():
    def draw(noise: Noise) -> list[torch.Tensor]:
        x = torch.empty(3, 2)
        first, again, apart = noise.times(4), noise.times(2), noise.normal(x)
        shared = [first.uniform(x.repeat(4, 1)), noise.permutation(5), noise.integers(3, 9)]
        return [apart, *shared, again.normal(x.repeat(2, 1)), noise.common(2, 3)]

    rows = Rows(3, 3)
    fresh = functools.partial(Noise, 1, ("train", 7, "a"), rows, torch.device("cpu"))
    recorder = NoiseRecorder(fresh())
    for a, b, c in zip(draw(recorder), replay(fresh(), recorder.plan), draw(fresh()), strict=True):
        assert torch.equal(a, b)
        assert torch.equal(a, c)
