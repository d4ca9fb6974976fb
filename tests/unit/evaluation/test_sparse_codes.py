"""Figures of sparse codes against hand-made models."""

from typing import Any
from unittest import mock

import pytest
import torch
from evaluations import evaluation
from helpers import settings

from distae.config.evaluation import EvaluationConfig
from distae.config.names import METRICS
from distae.config.plugin import function
from distae.data import load
from distae.errors import UserError
from distae.evaluation.evaluation import Evaluation
from distae.evaluation.metrics import Skip
from distae.models import build

DATA = {"name": "synthetic_features", "samples": 600, "features": 20, "dim": 30, "active": 2.0, "bias": 0.0}
NAMES = ("l0", "explained_variance", "fvu", "dead_share", "shrinkage", "max_cosine", "uniqueness", "mcc", "f1")


def of_truth(scale: float = 1.0, **data):
    """topk_sae whose first latents are the features, and whose last two are silent; reconstructions are `scale` times too large."""
    cfg = settings(data=DATA | data, model={"name": "topk_sae", "latent_dim": 22, "k": 8})
    splits = load(cfg.data)
    features = splits["test"].source.features
    assert features is not None
    model: Any = build(cfg.model, cfg.net, (30,), seed=1, dtype=torch.float64)
    with torch.no_grad():
        vectors = features.vectors.double()
        model.decoder[:20] = vectors
        model.encoder[:20] = scale * torch.linalg.pinv(vectors).T  # exact activations: 20 vectors in 30 dimensions
        model.encoder[20:] = 0
        model.encoder_bias.fill_(-1e-6)
    return Evaluation(model, cfg, splits, "test", EvaluationConfig()), features


def figures(e):
    return {name: METRICS[name].compute(e).value for name in NAMES}


def test_a_model_that_is_the_truth():
    e, features = of_truth()
    rows = e.splits["test"].rows_at(torch.arange(60))
    z = features.activations(rows)
    found = figures(e)
    assert found["l0"] == pytest.approx(float((z > 0).float().sum(1).mean()))
    assert found["dead_share"] == pytest.approx(float((z == 0).all(0).sum() + 2) / 22)
    assert found["mcc"] == pytest.approx(1)
    assert found["f1"] == pytest.approx(1)
    assert found["explained_variance"] == pytest.approx(1)
    assert found["fvu"] == pytest.approx(0, abs=1e-6)
    assert METRICS["mcc"].compute(e).protocol == {"latents": 22, "samples": 60, "features": 20}


def test_variance_is_explained_over_all_values():
    e, _ = of_truth(scale=0.5)
    x, y = e.values(), e.reconstructions()
    residual, total = ((x - y) ** 2).sum(), ((x - x.mean(0)) ** 2).sum()
    found = figures(e)
    assert found["fvu"] == pytest.approx(float(residual / total))
    assert found["explained_variance"] == pytest.approx(1 - float(residual / total))
    around = y - x.mean(0)
    assert found["shrinkage"] == pytest.approx(float((around**2).sum() / (around * (x - x.mean(0))).sum()))
    assert found["shrinkage"] < 0.8


def test_densities_and_cosines_of_latents():
    e, features = of_truth()
    z = (e.codes().z != 0).double().mean(0)
    found = {name: figure.value for name, figure in METRICS["latent_density"].compute(e).items()}
    assert found["0.1"] == pytest.approx(float((z >= 0.1).double().mean()))
    assert found["0.01"] == pytest.approx(float(((z >= 0.01) & (z < 0.1)).double().mean()))
    assert sum(found.values()) + figures(e)["dead_share"] == pytest.approx(1)
    vectors: Any = e.model.vectors().detach()  # type: ignore[operator]
    cosines = (vectors @ vectors.T).fill_diagonal_(-1)
    with mock.patch("distae.evaluation.sparse_codes.BLOCK", 7):
        assert METRICS["max_cosine"].compute(e).value == pytest.approx(float(cosines.amax(1).mean()))
    nearest = (vectors @ features.vectors.double().T).abs().argmax(1)
    assert METRICS["uniqueness"].compute(e).value == len(set(nearest.tolist())) / 22 < 1


def test_the_loss_of_a_network_is_recovered(tmp_path):
    """Of squared errors the loss recovered is the explained variance."""
    e, _ = of_truth(scale=0.5)
    (tmp_path / "mine_loss.py").write_text(
        "import torch\n"
        "TRUTH = {}\n"
        "def loss(x, rows):\n"
        "    return (x - torch.stack([TRUTH[int(r)] for r in rows])).square().sum(1)\n"
        "def mean(x, rows):\n"
        "    return x.mean()\n"
    )
    text = f"{tmp_path}/mine_loss.py:"
    with pytest.raises(Skip, match="--loss-function"):
        METRICS["loss_recovered"].compute(e)
    truth = function(f"{text}loss", "--loss-function").__globals__["TRUTH"]
    truth |= dict(zip(e.splits["test"].rows_at(torch.arange(60)).tolist(), e.values(), strict=True))
    e.settings = EvaluationConfig(loss_function=f"{text}loss")
    found = {name: figure.value for name, figure in METRICS["loss_recovered"].compute(e).items()}
    assert found[""] == pytest.approx(figures(e)["explained_variance"])
    assert found["loss_of_samples"] == 0 < found["loss_of_reconstructions"] < found["loss_of_mean"]
    for name, why in (("mean", r"gives torch.Size\(\[\]\); expected one loss of each sample"), ("none", "has no function 'none'")):
        e.settings = EvaluationConfig(loss_function=text + name)
        with pytest.raises(UserError, match=why):
            METRICS["loss_recovered"].compute(e)


def test_f1_counts_what_fires_when_it_should_not():
    e, features = of_truth()
    z = e.codes().z.clone()
    rows = e.splits["test"].rows_at(torch.arange(60))
    there = features.activations(rows) > 0
    z[:, 0] = 1.0  # always active
    e._once_of_model["codes of test"] = e.codes()._replace(z=z)
    precision = float(there[:, 0].float().mean())
    some = int(there.any(0).sum())
    assert METRICS["f1"].compute(e).value == pytest.approx((some - 1 + 2 * precision / (precision + 1)) / some)


def test_dense_codes_and_unknown_features_are_skipped():
    for name in NAMES:
        with pytest.raises(Skip, match="not sparse"):
            METRICS[name].compute(evaluation("vae"))
    with pytest.raises(Skip, match="not known"):
        METRICS["mcc"].compute(evaluation("topk_sae", latent_dim=32, k=2))
