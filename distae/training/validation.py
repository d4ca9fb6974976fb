"""Evaluation during a run, and the decisions that follow from it: best, plateau, early stop."""

import math
from pathlib import Path

from distae import distributed as dist
from distae.config import TrainConfig
from distae.data import Loader, Split
from distae.evaluation.diagnosis import diagnose, warnings
from distae.evaluation.exact import evaluate
from distae.evaluation.pictures import draw
from distae.models import Autoencoder
from distae.training.metrics import MetricsLogger
from distae.training.probing import Probes
from distae.training.state import TrainState
from distae.training.step import autocast
from distae.training.stop import StopAgreement

FEWEST_STEPS_PER_EVALUATION = 50
"""Fewest steps between two evaluations by default: a small epoch takes less time than an evaluation."""


class Validator:
    """Evaluates on a schedule. Decisions use metrics that rank 0 broadcast, so all ranks decide alike."""

    def __init__(
        self, cfg: TrainConfig, splits: dict[str, Split], loaders: dict[str, Loader], state: TrainState, logger: MetricsLogger
    ) -> None:
        self.cfg, self.loaders, self.state, self.logger = cfg, loaders, state, logger
        self.train_step = logger.train_step
        self.probes = Probes(cfg, splits, self.train_step.evaluated)
        self.every = cfg.eval_every or max(logger.steps_per_epoch, FEWEST_STEPS_PER_EVALUATION)

    @property
    def out_of_patience(self) -> bool:
        """Whether early stopping ends the run."""
        patience = self.cfg.early_stop.patience
        return patience is not None and self.state.bad_evals >= patience

    def prepare(self) -> list[str]:
        """Notes on probes that do not apply. Raises UserError if --best-metric does not apply to the model or the data."""
        with self.train_step.whole():
            return self.probes.prepare(self.train_step.evaluated)

    def probe_if_due(self) -> None:
        """Write the row of --probe-every."""
        if self.cfg.probe_every and self.state.step % self.cfg.probe_every == 0 and len(self.loaders["val"]):
            with self.logger.timers["evaluation"], self.train_step.whole():
                self.logger.check_finite()
                if found := self.probes(self.train_step.evaluated):
                    self.logger.row({f"val/{k}": v for k, v in found.items()})

    def due(self) -> bool:
        step = self.state.step
        at_step = step > self.state.evaluated_step and (step % self.every == 0 or step >= self.logger.total_steps)
        return at_step and len(self.loaders["val"]) > 0

    def validate(self, stop: StopAgreement) -> bool:
        """Evaluate the validation split; returns whether it is a new best. After an agreed stop it is unfinished and `due`."""
        with self.logger.timers["evaluation"]:
            self.logger.check_finite()
            with self.train_step.whole():
                metrics = self.evaluate("val", self.train_step.evaluated, stop)
            return metrics is not None and self._judge(metrics)

    def evaluate(self, split: str, model: Autoencoder, stop: StopAgreement) -> dict[str, float] | None:
        """Metrics of a split, written as a row, and pictures; None if a stop was agreed on before the end."""
        cfg, loader = self.cfg, self.loaders[split]
        with autocast(cfg.precision, dist.world().device):
            metrics = dist.broadcast(evaluate(model, loader, cfg.eval_batch_size, cfg.seed, lambda: stop.agreed(at_once=True)))
            of_codes = None if metrics is None else diagnose(model, loader, cfg.eval_batch_size, cfg.seed)
        if metrics is None or of_codes is None:
            return None
        metrics |= self.probes.of_best(model) if split == "val" else {}
        self.logger.row({f"{split}/{k}": v for k, v in (metrics | of_codes | self.logger.count_skipped(split)).items()})
        self.logger.callbacks.on_evaluate(split, metrics | of_codes)
        if split == "test":
            for line in warnings(metrics | of_codes, model.code_size):
                self.logger.tracker.line(line)
        if dist.world().is_main:
            self._draw(split, model)
        return metrics  # type: ignore[no-any-return]

    def _draw(self, split: str, model: Autoencoder) -> None:
        """Pictures of a split; failing to write them does not end the run."""
        step, tracker = self.state.step, self.logger.tracker
        try:
            pictures = draw(model, self.loaders[split], Path(self.cfg.run_dir or ".") / "images", step, self.cfg.seed, split)
        except OSError as error:
            tracker.line(f"pictures of step {step} could not be written: {error}")
            return
        for name, path in pictures.items():
            tracker.image(f"{split}/{name}", path, step)

    def _judge(self, metrics: dict[str, float]) -> bool:
        """Whether the metrics are a new best; updates plateau and early stop. A non-finite value is never the best."""
        state = self.state
        state.evaluated_step = state.step
        value = metrics[self.cfg.best_metric.removeprefix("val/")]
        sign = self.probes.sign
        self.train_step.schedule.observe(sign * value)
        better = state.best_value is None or sign * value < sign * state.best_value - self.cfg.early_stop.min_delta
        if not (better and math.isfinite(value)):
            state.bad_evals += 1
            return False
        state.best_value, state.best_step, state.bad_evals = value, state.step, 0
        return True
