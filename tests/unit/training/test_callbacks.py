"""A user's callback is called at its points, in order, on every rank, and leaves the run as it is."""

import pytest
import torch
from helpers import fitted, fresh_trainer, metrics, settings

from distae.config.names import METRICS
from distae.evaluation.metrics import register_metric
from distae.training import callbacks
from distae.training.callbacks import Callback, register_callback


@pytest.fixture
def heard(monkeypatch):
    """What a registered callback received."""
    monkeypatch.setattr(callbacks, "_CALLBACKS", type(callbacks._CALLBACKS)("test callback"))
    report = []

    @register_callback("listener")
    class Listener(Callback):
        def on_start(self, trainer):
            report.append(("start", trainer.state.step))

        def on_log(self, row):
            report.append(("log", row["train/loss"]))

        def on_evaluate(self, split, metrics):
            report.append((split, metrics["loss"]))

        def on_save(self, step):
            report.append(("save", step))

        def on_end(self, finished):
            report.append(("end", finished))

    yield report
    from distae.config.registry import REGISTRIES

    del REGISTRIES["test callback"]


def test_a_callback_hears_what_the_rows_say(heard, tmp_path):
    fitted(settings(steps=16, save_every=5), tmp_path)
    rows = metrics(tmp_path)
    of_train = [("log", row["train/loss"]) for row in rows if "train/loss" in row]
    of_eval = [(s, row[f"{s}/loss"]) for row in rows for s in ("val", "test") if f"{s}/loss" in row]
    assert heard[0] == ("start", 0)
    assert heard[-1] == ("end", True)
    assert [h for h in heard if h[0] == "log"] == of_train
    assert [h for h in heard if h[0] in ("val", "test")] == of_eval
    assert {("save", step) for step in (5, 10, 15, 16)} <= {*heard}


def test_a_stopped_run_says_so_and_a_resumed_one_where_it_starts(heard, tmp_path):
    trainer = fresh_trainer(settings(steps=16), tmp_path)
    trainer.stop.request(15, None)
    assert not trainer.fit()
    trainer.close()
    assert heard[-1] == ("end", False)
    stopped = next(h[1] for h in heard if h[0] == "save")
    heard.clear()
    fitted(settings(steps=16), tmp_path)
    assert heard[0] == ("start", stopped)


@pytest.mark.slow
def test_a_run_with_a_callback_ends_as_one_without(heard, tmp_path):
    with_one = fitted(settings(steps=9), tmp_path / "a").train_step.model.state_dict()
    heard.clear()
    callbacks._CALLBACKS.clear()
    without = fitted(settings(steps=9), tmp_path / "b").train_step.model.state_dict()
    assert not heard
    assert all(torch.equal(with_one[k], without[k]) for k in without)


def test_a_metric_is_the_mean_over_all_samples_and_may_name_the_best(monkeypatch, tmp_path):
    monkeypatch.setitem(METRICS, "first", METRICS["mse"])  # undone at the end
    METRICS.pop("first")

    @register_metric("first")
    def first(model, batch, out):
        return batch.x.flatten(1)[:, 0]

    trainer = fitted(settings(steps=8, best_metric="val/first"), tmp_path)
    x = trainer.loaders["val"].split.x[:, 0, 0, 0].double().mean() / 255
    (row,) = [row for row in metrics(tmp_path) if "val/first" in row]
    assert row["val/first"] == pytest.approx(float(x), rel=1e-5)
    assert trainer.state.best_value == row["val/first"]
