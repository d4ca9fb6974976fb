"""Every variant has a recipe that runs as it is, and a row in docs/variants.md."""

import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from helpers import ROOT, SHIPPED

from benchmarks import stability
from distae.config import TrainConfig
from distae.data import Split, Transform


def test_every_variant_has_a_recipe():
    assert stability.names() == SHIPPED


def shortened(name: str, steps: int, folder: Path) -> tuple[TrainConfig, dict[str, Split]]:
    """The recipe with batches of 8, and a few smooth 28x28 images of bytes."""
    cfg = stability.recipe(name, "data", steps, folder / "run")
    coarse = torch.randint(0, 256, (64, 1, 7, 7), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    x = coarse.repeat_interleave(4, 2).repeat_interleave(4, 3)
    few = Split.of(x, torch.arange(64) % 10, Transform(255.0))
    splits = {"train": few, "val": few.take(slice(16)), "test": few.take(slice(16))}
    return replace(cfg, global_batch_size=8, eval_batch_size=8), splits


@pytest.mark.slow
@pytest.mark.parametrize("name", SHIPPED)
def test_the_recipe_trains(name: str, tmp_path: Path):
    cfg, splits = shortened(name, 2, tmp_path)
    assert cfg.model.name == name
    found = stability.measure(cfg, splits)
    assert (found["outcome"], found["steps"]) == ("done", 2), found["reason"]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["vae", "vq_vae", "rae_gp"])
def test_200_steps_with_an_outlier_stay_finite(name: str, tmp_path: Path):
    found = stability.measure(*shortened(name, 200, tmp_path))
    assert (found["outcome"], found["steps"]) == ("done", 200), found["reason"]
    assert found["last_loss"] < found["first_loss"]


@pytest.mark.parametrize("name", SHIPPED)
def test_the_documentation_has_a_row(name: str):
    rows = [line for line in (ROOT / "docs/variants.md").read_text().splitlines() if line.startswith("| `")]
    assert sum(bool(re.search(rf"^\| [^|]*`{name}`", row)) for row in rows) == 1


def test_an_outlier_and_a_constant_image_are_in_the_data():
    rows = stability.with_outliers(Split.of(torch.zeros(3, 1, 4, 4, dtype=torch.uint8), None, Transform(255.0)), large=True)
    assert (rows.x[0] == 1).all()
    assert rows.x[1].max() == 100
    assert not rows.x[2].any()
