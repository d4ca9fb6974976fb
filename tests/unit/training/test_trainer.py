"""Decisions of a run: the best model, early stop, a stop during the last evaluation."""

import contextlib
import math
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import fitted, fresh_trainer, metrics, run, settings, splits

from benchmarks.crash import timeless
from distae.checkpoint import read_tensors
from distae.checkpoint.retention import name_of
from distae.errors import TrainingError, UserError
from distae.evaluation import exact
from distae.models.serialization import load_weights
from distae.runtime import lock
from distae.runtime.signals import StopRequest
from distae.training import validation
from distae.training.trainer import Trainer

LOSSES = [5.0, 3.0, 4.0, 4.5, 6.0]


def losing(monkeypatch: pytest.MonkeyPatch, *losses: float) -> None:
    """The validations give these values of val/loss, in turn; the test split gives 0."""
    values = iter(losses)

    def evaluate(model: Any, loader: Any, *rest: Any) -> Any:
        found = exact.evaluate(model, loader, *rest)
        return found and found | {"loss": next(values) if len(loader) == 50 else 0.0}

    monkeypatch.setattr(validation, "evaluate", evaluate)


@pytest.mark.parametrize("ema", [0.0, 0.9])
def test_the_best_model_is_exported_and_tested(tmp_path, monkeypatch, capsys, ema):
    losing(monkeypatch, *LOSSES)
    trainer = fitted(settings(steps=10, eval_every=2, ema=ema, export="best"), tmp_path)
    assert (trainer.state.best_step, trainer.state.step) == (4, 10)
    saved, prefix = read_tensors(tmp_path / "checkpoints" / name_of(4)), "ema." if ema else "model."
    expected = {k.removeprefix(prefix): v for k, v in saved.items() if k.startswith(prefix)}
    torch.testing.assert_close(load_weights(tmp_path), expected, rtol=0, atol=0)
    assert not torch.equal(next(trainer.train_step.evaluated.parameters()), next(iter(expected.values())))
    assert "of step 4, the best val/loss" in capsys.readouterr().err


def test_the_last_model_is_exported_where_that_is_asked_for(tmp_path, monkeypatch):
    losing(monkeypatch, *LOSSES)
    trainer = fitted(settings(steps=10, eval_every=2, export="last"), tmp_path)
    torch.testing.assert_close(load_weights(tmp_path), dict(trainer.train_step.model.state_dict()), rtol=0, atol=0)


def test_the_last_model_is_exported_where_the_best_is_damaged(tmp_path, monkeypatch, capsys):
    losing(monkeypatch, *LOSSES)
    trainer = fresh_trainer(settings(steps=10, eval_every=2, export="best"), tmp_path)
    monkeypatch.setattr(trainer.checkpoints, "save", saving_then_damaging(trainer, tmp_path))
    assert trainer.fit()
    trainer.close()
    torch.testing.assert_close(load_weights(tmp_path), dict(trainer.train_step.model.state_dict()), rtol=0, atol=0)
    assert "the best model, of step 4, cannot be exported" in capsys.readouterr().err


def saving_then_damaging(trainer: Trainer, run_dir: Path) -> Any:
    save = trainer.checkpoints.save

    def damaging(wait: bool = False) -> None:
        save(wait)
        if trainer.state.step == 10:
            for shard in (run_dir / "checkpoints" / name_of(4)).glob("*.safetensors"):
                shard.write_bytes(b"")

    return damaging


def test_early_stop_says_so(tmp_path, monkeypatch, capsys):
    losing(monkeypatch, *LOSSES)
    fitted(settings(steps=100, eval_every=2, early_stop={"patience": 2}), tmp_path)
    assert "done at step 8 (early stop: val/loss has not improved for 2 evaluations)" in capsys.readouterr().err


def test_an_evaluation_that_is_not_finite_is_never_the_best(tmp_path, monkeypatch):
    """A NaN that became the best would be the best for ever: nothing is less."""
    losing(monkeypatch, math.nan, 5.0, 4.0, math.nan, 3.0)
    cfg = settings(steps=10, eval_every=2, early_stop={"patience": 3}, schedule={"name": "plateau", "patience": 1})
    trainer = fitted(cfg, tmp_path)
    assert (trainer.state.best_step, trainer.state.best_value, trainer.state.bad_evals) == (10, 3.0, 0)
    plateau = trainer.train_step.schedule.plateau
    assert (plateau.scale, plateau.best, plateau.bad) == (1.0, 3.0, 0)


def test_a_stop_during_the_last_evaluation_is_honoured(tmp_path, monkeypatch):
    """Under Slurm the run would meet its time limit, and not be requeued."""
    whole = fitted(settings(), tmp_path / "whole")
    trainer = fresh_trainer(settings(), tmp_path / "run")

    def evaluate(model: Any, loader: Any, *rest: Any) -> Any:
        if len(loader) == 37:
            trainer.stop.request(signal.SIGTERM, None)
        return exact.evaluate(model, loader, *rest)

    with monkeypatch.context() as stopping:
        stopping.setattr(validation, "evaluate", evaluate)
        assert not trainer.fit()
    trainer.close()
    assert not (tmp_path / "run" / "model").exists()
    again = fitted(settings(), tmp_path / "run")
    rows, expected = (list(map(timeless, metrics(tmp_path / name))) for name in ("run", "whole"))
    assert rows == expected
    assert again.state == replace(whole.state)


@pytest.mark.parametrize("error", [UserError("said"), TrainingError("ended"), ZeroDivisionError()], ids=lambda e: type(e).__name__)
def test_a_run_that_fails_closes_its_sinks(tmp_path, monkeypatch, error):
    sinks = []

    def steps(trainer: Trainer) -> None:
        sinks.extend(trainer.tracker.sinks)
        raise error

    monkeypatch.setattr(Trainer, "steps", steps)
    with contextlib.suppress(UserError):
        assert run(settings(), tmp_path / "run").outcome == "failed"
    with pytest.raises(type(error)):
        fitted(settings(), tmp_path / "fitted")
    assert len(sinks) == 4
    assert all(vars(sink)["file"].closed for sink in sinks)


def test_a_run_that_lost_its_lock_stops_at_the_next_beat(tmp_path, monkeypatch):
    """Not only at its next row, which may be long after."""
    monkeypatch.setattr(lock, "BEAT_SECONDS", 0.01)
    cfg = settings(steps=10**6, log_every=10**6, eval_every=10**6, save_every=10**6)
    held = lock.acquire(tmp_path)
    trainer = Trainer(replace(cfg, run_dir=str(tmp_path)), splits(), StopRequest(), 1, held)
    trainer.resume()
    (tmp_path / lock.FILE).write_text('{"token": "of another"}')
    with pytest.raises(TrainingError, match="another process has taken over the run folder"):
        trainer.fit()
    trainer.close()
    held.release()
    assert metrics(tmp_path) == []
