"""Rows of training metrics: means over a log window, learning rate and throughput, and a check that all terms are finite."""

import math
import time
from collections.abc import Mapping

from distae import distributed as dist
from distae.config import TrainConfig
from distae.data.bad_rows import Skipped
from distae.errors import TrainingError
from distae.tracking import Tracker
from distae.training.callbacks import Callbacks
from distae.training.profiling import peak_flops, peak_memory_bytes
from distae.training.state import TrainState
from distae.training.step import TrainStep

SMALLEST_LOSS_SCALE = 2.0**-10
"""The scaler starts at 65,536 and halves at every overflow; below this scale the run ends: every step was skipped."""


class MetricsLogger:
    """Writes the rows of a run. All ranks call the same methods together; rank 0 has the sinks."""

    def __init__(
        self,
        cfg: TrainConfig,
        train_step: TrainStep,
        state: TrainState,
        tracker: Tracker,
        steps: tuple[int, int],
        skipped: Skipped,
    ) -> None:
        """`steps` of an epoch, and of the whole run."""
        self.skipped = skipped
        self.cfg, self.train_step, self.state, self.tracker = cfg, train_step, state, tracker
        self.steps_per_epoch, self.total_steps = steps
        self.callbacks = Callbacks()
        self.device = dist.world().device
        self.timers = train_step.timers
        self.peak_flops = peak_flops(self.device, cfg.precision, cfg.tf32)
        self.flops = 0.0
        """Floating point operations of this rank's share of a step, if the device's peak is known."""
        self.start()

    def start(self) -> None:
        """Start the clock of the next row."""
        self.clock = (self.state.step, self.timers.now())

    def log_if_due(self) -> None:
        if self.state.step % self.cfg.log_every == 0 or self.state.step >= self.total_steps:
            with self.timers["logging"]:
                self.log()

    def log(self) -> None:
        """Write the means since the last row. Raises TrainingError at a non-finite term or gradient."""
        means, grad_norm = self.check_finite(), float(self.train_step.grad_norm)
        lr = self.cfg.peak_lr * self.train_step.schedule.factor(self.state.step - 1)
        metrics = means | {"lr": lr, "grad_norm": grad_norm} | self.count_skipped("train") | self._speed()
        self.row(row := {f"train/{k}": v for k, v in metrics.items()})
        self.callbacks.on_log(row)
        self.train_step.window.clear()

    def count_skipped(self, split: str) -> dict[str, float]:
        """The metric of samples of all ranks that could not be read; reports new ones in the log."""
        for line in self.skipped.agree():
            self.tracker.line(line)
        return self.skipped.counts(split)

    def row(self, metrics: Mapping[str, float]) -> None:
        """Write one row, with step, epoch, samples and time."""
        step = self.state.step
        where = {"step": step, "epoch": step / self.steps_per_epoch, "samples_seen": step * self.cfg.global_batch_size}
        self.tracker.row({**where, "time": time.time(), **metrics})

    def _speed(self) -> dict[str, float]:
        """Throughput of the steps since the last row: logging included, evaluation and saving excluded."""
        step, then = self.clock
        took, steps = self.timers.since(then), self.state.step - step
        self.start()
        seconds = max(took["elapsed"] - took["evaluation"] - took["checkpoint"], 1e-9)
        speed = {
            "samples_per_second": steps * self.cfg.global_batch_size / seconds,
            "data_wait_fraction": took["data"] / seconds,
            "checkpoint_blocked_seconds": took["checkpoint"],
            "peak_memory_bytes": peak_memory_bytes(self.device),
        }
        if self.peak_flops:
            speed["mfu_fraction"] = self.flops * steps / seconds / self.peak_flops
        return speed

    def check_finite(self) -> dict[str, float]:
        """Means of the open window. Raises TrainingError that names the first masked step and the terms that are not finite."""
        window = self.train_step.window
        if not window.steps:
            return {}
        means, masked = window.read()
        bad = [name for name, value in means.items() if not math.isfinite(value)]
        if not bad:
            self._check_loss_scale()
            if masked is None:
                return means
        first = self.state.step - window.steps
        where = f"at step {first + masked}" if masked else f"between steps {first + 1} and {self.state.step}"
        what = ", ".join(f"train/{name}" for name in bad) or "the gradient"
        raise TrainingError(
            f"{what} became non-finite {where}; that update was not applied and nothing is saved after it. "
            f"Lower the learning rate, set --optim.max-grad-norm, or look at the data; an earlier checkpoint, if any, is kept"
        )

    def _check_loss_scale(self) -> None:
        """Raises TrainingError if fp16 gradients overflow at every scale."""
        scaler = self.train_step.scaler
        if scaler and scaler.get_scale() < SMALLEST_LOSS_SCALE:
            raise TrainingError(
                f"fp16 gradients overflow even at a loss scale of {scaler.get_scale():g} (step {self.state.step}): "
                "lower the learning rate, or use --precision bf16 or fp32"
            )
