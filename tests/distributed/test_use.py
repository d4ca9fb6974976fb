"""The commands over a run folder: the same results on 1, 2 and 3 ranks, as real processes."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import ROOT, finished_run, settings
from safetensors.torch import load_file

from distae.__main__ import main

EXACT = 1e-6
JOBS = {
    "codes.npz": ["encode", "{run}", "--split", "all"],
    "largest.json": ["encode", "{run}", "--top", "5"],
    "scores.npz": ["detect", "{run}"],
    "reconstructions": ["reconstruct", "{run}"],
    "metrics.json": ["evaluate", "{run}", "--tasks", "all", "--limit", "150"],
}
SWEEP = (
    "sweep --together --grid model.k=2,4 -- --model batch_topk_sae --model.latent-dim 24 --data synthetic_features "
    "--data.samples 300 --steps 8 --global-batch-size 48 --save-every 3 --precision fp64 --tracking none --device cpu "
    "--threads 1 --no-report --run-dir"
)
RUN_ALL = """
import json, sys
from distae.__main__ import main
for words in json.loads(sys.argv[1]):
    code = main(words)
    if code:
        sys.exit(code)
"""


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> dict[int, Path]:
    """A folder of results for each world size."""
    folder = tmp_path_factory.mktemp("use")
    data = {"name": "digits", "limit": 203}  # divides by no number of ranks
    run = finished_run(settings(model={"name": "vae"}, data=data, precision="fp64"), folder)
    for world_size in (1, 2, 3):
        jobs = [
            [*(w.format(run=run) for w in words), "--out", str(folder / str(world_size) / name), "--eval-batch-size", "64"]
            for name, words in JOBS.items()
        ]
        jobs.append([*SWEEP.split(), str(folder / str(world_size) / "sweep")])
        if world_size == 1:
            assert [main(words) for words in jobs] == [0] * len(jobs)
        else:
            _under_torchrun(jobs, world_size)
    return {n: folder / str(n) for n in (1, 2, 3)}


def _under_torchrun(jobs: list[list[str]], world_size: int) -> None:
    script = ["--no-python", sys.executable, "-c", RUN_ALL, json.dumps(jobs)]
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={world_size}", *script]
    env = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("world_size", [2, 3])
@pytest.mark.parametrize("name", ["codes.npz", "scores.npz", "reconstructions/reconstructions.npy"])
def test_arrays_are_the_same(results: dict[int, Path], name: str, world_size: int) -> None:
    one, other = (_arrays(results[n] / name) for n in (1, world_size))
    assert one.keys() == other.keys()
    for key, value in one.items():
        assert np.allclose(value, other[key], rtol=EXACT, atol=EXACT) if value.dtype.kind == "f" else (value == other[key]).all()


@pytest.mark.parametrize("world_size", [2, 3])
@pytest.mark.parametrize("name", ["model.k=2", "model.k=4"])
def test_runs_together_are_the_same(results: dict[int, Path], name: str, world_size: int) -> None:
    one, other = (load_file(results[n] / "sweep" / name / "model" / "model.safetensors") for n in (1, world_size))
    assert one.keys() == other.keys()
    for key, value in one.items():
        torch.testing.assert_close(other[key], value, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("world_size", [2, 3])
def test_the_largest_samples_are_the_same(results: dict[int, Path], world_size: int) -> None:
    one, other = (json.loads((results[n] / "largest.json").read_text()) for n in (1, world_size))
    assert len(one) == 5 * 4
    assert [(row["latent"], row["id"], row["label"]) for row in one] == [(row["latent"], row["id"], row["label"]) for row in other]


def _arrays(path: Path) -> dict[str, Any]:
    found = np.load(path)
    return {"": found} if path.suffix == ".npy" else dict(found)


@pytest.mark.parametrize("world_size", [2, 3])
def test_figures_are_the_same(results: dict[int, Path], world_size: int) -> None:
    one, other = (json.loads((results[n] / "metrics.json").read_text()) for n in (1, world_size))
    assert [f["metric"] for f in one["figures"]] == [f["metric"] for f in other["figures"]]
    assert one["skipped"] == other["skipped"]
    for here, there in zip(one["figures"], other["figures"], strict=True):
        assert there["value"] == pytest.approx(here["value"], rel=EXACT, abs=EXACT, nan_ok=True), here["metric"]
        assert there["baselines"] == pytest.approx(here["baselines"], rel=EXACT, abs=EXACT, nan_ok=True), here["metric"]
        assert there["protocol_hash"] == here["protocol_hash"]
