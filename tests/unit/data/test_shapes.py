"""Shapes drawn from known factors."""

from typing import Any

import numpy as np
import pytest
import torch

from distae.config import TrainConfig, build
from distae.config.data.shapes import FACTORS
from distae.data import load
from distae.data.datasets.shapes import draw, factors_of
from distae.errors import UserError


def settings(**changes):
    return build(TrainConfig, {"data": {"name": "shapes", **changes}}).data


def test_samples_follow_from_their_number_alone():
    few, more = settings(samples=100), settings(samples=5000)
    assert torch.equal(factors_of(few), factors_of(more)[:100])
    assert torch.equal(draw(few, factors_of(few)), draw(more, factors_of(more)[:100]))
    assert len(factors_of(more).unique(dim=0)) == 5000


def test_all_is_the_full_product_once():
    cfg = settings(samples="all", scales=2, orientations=3, positions=3)
    factors = factors_of(cfg)
    assert cfg.count == len(factors) == len(factors.unique(dim=0)) == 3 * 2 * 3 * 3 * 3
    assert factors[1].tolist() == [0, 0, 0, 0, 1]
    assert factors.max(0).values.tolist() == [2, 1, 2, 2, 2]
    assert len(draw(cfg, factors).flatten(1).unique(dim=0)) == len(factors)  # thirds of a turn: none is a shape's symmetry


def image(cfg, **factors) -> np.ndarray:
    return draw(cfg, torch.tensor([[factors.get(name, 0) for name in FACTORS]]))[0, 0].numpy().astype(float) / 255


def center(x: np.ndarray, axis: int) -> float:
    """Mean place of the white, along the other axis than `axis`."""
    return float((x.sum(axis) * np.arange(len(x))).sum() / x.sum())


@pytest.mark.parametrize("kind", [0, 1, 2])
def test_factors_are_what_is_drawn(kind):
    cfg = settings(size=64, scales=3, positions=5, orientations=8)
    middle = image(cfg, shape=kind, scale=2, x=2, y=2)
    assert abs(middle.sum() - (0.48 * 64) ** 2) < 0.15 * (0.48 * 64) ** 2
    assert image(cfg, shape=kind, scale=0, x=2, y=2).sum() == pytest.approx(middle.sum() / 4, rel=0.03)
    for place in range(5):
        right, down = image(cfg, shape=kind, x=place, y=2), image(cfg, shape=kind, x=2, y=place)
        shift = round((place - 2) * (1 - 2 * 0.24 * 2**0.5) / 4 * 64, 6)
        assert center(right, 0) - center(middle, 0) == pytest.approx(shift, abs=0.3)
        assert center(down, 1) - center(image(cfg, shape=kind, x=2, y=2), 1) == pytest.approx(shift, abs=0.3)
    quarter = image(cfg, shape=kind, scale=2, orientation=2, x=2, y=2)
    assert np.abs(quarter - np.rot90(middle, -1)).max() < 0.02
    for corner in (0, 4):
        edge = image(cfg, shape=kind, scale=2, orientation=1, x=corner, y=corner)
        assert edge.sum() == pytest.approx(middle.sum(), rel=0.03)  # nothing is cut off


def test_binary_or_with_grey_edges():
    factors = factors_of(settings(samples=50))
    assert set(draw(settings(samples=50, antialias=False), factors).unique().tolist()) == {0, 255}
    assert len(draw(settings(samples=50), factors).unique()) > 50


def test_factors_come_with_the_samples():
    splits = load(settings(samples=500, label="x"))
    source: Any = splits["train"].source
    assert list(source.columns) == list(FACTORS)
    assert (source.columns["x"] == source.label.numpy()).all()
    assert splits["train"].shape == (1, 32, 32)
    assert {k: len(v) for k, v in splits.items()} == {"train": 405, "val": 45, "test": 50}


def test_too_many_are_rejected_before_drawing():
    with pytest.raises(UserError, match=r"--data.samples all: 737280 images of 256x256 take"):
        settings(samples="all", size=256).shape()
