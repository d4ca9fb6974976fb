"""When a run is saved, and what is in a checkpoint; `checkpoint.CheckpointStore` writes it."""

import time
from collections.abc import Callable
from pathlib import Path

import msgspec
from torch import Tensor

from distae import distributed as dist
from distae.checkpoint import CheckpointStore
from distae.config import TrainConfig
from distae.data import Identity
from distae.errors import TrainingError
from distae.training.metrics import MetricsLogger
from distae.training.save_schedule import GPU_HOURS_PER_FAILURE, SaveSchedule
from distae.training.state import TrainState, checkpoint_metadata, state_dict


class CheckpointManager:
    """Saves a run on its schedule. All ranks call the same methods together."""

    def __init__(
        self,
        cfg: TrainConfig,
        state: TrainState,
        logger: MetricsLogger,
        threads: int,
        data: Identity,
        may_commit: Callable[[], None],
    ) -> None:
        """`may_commit` is called on rank 0 before a checkpoint is committed, and raises TrainingError to forbid that."""
        self.cfg, self.state, self.logger, self.threads, self.data = cfg, state, logger, threads, data
        self.train_step, self.tracker = logger.train_step, logger.tracker
        folder = Path(cfg.run_dir or ".") / "checkpoints"
        self.store = CheckpointStore(folder, cfg.checkpoint.keep_latest_k, cfg.checkpoint.mode, may_commit)
        hours = cfg.checkpoint.mtbf_hours or GPU_HOURS_PER_FAILURE / dist.world().world_size
        self.schedule = SaveSchedule(cfg.save_every, hours * 3600)
        self.saved_step: int | None = None
        self.why_unsaved = ""

    def start(self) -> None:
        """Start the schedule at the step where training starts, and delete what the save of that step should have deleted."""
        self.schedule.start(self.state.step, time.perf_counter())
        if self.saved_step is not None:
            self.store.tidy(self.saved_step, self.state.best_step)

    def save_if_due(self, new_best: bool) -> None:
        if self.schedule.due(self.state.step) or new_best:
            self.save()

    def save_again(self, new_best: bool) -> None:
        """Save this step again after an evaluation that a stop had interrupted: the saved state does not have its result."""
        if self.state.evaluated_step == self.state.step:
            self.saved_step = None
            self.save_if_due(new_best)

    def save(self, wait: bool = False) -> None:
        """Save the whole state of the run, unless this step is saved already; with `wait`, return once it is on disk.

        A save that fails is reported and tried again at the next interval. Raises TrainingError if a step since the last row was
        not finite, and, with `wait`, if the save fails.
        """
        dist.synchronize()  # queued work is training, not part of the cost of a save
        started = time.perf_counter()
        with self.logger.timers["checkpoint"]:
            self._finish_pending()
            if self.saved_step != self.state.step:
                self._begin(started)
            if wait:
                self._finish_pending()
                if self.saved_step != self.state.step:
                    raise TrainingError(
                        f"the checkpoint of step {self.state.step} could not be saved: {self.why_unsaved}; older ones are kept"
                    )

    def load_weights(self, step: int) -> dict[str, Tensor]:
        """The evaluated weights (averaged, with --ema) of a saved step, in parts if the model is. Raises TrainingError."""
        prefix = "ema." if self.train_step.ema else "model."
        if why := self.store.why_unusable(step):
            raise TrainingError(f"the checkpoint of step {step} cannot be used: {why}")
        into = {k: v.clone() for k, v in state_dict(self.train_step).items() if not k.startswith("optim.")}
        self.store.load(step, into, "optim.", lambda *_: None)
        return {k.removeprefix(prefix): v for k, v in into.items() if k.startswith(prefix)}

    def close(self) -> None:
        """Wait for the writer. Safe if other ranks are lost."""
        self.store.close()

    def abandon(self) -> None:
        """No commits from now on: for a run that failed, before it releases its folder."""
        self.store.abandon()

    def _begin(self, started: float) -> None:
        self.logger.check_finite()
        self.logger.count_skipped("train")
        rows = dist.broadcast(self.tracker.sync())
        if isinstance(rows, str):
            self._report(rows)
            return
        metadata = checkpoint_metadata(
            self.cfg,
            self.state,
            self.train_step,
            rows,
            self.logger.total_steps,
            self.threads,
            self.data,
            self.logger.skipped.state(),
        )
        self.store.save(self.state.step, state_dict(self.train_step), msgspec.json.encode(metadata), self.state.best_step)
        self.saved_step = self.state.step
        self.logger.callbacks.on_save(self.state.step)
        if self.cfg.save_every == "auto":  # each rank's clock differs, so rank 0 decides
            self.schedule.next = dist.broadcast(self.schedule.after(self.state.step, started, time.perf_counter()))

    def _finish_pending(self) -> None:
        if (error := self.store.wait()) is not None:
            self._report(error)

    def _report(self, why: str) -> None:
        self.saved_step, self.why_unsaved = None, why
        self.tracker.line(f"saving a checkpoint failed, the next interval tries again: {why}")
