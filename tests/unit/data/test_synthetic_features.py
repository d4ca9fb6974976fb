"""Samples made of known sparse features."""

import pytest
import torch

from distae.config import TrainConfig, build
from distae.data import load
from distae.data.datasets.synthetic_features import Features
from distae.errors import UserError


def settings(**changes):
    return build(TrainConfig, {"data": {"name": "synthetic_features", **changes}}).data


def made(cfg):
    return Features(cfg).activations(torch.arange(cfg.samples))


def test_samples_follow_from_their_number_alone():
    few, more = settings(samples=100), settings(samples=5000)
    assert torch.equal(made(few), made(more)[:100])
    rows = torch.tensor([3, 70, 4095, 4096, 4999])
    assert torch.equal(Features(more).activations(rows), made(more)[rows])
    assert not torch.equal(made(settings(samples=100, seed=1)), made(few))


def test_features_are_active_at_their_rates_and_magnitudes():
    cfg = settings(samples=20000, features=64, active=3.0, zipf=1.0, magnitude=2.0, magnitude_std=0.5)
    z = made(cfg)
    rates = torch.tensor(cfg.rates)
    assert rates.sum() == pytest.approx(3)
    torch.testing.assert_close(rates[0] / rates[9], torch.tensor(10.0))
    error = ((z > 0).float().mean(0) - rates).abs() / (rates * (1 - rates) / cfg.samples).sqrt()
    assert error.max() < 5
    assert float(z[z > 0].mean()) == pytest.approx(2, abs=0.01)
    assert float(z[z > 0].std()) == pytest.approx(0.5, abs=0.01)


def test_correlated_features_are_of_one_group_and_keep_their_rates():
    cfg = settings(samples=20000, features=8, active=2.0, zipf=0.0, correlation=0.8, groups=4)
    active = (made(cfg) > 0).float()
    assert (active.mean(0) - 0.25).abs().max() < 0.02
    apart = torch.corrcoef(active.T)
    assert apart[0, 4] > 0.5
    assert apart[0, 1:4].abs().max() < 0.04


def test_samples_are_sums_of_the_vectors():
    cfg = settings(samples=500, features=40, dim=12, bias=3.0)
    splits = load(cfg)
    features = splits["test"].source.features
    assert features is not None
    assert splits["test"].rows is not None
    rows = splits["test"].rows_at(torch.arange(len(splits["test"])))
    sums = features.activations(rows) @ features.vectors + Features(cfg).bias
    torch.testing.assert_close(splits["test"].source.read(rows), sums)
    torch.testing.assert_close(features.vectors.norm(dim=1), torch.ones(40))
    assert float(Features(cfg).bias.norm()) == pytest.approx(3)


@pytest.mark.parametrize(
    ("changes", "named"),
    [({"features": 10, "active": 9.0}, r"--data\.active 9"), ({"samples": 1 << 30, "dim": 64}, r"--data\.samples 1073741824")],
)
def test_settings_that_cannot_be_are_named(changes, named):
    with pytest.raises(UserError, match=named):
        settings(**changes).shape()
