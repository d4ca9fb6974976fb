"""A run that was interrupted ends like one that was not: bit for bit, or up to rounding on a different number of ranks."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import RICH, StopAt, metrics, run, settings
from safetensors.torch import save_file

import distae
from benchmarks import crash
from benchmarks.crash import onset
from benchmarks.crash.kills import Reference, resumed_chain
from distae.checkpoint import read_tensors
from distae.checkpoint.retention import name_of, steps_in
from distae.errors import UserError


@pytest.fixture(scope="module")
def straight(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run_dir = tmp_path_factory.mktemp("straight") / "run"
    assert run(settings(**RICH), run_dir).outcome == "done"
    return run_dir


@pytest.mark.parametrize("look", [0, 1, 5, 7, 8, 9, 11, 12, 13, 20, 26, 30])
def test_a_stop_at_any_moment_changes_nothing(straight: Path, tmp_path: Path, look: int) -> None:
    """Steps 8, 16 and 20 are followed by evaluations in five chunks: the looks from 9 to 13 fall into the first."""
    end = run(settings(**RICH), tmp_path / "run", StopAt(look))
    assert (end.outcome, end.exit_code, end.signal) == ("stopped", 75, "SIGTERM")
    assert run(settings(**RICH), tmp_path / "run").outcome == "done"
    assert not crash.differences(straight, tmp_path / "run", steady_saves=False)


PROBED = RICH | {"probe_every": 4, "best_metric": "val/knn_accuracy"}
"""Steps 4, 8, … are followed by a probe, 8, 16 and 20 by an evaluation too."""


def test_a_stop_changes_nothing_of_probes(tmp_path: Path) -> None:
    assert run(settings(**PROBED), tmp_path / "straight").outcome == "done"
    rows = metrics(tmp_path / "straight")
    assert [row["step"] for row in rows if "val/pca_relative_error" in row] == [4, 8, 12, 16, 20]
    for look in (4, 8, 9, 11):
        assert run(settings(**PROBED), tmp_path / "run", StopAt(look)).outcome == "stopped"
        assert run(settings(**PROBED), tmp_path / "run").outcome == "done"
        assert not crash.differences(tmp_path / "straight", tmp_path / "run", steady_saves=False)
        shutil.rmtree(tmp_path / "run")


def test_stops_inside_an_evaluation_are_among_those(tmp_path: Path) -> None:
    end = run(settings(**RICH), tmp_path / "run", StopAt(10))
    state = json.loads((tmp_path / "run" / "checkpoints" / name_of(end.step) / "state.json").read_text())["state"]
    assert (state["step"], state["evaluated_step"]) == (8, 0)


def test_many_stops_in_one_run(straight: Path, tmp_path: Path) -> None:
    stops = 0
    while run(settings(**RICH), tmp_path / "run", StopAt(7)).outcome == "stopped":
        stops += 1
    assert stops > 3
    assert not crash.differences(straight, tmp_path / "run", steady_saves=False)


@pytest.mark.parametrize(("ranks", "kills"), [(1, 5), (2, 5), (3, 4), (4, 3)])
def test_kills_change_nothing(tmp_path: Path, ranks: int, kills: int) -> None:
    """SIGKILL at moments of all kinds; DDP's summation order matters from 3 ranks on."""
    report = resumed_chain(Reference("vae", ranks, tmp_path), kills, tmp_path)
    assert (report["differences"], report["human"]) == ([], "")
    assert report["resumes"] > 0


DICTIONARY = "--model batch_topk_sae --model.latent-dim 48 --model.k 8:3@20 --model.dead-after 200 --model.scale-input --ema 0.9"


def test_kills_change_nothing_of_a_dictionary(tmp_path: Path) -> None:
    """On activations in bfloat16, in two files: threshold, dead latents, scale and schedule come back."""
    x = torch.randn(240, 16, generator=torch.Generator().manual_seed(0)).relu().bfloat16()
    files = [tmp_path / f"{i}.safetensors" for i in range(2)]
    for file, part in zip(files, x.split(150), strict=True):
        save_file({"x": part.contiguous()}, file)
    options = [*DICTIONARY.split(), "--data", "array", "--data.path", ",".join(map(str, files))]
    reference = Reference("dictionary", 2, tmp_path, options)
    report = resumed_chain(reference, 3, tmp_path)
    assert (report["differences"], report["human"], report["resumes"] > 0) == ([], "", True)
    module: Any = distae.load(reference.run_dir).module
    assert (module.encoder.shape, float(module.threshold) > 0, module.input_scale != 1) == ((48, 16), True, True)


@pytest.mark.parametrize(("bottleneck", "how", "ranks"), [("kl", "ddp", 1), ("vq", "fsdp", 2)])
def test_kills_around_the_discriminators_start_change_nothing(tmp_path: Path, bottleneck: str, how: str, ranks: int) -> None:
    """One step before it, at it and after it, in one run; `python -m benchmarks.crash onset` has every number of ranks."""
    report = onset.chain(bottleneck, how, ranks, tmp_path / "runs", alone=False)
    assert (report["differences"], report["human"]) == ([], "")


ELASTIC = (
    "--model vae --model.latent-dim 4 --net.hidden 16 --net.dropout 0.1 --precision fp64 --global-batch-size 24 --data.limit 240 "
    "--eval-every 6 --log-every 4 --save-every 100 --tracking none --device cpu --threads 1"
)


@pytest.fixture(scope="module")
def one_rank(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run_dir = tmp_path_factory.mktemp("elastic") / "one"
    crash.finish([*ELASTIC.split(), "--steps", "18", "--run-dir", str(run_dir)], 1, run_dir)
    return run_dir


@pytest.mark.parametrize(("saved_by", "resumed_by"), [(1, 4), (4, 1), (2, 3), (3, 2)])
def test_another_number_of_ranks_continues(one_rank: Path, tmp_path: Path, saved_by: int, resumed_by: int) -> None:
    """Stopped inside the first epoch and a log window: were a sample skipped or repeated, the result would differ."""
    run_dir = tmp_path / "run"
    for steps, ranks in ((7, saved_by), (18, resumed_by)):
        crash.finish([*ELASTIC.split(), "--steps", str(steps), "--run-dir", str(run_dir)], ranks, run_dir)
    a, b = (read_tensors(r / "checkpoints" / name_of(18)) for r in (one_rank, run_dir))
    assert a.keys() == b.keys()
    worst = max(float((a[k] - b[k]).abs().max() / (a[k].abs().max() or 1)) for k in a)
    assert worst <= 1e-9
    mine, theirs = ({r["step"]: r["train/loss"] for r in metrics(d) if "train/loss" in r} for d in (run_dir, one_rank))
    assert {k: mine[k] for k in (12, 16)} == pytest.approx({k: theirs[k] for k in (12, 16)}, rel=1e-9)


def test_a_complete_run_says_so_and_touches_nothing(straight: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = {p: p.read_bytes() for p in straight.rglob("*") if p.is_file() and p.name != "config.toml"}
    assert run(settings(**RICH), straight).outcome == "done"
    assert "is complete at step 20" in capsys.readouterr().err
    after = {p: p.read_bytes() for p in straight.rglob("*") if p.is_file() and p.name != "config.toml"}
    assert after == before


def test_a_longer_run_continues(tmp_path: Path) -> None:
    short, long = (settings(**RICH | {"steps": n}) for n in (16, 32))
    run(short, tmp_path / "a")
    assert run(long, tmp_path / "a").step == 32
    run(long, tmp_path / "b")
    a, b = (read_tensors(tmp_path / d / "checkpoints" / name_of(32)) for d in "ab")
    assert all(torch.equal(a[k], b[k]) for k in b)


def test_a_longer_cosine_says_what_changes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(settings(schedule={"name": "cosine"}, steps=8), tmp_path / "run")
    run(settings(schedule={"name": "cosine"}, steps=16), tmp_path / "run")
    assert "16 steps long now, not 8" in capsys.readouterr().err


def test_what_may_change_may(tmp_path: Path) -> None:
    run(settings(model={"name": "vae"}, steps=8, precision="fp64"), tmp_path / "run")
    free = {
        "grad_accum_steps": 2,
        "log_every": 3,
        "eval_every": 5,
        "save_every": 4,
        "checkpoint": {"keep_latest_k": 3, "mode": "sync"},
    }
    assert run(settings(model={"name": "vae"}, steps=16, precision="fp64", **free), tmp_path / "run").step == 16
    run(settings(model={"name": "vae"}, steps=16, precision="fp64"), tmp_path / "other")
    a, b = (read_tensors(tmp_path / d / "checkpoints" / name_of(16)) for d in ("run", "other"))
    assert all(torch.allclose(a[k], b[k], rtol=1e-9, atol=1e-12) for k in b)


@pytest.mark.parametrize(
    ("before", "after", "named"),
    [
        ({}, {"seed": 4}, "seed is 3 there and 4 here"),
        ({}, {"optim": {"lr": 0.5}}, "optim.lr is 0.01 there and 0.5 here"),
        ({"net": {"norm": "batch"}}, {"grad_accum_steps": 2}, "grad_accum_steps is 1 there and 2 here"),
    ],
)
def test_what_may_not_change_is_rejected(tmp_path: Path, before: Any, after: Any, named: str) -> None:
    run(settings(steps=4, **before), tmp_path / "run")
    with pytest.raises(UserError, match=named):
        run(settings(steps=8, **before | after), tmp_path / "run")


def test_a_fork_takes_the_full_state_under_other_settings(tmp_path: Path) -> None:
    run(settings(steps=8, ema=0.5), tmp_path / "a")
    fork = settings(steps=9, ema=0.5, seed=9, optim={"lr": 1e-9}, fork_from=str(tmp_path / "a"))
    assert run(fork, tmp_path / "b").step == 9
    assert steps_in(tmp_path / "b" / "checkpoints") == [9]
    a, b = (read_tensors(tmp_path / d / "checkpoints" / name_of(n)) for d, n in (("a", 8), ("b", 9)))
    assert all(torch.allclose(a[k], b[k], atol=1e-7) for k in a if k.startswith("model."))
    assert b["optim.autoencoder.encoder.layers.1.layer.weight.step"] == 9


def test_a_fork_of_another_model_is_rejected(tmp_path: Path) -> None:
    run(settings(steps=8), tmp_path / "a")
    with pytest.raises(UserError, match="is a checkpoint of another model"):
        run(settings(steps=9, ema=0.5, fork_from=str(tmp_path / "a")), tmp_path / "b")
