"""The W&B run that is rebuilt from a run folder, read with W&B's own offline reader."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from distae.commands.tracking import extra_of
from distae.errors import UserError
from distae.tracking.upload import rebuild
from distae.train import main

SMALL = ["--net.hidden", "8", "--global-batch-size", "64", "--log-every", "1", "--eval-every", "2", "--data.limit", "128"]


def records(folder: Path) -> list[dict]:
    [file] = folder.glob("*.wandb")
    read = subprocess.run(
        [sys.executable, "-m", "wandb", "leet", "inspect", "--json", str(file)], capture_output=True, text=True, check=False
    )
    if "No such command" in read.stderr:
        pytest.skip("this wandb has no offline reader (leet inspect)")
    return [json.loads(line) for line in read.stdout.splitlines()]


@pytest.mark.spawn
def test_starts_without_network_become_one_run(tmp_path: Path) -> None:
    run_dir = tmp_path / "sweep" / "seed=0"
    for steps in ("2", "4"):  # two starts, so two offline folders of one id
        assert main(["--steps", steps, "--tracking", "wandb", "--run-dir", str(run_dir), *SMALL]) == 0
    assert len(list((run_dir / "wandb").glob("offline-run-*"))) == 2
    figure = {"metric": "psnr", "value": 21.5, "baselines": {"pca": 20.0}, "unit": "dB"}
    (run_dir / "evaluation" / "samples").mkdir(parents=True)
    (run_dir / "evaluation" / "metrics.json").write_text(json.dumps({"figures": [figure, {"metric": "x", "value": 1}], "step": 4}))
    shutil.copy(next((run_dir / "images").glob("*.png")), run_dir / "evaluation" / "samples" / "traversal.png")
    for _ in range(2):  # again gives the same again
        found = records(rebuild(run_dir, extra_of(run_dir, with_model=True)))
    [of] = [r["run"] for r in found if r["type"] == "run"]
    assert (of["run_id"], of["run_group"]) == ((run_dir / "wandb_id").read_text(), "sweep")
    items = [r["history"]["item"] for r in found if r["type"] == "history"]
    rows = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    assert [(r["step"], r["train/loss"]) for r in rows if "train/loss" in r] == [
        (i["step"], i["train/loss"]) for i in items if "train/loss" in i
    ]
    pictures = {re.sub(r"_(\d+)$", r" \1", p.stem) for p in (run_dir / "images").glob("*.png")}
    extra = [i for i in items if any(k.startswith("evaluation") for k in i)]
    assert [(i["step"], i.get("evaluation.nrows"), i.get("evaluation.ncols")) for i in extra] == [(4, 2, 6), (4, None, None)]
    assert "evaluation/traversal.path" in extra[1]
    items = [i for i in items if i not in extra]
    [artifact] = [r["artifact"] for r in found if r["type"] == "artifact" and r["artifact"]["type"] == "model"]
    assert {e["path"] for e in artifact["manifest"]["contents"]} >= {"model.safetensors", "config.json"}
    logged = {f"{k.removesuffix('.path').replace('/', '_')} {i['step']:08}" for i in items for k in i if k.endswith(".path")}
    assert logged == pictures


def test_a_missing_run_is_reported(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no run in"):
        rebuild(tmp_path)


@pytest.mark.parametrize(
    "line",
    [
        "{",
        "[1]",
        '{"step": "x"}',
        '{"loss": 1}',
        '{"step": 1, "x": [' + "[" * 100_000,
        '{"step": 1e999}',
        f'{{"step": 1{" " * (1 << 20)}}}',
    ],
)
def test_a_damaged_row_is_reported(tmp_path: Path, line: str) -> None:
    (tmp_path / "metrics.jsonl").write_text(f'{{"step": 1, "loss": NaN}}\n{line}\n')
    with pytest.raises(UserError, match=r"metrics.jsonl is damaged: line 2 is not a row of metrics"):
        rebuild(tmp_path)


def test_something_else_than_a_file_is_reported(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "metrics.jsonl")
    with pytest.raises(UserError, match="it is a named pipe, not a file"):
        rebuild(tmp_path)
