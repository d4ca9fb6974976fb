"""The training loop: restore, then step, log, evaluate, save in this order, then finish."""

import copy
from collections.abc import Generator
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor

from distae import data
from distae import distributed as dist
from distae.config import TrainConfig
from distae.data import GlobalBatchSampler, Loader, Reading, Split
from distae.data.bad_rows import Skipped
from distae.data.storage import in_words
from distae.distributed.parallelize import is_sharding
from distae.errors import TrainingError
from distae.models import Autoencoder, build
from distae.models.serialization import export
from distae.runtime import events
from distae.runtime.lock import RunLock
from distae.runtime.run_dir import accept
from distae.runtime.signals import StopRequest
from distae.tracking import Tracker, describe_environment
from distae.training.checkpointing import CheckpointManager
from distae.training.compile import no_compiler
from distae.training.metrics import MetricsLogger
from distae.training.optim import Schedule
from distae.training.profiling import Profile
from distae.training.restore import RunRestorer
from distae.training.state import TrainState
from distae.training.step import TrainStep, explaining_memory
from distae.training.stop import StopAgreement
from distae.training.validation import Validator

T = TypeVar("T")


def result_of(steps: Generator[None, None, T]) -> T:
    """What a generator returns, after all its steps."""
    while True:
        try:
            next(steps)
        except StopIteration as end:
            return end.value  # type: ignore[no-any-return]


class Trainer:
    """Trains one model on one data set. All ranks call the same methods together."""

    def __init__(
        self, cfg: TrainConfig, splits: dict[str, Split], stop: StopRequest, threads: int, lock: RunLock | None = None
    ) -> None:
        """`lock` is rank 0's lock on the run folder."""
        self.cfg, self.threads, self.world = cfg, threads, dist.world()
        self.run_dir = Path(cfg.run_dir or ".")
        device, dtype = self.world.device, torch.float64 if cfg.precision == "fp64" else torch.float32
        self.data = data.identity(splits)
        reading = Reading(cfg.data.storage, cfg.data.workers, cfg.data.prefetch, threads)
        self.loaders = {k: Loader(v, cfg.data.binarize, device, dtype, cfg.channels_last, reading) for k, v in splits.items()}
        n, ranks = len(splits["train"]), (self.world.rank, self.world.world_size)
        order = data.order_of(cfg, splits["train"])
        self.sampler = GlobalBatchSampler(n, cfg.global_batch_size, *ranks, cfg.grad_accum_steps, cfg.seed, order)
        splits["train"].source.units_kept = self.sampler.units_in_use
        self.total = cfg.steps or (cfg.epochs or 1) * self.sampler.steps_per_epoch
        schedule = Schedule(cfg.schedule, self.total, self.sampler.steps_per_epoch)
        to = {"memory_format": torch.channels_last} if cfg.channels_last else {}
        place = torch.device("cpu") if is_sharding(cfg.parallel) else device  # a GPU never holds all of a sharded model's state
        model = build(cfg.model, cfg.net, cfg.data.shape(), cfg.seed, device=place, dtype=dtype, **to)
        why_not_compiled = self._why_not_compiled()
        compiled = cfg.compile and why_not_compiled is None
        self.train_step = TrainStep(cfg, model, self.loaders["train"], schedule, compiled)
        self.state, self.tracker, self.stop = TrainState(), Tracker(), StopAgreement(stop)
        steps = self.sampler.steps_per_epoch, self.total
        self.logger = MetricsLogger(cfg, self.train_step, self.state, self.tracker, steps, Skipped(splits))
        self.validator = Validator(cfg, splits, self.loaders, self.state, self.logger)
        self.lock, self.may_write = lock, lock.check if lock else lambda: None
        self.checkpoints = CheckpointManager(cfg, self.state, self.logger, threads, self.data, self.may_write)
        self.restorer = RunRestorer(cfg, self.train_step, self.state, self.checkpoints)
        self.restorer.notes += [
            *splits["train"].notes,
            f"data: {in_words(splits)}, {self.loaders['train'].where}",
            *filter(None, [why_not_compiled]),
        ]
        self.profile: Profile | None = None

    @property
    def finished(self) -> bool:
        return self.state.step >= self.total or self.validator.out_of_patience

    def resume(self) -> bool:
        """Restore the run, or start it, and open the sinks there.

        Returns False if the run is complete: there is nothing to do, and nothing is touched.
        """
        self._warm_up()
        rows = self.restorer.restore()
        if self.finished and self.state.step and self.restorer.is_complete():
            return False
        self.restorer.check_order()
        self.restorer.notes += self.validator.prepare()
        if self.world.is_main:
            accept(self.cfg)
            environment = describe_environment(self.world.world_size, self.threads, str(self.world.device))
            self.tracker.open(self.cfg, rows, (self.state.step, self.total), environment, self.may_write)
            events.record(self.run_dir, "start", self.state.step, **environment)
            for note in self.restorer.notes:
                self.tracker.line(note)
        return True

    def fit(self) -> bool:
        """Train to the end; or to an agreed stop, and then return False after a save."""
        return result_of(self.steps())

    def steps(self) -> Generator[None, None, bool]:
        """`fit`, which pauses after each step, so that other trainers can do theirs."""
        self.logger.callbacks.on_start(self)
        try:
            finished = yield from self._loop()
        finally:
            for loader in self.loaders.values():
                loader.close()
        self.logger.callbacks.on_end(finished)
        return finished

    def _loop(self) -> Generator[None, None, bool]:
        loader = self.loaders["train"]
        batches = loader.ahead(data.steps(self.sampler, self.state.step, loader.storage_device), iter)
        self.logger.start()
        self.checkpoints.start()
        if self.cfg.profile:
            self.profile = Profile(self.logger.timers, self.train_step.model, self.run_dir / "profile", self.tracker.line)
        with explaining_memory(self.cfg, self.world.world_size):
            if self.validator.due():  # the evaluation that a stop interrupted
                self.checkpoints.save_again(self.validator.validate(self.stop))
            while not self.finished:
                if self.lock and self.lock.lost:  # noticed by its heartbeat
                    self.lock.check()
                if self.stop.agreed():
                    return self._save_and_leave()
                with self.logger.timers["data"]:
                    rows = next(batches)
                self.train_step(self.state.step, rows)
                self.state.step += 1
                self.logger.log_if_due()
                self.validator.probe_if_due()
                self.checkpoints.save_if_due(self.validator.due() and self.validator.validate(self.stop))
                if self.profile:
                    self.profile.step()
                yield
            return self._finish()

    def close(self) -> None:
        """Wait for the writer of checkpoints and close the sinks."""
        if self.profile:
            self.profile.close()
        self.checkpoints.close()
        self.tracker.close()

    def _warm_up(self) -> None:
        """Warm-up passes without effect on the run: DDP rebuilds its buckets, torch.compile compiles, FLOPs are counted."""
        rows = next(data.steps(self.sampler, 0, self.loaders["train"].storage_device))
        with explaining_memory(self.cfg, self.world.world_size):
            if self.logger.peak_flops:
                self.logger.flops = self.train_step.flops(rows)
            self.train_step.warmup(rows)

    def _why_not_compiled(self) -> str | None:
        """A note if --compile is set and a rank has no compiler: all ranks compile, or none does."""
        if not self.cfg.compile:
            return None
        reason = next(filter(None, dist.gather(no_compiler(self.world.device))), None)
        return reason and f"--compile: torch.compile finds no compiler here, training continues without ({reason})"

    def _save_and_leave(self) -> bool:
        self.stop.wait()
        self.checkpoints.save(wait=True)
        self.tracker.line(f"stopped at step {self.state.step}, checkpoint saved; rerun to resume")
        return False

    def _finish(self) -> bool:
        """The last row, the last save, the test split, and the model for others to load; False after an agreed stop."""
        if self.stop.signal and self.validator.due():
            return self._save_and_leave()
        self.stop.wait()
        if self.train_step.window.steps:
            self.logger.log()
        self.checkpoints.save(wait=True)
        model, step, weights = self._exported()
        with self.train_step.whole(weights):
            if len(self.loaders["test"]) and self.validator.evaluate("test", model, self.stop) is None:
                return self._save_and_leave()
            if self.world.is_main:
                transform = self.train_step.loader.split.transform
                export(model, self.cfg, self.run_dir / "model", step, transform, self.data)
        self.tracker.line(self._closing_line(step))
        return True

    def _exported(self) -> tuple[Autoencoder, int, dict[str, Tensor] | None]:
        """The model to export, its step, and weights that a sharded one is to be filled with: the best on the validation split,
        unless --export is last."""
        best, evaluated = self.state.best_step, self.train_step.evaluated
        if self.cfg.export == "last" or best is None or best == self.state.step:
            return evaluated, self.state.step, None
        try:
            weights = self.checkpoints.load_weights(best)
        except TrainingError as error:
            self.tracker.line(f"the best model, of step {best}, cannot be exported, so the last is: {error}")
            return evaluated, self.state.step, None
        if self.train_step.sharded:
            return evaluated, best, weights
        model = copy.deepcopy(evaluated)
        model.load_state_dict(weights)
        return model, best, None

    @property
    def why_early(self) -> str:
        """Why the run ended before its last step, if it did."""
        if self.state.step >= self.total:
            return ""
        return f"early stop: {self.cfg.best_metric} has not improved for {self.state.bad_evals} evaluations"

    def _closing_line(self, step: int) -> str:
        why = f" ({self.why_early})" if self.why_early else ""
        best = f", of step {step}, the best {self.cfg.best_metric}" if step != self.state.step else ""
        return (
            f"done at step {self.state.step}{why}; model in {self.run_dir / 'model'}{best}, pictures in {self.run_dir / 'images'}. "
            f"Next: distae.load({str(self.run_dir)!r})"
        )
