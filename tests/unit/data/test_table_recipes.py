"""The recipes for tables, counts and interactions, on made-up files: they train, and the model keeps what it needs of the table."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import scipy.sparse
import torch
from helpers import ROOT, fitted, metrics

from distae.config import TrainConfig, check, parse
from distae.data import Transform, load


def table(folder: Path) -> list[str]:
    rng = np.random.default_rng(0)
    sizes = [f"{v:.3f}" if i % 5 else "" for i, v in enumerate(rng.normal(9, 4, 120))]
    cells = [[f"p{i}", size, "abc"[i % 3], f"{i % 2}", "uv"[i % 2]] for i, size in enumerate(sizes)]
    (folder / "x.csv").write_text("\n".join(map(",".join, [["id", "size", "kind", "flag", "y"], *cells])))
    return ["--data.path", str(folder / "x.csv"), "--data.label", "y", "--data.id", "id", "--data.missing", "mask"]


def counts(folder: Path) -> list[str]:
    scipy.sparse.save_npz(folder / "x.npz", scipy.sparse.csr_matrix(np.random.default_rng(0).poisson(0.5, (120, 30))))
    return ["--data.path", str(folder / "x.npz")]


def interactions(folder: Path) -> list[str]:
    lines = [f"u{u}\ti{i}\t{1 + (u * i) % 5}\n" for u in range(120) for i in range(40) if (u + i) % 3 == 0]
    (folder / "x.inter").write_text("user_id:token\titem_id:token\trating:float\n" + "".join(lines))
    return ["--data.path", str(folder / "x.inter")]


def normal_rows(folder: Path) -> list[str]:
    rows = [f"{x:.4f},{y:.4f},{int(i % 9 == 0)}" for i, (x, y) in enumerate(np.random.default_rng(0).normal(size=(120, 2)))]
    (folder / "x.csv").write_text("\n".join(["a,b,anomaly", *rows]))
    return ["--data.path", str(folder / "x.csv"), "--data.label", "anomaly", "--data.train-classes", "0"]


FILES = {"table_vae": table, "count_vae": counts, "mult_vae": interactions, "denoising_ae": normal_rows}


def trained(name: str, folder: Path) -> TrainConfig:
    """Two steps of the recipe on made-up data, exported to `run/model`."""
    small = ["--global-batch-size", "16", "--steps", "2", "--tracking", "none", "--device", "cpu", "--threads", "1"]
    argv = ["--config", str(ROOT / f"recipes/tables/{name}.toml"), *FILES[name](folder), *small, "--run-dir", "unused"]
    cfg = check(parse(TrainConfig, argv, {}, "test").settings, 1)
    fitted(cfg, folder / "run", load(cfg.data))
    last = metrics(folder / "run")[-1]
    assert math.isfinite(last["test/loss"])
    return cfg


@pytest.mark.parametrize("name", ["count_vae", "mult_vae", "denoising_ae"])
def test_the_recipe_trains(name, tmp_path):
    trained(name, tmp_path)
    assert (tmp_path / "run/model/model.safetensors").is_file()


def test_the_recipe_of_a_table_trains_and_the_model_keeps_the_columns(tmp_path):
    cfg = trained("table_vae", tmp_path)
    about = json.loads((tmp_path / "run/model/config.json").read_text())
    assert about["model"]["columns"] == ["numeric:1", "binary:1", "categorical:3"]
    assert about["model"]["missing"] is True
    transform, split = Transform.from_json(about["transform"]), load(cfg.data)["test"]
    assert [c.name for c in transform.columns] == ["size", "flag", "kind"]
    assert transform.columns[2].categories == ("a", "b", "c")
    back = transform.invert(transform.apply(split.x, torch.float64))
    torch.testing.assert_close(back[:, 1:], split.x[:, 1:])
