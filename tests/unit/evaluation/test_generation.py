"""Metrics of samples: against loops over pairs, and on distributions whose figures are known."""

import numpy as np
import pytest
import torch
from evaluations import evaluation
from helpers import as_the_model_sees, images, splits

from distae.config.names import METRICS
from distae.data import Split
from distae.evaluation import generation
from distae.evaluation.extractors import random_network
from distae.evaluation.generation import manifold, pca_samples, samples
from distae.evaluation.metrics import Skip
from distae.evaluation.samplers import Fit, fit, sample
from distae.evaluation.shared import nearest
from distae.models.inference import Model

NAMES = ("frechet_distance", "precision", "recall", "density", "coverage", "copies")


def points(n, dim, seed, spread=1.0):
    return spread * torch.randn(n, dim, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def test_neighbours_are_those_of_all_distances(monkeypatch):
    monkeypatch.setattr("distae.evaluation.shared.BLOCK", 7)
    x, y = points(20, 3, 0), points(30, 3, 1)
    expected = torch.cdist(x, y).sort(1).values[:, :4]
    torch.testing.assert_close(nearest(x, y, 4), expected)
    monkeypatch.setattr("distae.evaluation.shared.VALUES", 8)
    torch.testing.assert_close(nearest(x, y, 4), expected)


def test_manifold_is_that_of_loops_over_pairs():
    real, made = points(40, 3, 0).numpy(), points(30, 3, 1, 1.3).numpy()

    def ball(x, k):
        return [sorted(np.linalg.norm(x - p, axis=1))[k] for p in x]

    def inside(p, centres, radii):
        return [np.linalg.norm(p - c) <= r for c, r in zip(centres, radii, strict=True)]

    wide = ball(real, 5)
    expected = {
        "precision": np.mean([any(inside(p, real, ball(real, 3))) for p in made]),
        "recall": np.mean([any(inside(p, made, ball(made, 3))) for p in real]),
        "density": np.mean([sum(inside(p, real, wide)) / 5 for p in made]),
        "coverage": np.mean([any(np.linalg.norm(p - c) <= r for p in made) for c, r in zip(real, wide, strict=True)]),
    }
    assert manifold(torch.from_numpy(real), torch.from_numpy(made)) == {k: pytest.approx(v, rel=1e-12) for k, v in expected.items()}


def test_one_cluster_of_two_is_precise_and_recalls_half():
    real = torch.cat([points(200, 2, 0), points(200, 2, 1) + 100])
    found = manifold(real, points(400, 2, 2, 0.5))
    assert found["precision"] > 0.98
    assert found["recall"] < 0.5
    assert found["coverage"] < 0.5
    far = manifold(real, points(400, 2, 3) + 50)
    assert far == {"precision": 0, "recall": pytest.approx(0, abs=1), "density": 0, "coverage": 0}


def test_samples_are_those_of_the_model():
    e = evaluation("vae")
    drawn = Model(e.model, e.transform).sample(37, seed=e.seed)
    np.testing.assert_allclose(samples(e).numpy() * 255, drawn, rtol=1e-12)


@pytest.mark.parametrize("name", ["vae", "ae"])
def test_samples_of_a_sampler_are_those_of_the_density_that_is_fitted_to_training_codes(name):
    e = evaluation(name, how={"sampler": "gmm"})
    density = fit("gmm", lambda: e.codes("train"), Fit(e.seed))
    assert samples(e).equal(sample(e.model, density, 37, e.seed))
    assert METRICS["frechet_distance"].compute(e).protocol["sampler"] == "gmm"


def test_samples_of_pca_have_the_moments_of_the_training_split():
    data = {"train": images(300, 1), "val": images(2, 2), "test": images(5000, 3)}
    e = evaluation("vae", data, latent_dim=64)
    drawn = pca_samples(e)
    assert drawn is not None
    drawn, train = drawn.flatten(1), as_the_model_sees(data["train"]).flatten(1)
    torch.testing.assert_close(drawn.mean(0), train.mean(0), rtol=0, atol=0.03)
    torch.testing.assert_close(drawn.T.cov(), train.T.cov(), rtol=0, atol=0.02)


def test_figures_name_the_extractor_and_stand_beside_pca_and_training_samples():
    e = evaluation("vae")
    for name in NAMES:
        found = METRICS[name].compute(e)
        if name != "copies":
            assert found.protocol["extractor"] == "random_network_64"
            assert set(found.baselines) == {"pca", "training_samples"}
    with pytest.raises(Skip, match="--inception-weights"):
        METRICS["fid"].compute(e)


def test_training_samples_beat_noise_and_copies_are_counted(monkeypatch):
    e = evaluation("vae", {"train": images(300, 1), "val": images(2, 2), "test": images(300, 3)})
    real = METRICS["frechet_distance"].compute(e).baselines["training_samples"]
    assert real < METRICS["frechet_distance"].compute(e).value
    assert METRICS["copies"].compute(e).value == 0
    e = evaluation("vae", {"train": images(300, 1), "val": images(2, 2), "test": images(300, 3)})
    copied = e.values("train") + 0.001
    copied[:150] = as_the_model_sees(images(150, 9))
    monkeypatch.setattr(generation, "samples", lambda e: copied)
    assert METRICS["copies"].compute(e).value == pytest.approx(0.5, abs=0.01)


def test_the_random_network_is_the_same_always():
    x = as_the_model_sees(images(3, 0))
    found = random_network(1).compute(x)
    assert found.shape == (3, 64)
    random_network.cache_clear()
    torch.manual_seed(4)
    assert torch.equal(random_network(1).compute(x), found)
    assert float(found.sum()) == pytest.approx(33.020315019867375, rel=1e-9)  # on any machine


def test_a_table_is_compared_by_its_values():
    x = points(80, 5, 0)
    e = evaluation("vae", {name: Split.of(x) for name in ("train", "val", "test")}, likelihood="gaussian")
    assert METRICS["coverage"].compute(e).protocol["extractor"] == "values"


@pytest.mark.parametrize("name", NAMES)
def test_without_a_prior_there_is_nothing_to_compare(name):
    with pytest.raises(Skip, match="no prior"):
        METRICS[name].compute(evaluation("ae", splits()))
