"""--probe-every, and --best-metric where it is a metric of a whole split."""

from typing import Any

import pytest
import torch
from helpers import fitted, fresh_trainer, metrics, settings, splits, spy

from distae.config import TrainConfig
from distae.config.evaluation import EvaluationConfig
from distae.config.names import METRICS
from distae.data import Split
from distae.errors import UserError
from distae.evaluation.evaluation import Evaluation
from distae.evaluation.features import knn_accuracy, linear_probe
from distae.evaluation.metrics import Figure, load_all, register_metric
from distae.evaluation.relative_error import pca_relative_error


def without_labels() -> dict[str, Split]:
    return {k: Split.of(v.x, None, v.transform) for k, v in splits().items()}


@pytest.mark.slow
def test_probes_are_the_metrics_of_distae_evaluate(tmp_path):
    trainer = fitted(settings(probe_every=5), tmp_path)
    rows = [row for row in metrics(tmp_path) if "val/knn_accuracy" in row]
    assert [row["step"] for row in rows] == [5, 10, 15, 20]
    e = Evaluation(trainer.train_step.model, trainer.cfg, splits(), "val", EvaluationConfig())
    assert rows[-1]["val/knn_accuracy"] == knn_accuracy(e).value
    assert rows[-1]["val/pca_relative_error"] == pytest.approx(pca_relative_error(e).value, rel=1e-6)


MASKED = {"name": "masked_ae", "latent_dim": 8, "decoder_dim": 8, "patch": 4, "heads": 2, "depth": 1}


@pytest.mark.slow
@pytest.mark.parametrize("pool", ["mean", "token"])
def test_probes_are_those_asked_for_and_of_the_models_features(pool, tmp_path):
    model = {**MASKED, "class_token": True, "pool": pool}
    trainer = fitted(settings(model=model, probe_every=10, probes=["linear_probe", "knn_accuracy"]), tmp_path)
    last = [row for row in metrics(tmp_path) if "val/linear_probe" in row][-1]
    assert "val/pca_relative_error" not in last
    e = Evaluation(trainer.train_step.model, trainer.cfg, splits(), "val", EvaluationConfig())
    codes = e.codes().z.view(len(e.labels()), 5, 8)
    expected = codes[:, 0] if pool == "token" else codes[:, 1:].mean(1)
    torch.testing.assert_close(e.features(), expected, rtol=1e-6, atol=1e-6)
    assert (last["val/linear_probe"], last["val/knn_accuracy"]) == (linear_probe(e).value, knn_accuracy(e).value)
    assert linear_probe(e).baselines.keys() == {"raw values", "pca"}


def test_a_probe_that_every_evaluation_has_is_an_error(tmp_path):
    with pytest.raises(UserError, match="--probes mse: every evaluation has it"):
        fresh_trainer(settings(probe_every=10, probes=["mse"]), tmp_path)


def test_a_run_with_probes_ends_as_one_without(tmp_path):
    with_probes = fitted(settings(net={"dropout": 0.5}, probe_every=3), tmp_path / "a").train_step.model.state_dict()
    without = fitted(settings(net={"dropout": 0.5}), tmp_path / "b").train_step.model.state_dict()
    assert all(torch.equal(with_probes[k], without[k]) for k in without)


def test_principal_components_are_computed_once(tmp_path, monkeypatch):
    found: list[object] = []
    monkeypatch.setattr(torch.linalg, "eigh", spy(torch.linalg.eigh, found.append))
    fitted(settings(probe_every=4), tmp_path)
    assert len(found) == 1


def test_probes_without_labels_leave_out_what_needs_them_and_say_so(tmp_path, capsys):
    fitted(settings(probe_every=10), tmp_path, without_labels())
    assert "--probe-every: knn_accuracy is left out: the data has no labels" in capsys.readouterr().err
    assert [sorted(k for k in row if k.startswith("val/")) for row in metrics(tmp_path) if "val/pca_relative_error" in row] == [
        ["val/pca_relative_error"]
    ] * 2


def scored(monkeypatch: pytest.MonkeyPatch, *values: float, better: Any = "higher", figures: Any = None) -> None:
    """A metric `score` with these values, the first of which is of the model before training."""
    load_all()
    left = [*values]
    monkeypatch.setitem(METRICS, "score", METRICS["mse"])  # undone at the end
    METRICS.pop("score")
    register_metric("score", task="features", better=better)(figures or (lambda e: Figure(left.pop(0) if left[1:] else left[0])))


def test_higher_is_better_where_the_metric_says_so(tmp_path, monkeypatch):
    scored(monkeypatch, 9.0, 1.0, 3.0, 2.0, 2.5, 2.9)
    cfg = settings(
        steps=50, eval_every=2, best_metric="val/score", early_stop={"patience": 3}, schedule={"name": "plateau", "patience": 1}
    )
    trainer = fitted(cfg, tmp_path)
    assert (trainer.state.best_step, trainer.state.best_value, trainer.state.step) == (4, 3.0, 10)
    assert trainer.train_step.schedule.plateau.scale < 1
    assert [row["val/score"] for row in metrics(tmp_path) if "val/score" in row] == [1.0, 3.0, 2.0, 2.5, 2.9]


def test_lower_is_better_where_it_does_not(tmp_path, monkeypatch):
    scored(monkeypatch, 9.0, 3.0, 1.0, 2.0, better="lower")
    trainer = fitted(settings(steps=6, eval_every=2, best_metric="val/score"), tmp_path)
    assert (trainer.state.best_step, trainer.state.best_value) == (4, 1.0)


def test_one_of_several_figures_may_be_the_best(tmp_path, monkeypatch):
    scored(monkeypatch, figures=lambda e: {"a": Figure(1.0), "b": Figure(2.0)})
    assert fitted(settings(steps=4, best_metric="val/score/b"), tmp_path / "run").state.best_value == 2.0
    with pytest.raises(UserError, match="--best-metric val/score; valid: val/score/a, val/score/b"):
        fresh_trainer(settings(best_metric="val/score"), tmp_path / "other")


def test_a_metric_that_does_not_apply_is_rejected_before_training(tmp_path, monkeypatch):
    with pytest.raises(UserError, match="--best-metric val/knn_accuracy: the data has no labels"):
        fresh_trainer(settings(best_metric="val/knn_accuracy"), tmp_path / "a", without_labels())
    with pytest.raises(UserError, match="--best-metric val/mig: the data has no known factors"):
        fresh_trainer(settings(best_metric="val/mig"), tmp_path / "b")
    scored(monkeypatch, 1.0, better=None)
    with pytest.raises(UserError, match="--best-metric val/score: neither lower nor higher is better"):
        fresh_trainer(settings(best_metric="val/score"), tmp_path / "c")
    assert not any((tmp_path / name / "config.toml").exists() for name in "abc")


def test_probes_need_a_validation_split():
    with pytest.raises(UserError, match="--probe-every needs it"):
        settings(probe_every=5, data={"val_fraction": 0.0})


def test_shipped_names_are_those_that_are_registered():
    load_all()
    assert {*METRICS.shipped} <= {*METRICS}
    assert {*TrainConfig().probes} <= {*METRICS.shipped}
