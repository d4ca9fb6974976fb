"""The training loop: step, log, evaluate, save, in this order."""

import math
import time
from collections.abc import Callable
from pathlib import Path

import msgspec
import torch

from distae import data
from distae import distributed as dist
from distae.checkpoint import CheckpointStore
from distae.config import TrainConfig
from distae.data import Arrays, GlobalBatchSampler, Loader
from distae.errors import TrainingError, UserError
from distae.evaluation.diagnosis import diagnose, warnings
from distae.evaluation.exact import evaluate
from distae.evaluation.pictures import draw
from distae.models import build
from distae.models.serialization import export, load_weights
from distae.runtime import outcome
from distae.runtime.lock import RunLock
from distae.runtime.signals import StopRequest
from distae.tracking import Tracker, describe_environment
from distae.training import state as snapshot
from distae.training.compile import no_compiler
from distae.training.optim import Schedule
from distae.training.profiling import Profile, peak_flops, peak_memory_bytes
from distae.training.save_schedule import GPU_HOURS_PER_FAILURE, SaveSchedule
from distae.training.state import TrainState
from distae.training.step import TrainStep, autocast, explaining_memory

FEWEST_STEPS_PER_EVALUATION = 50
"""Where --eval-every is left open: an epoch of a small data set is over in a moment, its evaluation and pictures are not."""


SMALLEST_LOSS_SCALE = 2.0**-10
"""The scaler halves it at every overflow, from 65,536 on; so far down, every step is skipped."""


class Trainer:
    """Trains one model on one data set. All ranks call the same methods together."""

    def __init__(
        self, cfg: TrainConfig, splits: dict[str, Arrays], stop: StopRequest, threads: int, lock: RunLock | None = None
    ) -> None:
        """`lock` is rank 0's hold of the run folder."""
        self.cfg, self.stop, self.threads = cfg, stop, threads
        self.world = dist.world()
        self.run_dir = Path(cfg.run_dir or ".")
        dtype = torch.float64 if cfg.precision == "fp64" else torch.float32
        device, last = self.world.device, cfg.channels_last
        self.loaders = {k: Loader(v, cfg.data.binarize, device, dtype, last) for k, v in splits.items()}
        self.sampler = GlobalBatchSampler(
            len(splits["train"]),
            cfg.global_batch_size,
            self.world.rank,
            self.world.world_size,
            cfg.grad_accum_steps,
            cfg.seed,
        )
        self.total = cfg.steps or (cfg.epochs or 1) * self.sampler.steps_per_epoch
        self.schedule = Schedule(cfg.schedule, self.total, self.sampler.steps_per_epoch)
        to = {"memory_format": torch.channels_last} if last else {}
        model = build(cfg.model, cfg.net, cfg.data.shape(), cfg.seed, device=device, dtype=dtype, **to)
        self.notes: list[str] = []
        self.train_step = TrainStep(cfg, model, self.loaders["train"], self.schedule, cfg.compile and self._compiler_works())
        self.checkpoints = CheckpointStore(
            self.run_dir / "checkpoints", cfg.checkpoint.keep_latest_k, cfg.checkpoint.mode, lock.check if lock else lambda: None
        )
        hours = cfg.checkpoint.mtbf_hours or GPU_HOURS_PER_FAILURE / self.world.world_size
        self.save_schedule = SaveSchedule(cfg.save_every, hours * 3600)
        self.state = TrainState()
        self.tracker = Tracker([])
        self.consensus = dist.Consensus()
        self.agreed_signal = 0
        self.interrupted = False
        self.saved_step: int | None = None
        self.timers = self.train_step.timers
        self.clock = (0, self.timers.now())
        self.profile: Profile | None = None
        self.peak = peak_flops(self.world.device, cfg.precision, cfg.tf32)
        self.flops = 0.0

    def _compiler_works(self) -> bool:
        """All ranks compile, or none does; a note says why not."""
        reason = next(filter(None, dist.gather(no_compiler(self.world.device))), None)
        if reason:
            self.notes.append(f"--compile: torch.compile finds no compiler here, training goes on without ({reason})")
        return reason is None

    @property
    def finished(self) -> bool:
        patience = self.cfg.early_stop.patience
        return self.state.step >= self.total or (patience is not None and self.state.bad_evals >= patience)

    def fit(self) -> bool:
        """Train to the end; or to an agreed stop, and then return False after a save."""
        batches = data.steps(self.sampler, self.state.step, self.loaders["train"].storage_device)
        self._start_clock()
        self.save_schedule.start(self.state.step, time.perf_counter())
        if self.cfg.profile:
            self.profile = Profile(self.timers, self.train_step.model, self.run_dir / "profile", self.tracker.line)
        with explaining_memory(self.cfg, self.world.world_size):
            if self.evaluate_if_due():
                self.save()
            while not self.finished:
                if self.stop_agreed():
                    return self.save_and_leave()
                with self.timers["data"]:
                    rows = next(batches)
                self.train_step(self.state.step, rows)
                self.state.step += 1
                self.log_if_due()
                self.save_if_due(self.evaluate_if_due())
                if self.profile:
                    self.profile.step()
            if self.interrupted:
                return self.save_and_leave()
        return self.finish()

    def stop_agreed(self, at_once: bool = False) -> bool:
        """Whether all ranks know that one of them was asked to stop; `agreed_signal` says by what (`at_once`: `Vote.cast`)."""
        self.agreed_signal = self.agreed_signal or self.consensus.post(self.stop.signum, at_once)
        return bool(self.agreed_signal)

    def log_if_due(self) -> None:
        if self.state.step % self.cfg.log_every == 0 or self.state.step >= self.total:
            with self.timers["logging"]:
                self.log()

    def log(self) -> None:
        """Write the means since the last row. Raises TrainingError at a non-finite term or gradient."""
        step, window = self.state.step, self.train_step.window
        means, grad_norm = self.check_finite(), float(self.train_step.grad_norm)
        lr = self.cfg.optim.lr * self.schedule.factor(step - 1)
        row = {f"train/{k}": v for k, v in means.items()} | {"train/lr": lr, "train/grad_norm": grad_norm}
        self._row(row | {f"train/{k}": v for k, v in self._speed().items()})
        window.clear()

    def _speed(self) -> dict[str, float]:
        """What the steps since the last row took, logging included, evaluation and saving apart."""
        device, (step, then) = self.world.device, self.clock
        took, steps = self.timers.since(then), self.state.step - step
        self._start_clock()
        seconds = max(took["elapsed"] - took["evaluation"] - took["checkpoint"], 1e-9)
        speed = {
            "samples_per_second": steps * self.cfg.global_batch_size / seconds,
            "data_wait_fraction": took["data"] / seconds,
            "checkpoint_blocked_seconds": took["checkpoint"],
            "peak_memory_bytes": peak_memory_bytes(device),
        }
        if self.peak:
            speed["mfu_fraction"] = self.flops * steps / seconds / self.peak
        return speed

    def check_finite(self) -> dict[str, float]:
        """Means of the open window. Raises TrainingError that names the first masked step and the terms that are not finite."""
        window = self.train_step.window
        means, masked = window.read()
        bad = [name for name, value in means.items() if not math.isfinite(value)]
        scaler = self.train_step.scaler
        if not bad and scaler and scaler.get_scale() < SMALLEST_LOSS_SCALE:
            raise TrainingError(
                f"fp16 gradients overflow even at a loss scale of {scaler.get_scale():g} (step {self.state.step}): "
                "lower --optim.lr, or take --precision bf16 or fp32"
            )
        if not bad and masked is None:
            return means
        first = self.state.step - window.steps
        where = f"at step {first + masked}" if masked else f"between steps {first + 1} and {self.state.step}"
        what = ", ".join(f"train/{name}" for name in bad) or "the gradient"
        raise TrainingError(
            f"{what} became non-finite {where}; that update was not applied and nothing is saved after it. "
            f"Lower --optim.lr, set --optim.max-grad-norm, or look at the data; the newest checkpoint is from before"
        )

    def evaluate_if_due(self) -> bool:
        """Evaluate where this step wants it; whether that gave a new best."""
        step = self.state.step
        every = self.cfg.eval_every or max(self.sampler.steps_per_epoch, FEWEST_STEPS_PER_EVALUATION)
        due = step > self.state.evaluated_step and (step % every == 0 or step >= self.total)
        if not due or not len(self.loaders["val"]):
            return False
        with self.timers["evaluation"]:
            if self.train_step.window.steps:
                self.check_finite()
            metrics = self.evaluate("val", lambda: self.stop_agreed(at_once=True))
            self.interrupted = metrics is None
            return metrics is not None and self._judge(metrics)

    def evaluate(self, split: str, interrupted: Callable[[], bool] = lambda: False) -> dict[str, float] | None:
        """Metrics of a split, and its pictures; None where interrupted."""
        cfg, model, loader = self.cfg, self.train_step.evaluated, self.loaders[split]
        with autocast(cfg.precision, self.world.device):
            metrics = dist.broadcast(evaluate(model, loader, cfg.eval_batch_size, cfg.seed, interrupted))
            told = None if metrics is None else diagnose(model, loader, cfg.eval_batch_size, cfg.seed)
        if metrics is not None and told is not None:
            self._row({f"{split}/{k}": v for k, v in (metrics | told).items()})
            if split == "test":
                for line in warnings(metrics | told, cfg.model.latent_dim):
                    self.tracker.line(line)
            if self.world.is_main:
                self._draw(split)
        return metrics  # type: ignore[no-any-return]

    def _draw(self, split: str) -> None:
        """Pictures of a split; a disk that does not take them does not end the run."""
        step, model, loader = self.state.step, self.train_step.evaluated, self.loaders[split]
        try:
            pictures = draw(model, loader, self.run_dir / "images", step, self.cfg.seed, split)
        except OSError as error:
            self.tracker.line(f"pictures of step {step} could not be written: {error}")
            return
        for name, path in pictures.items():
            self.tracker.image(f"{split}/{name}", path, step)

    def _judge(self, metrics: dict[str, float]) -> bool:
        """Plateau, early stop and best: decided on metrics that rank 0 broadcast. Whether they are a new best."""
        state = self.state
        state.evaluated_step = state.step
        value = metrics[self.cfg.best_metric.removeprefix("val/")]
        self.schedule.observe(value)
        if state.best_value is not None and not value < state.best_value - self.cfg.early_stop.min_delta:
            state.bad_evals += 1
            return False
        state.best_value, state.best_step, state.bad_evals = value, state.step, 0
        return True

    def save_if_due(self, new_best: bool) -> None:
        if self.save_schedule.due(self.state.step) or new_best:
            self.save()

    def save(self, wait: bool = False) -> None:
        """Save all there is to go on from here, unless that is done; with `wait`, until it is on disk.

        A save that fails is reported and tried again at the next interval. Raises TrainingError where a non-finite step is in it,
        and, with `wait`, where it fails.
        """
        dist.synchronize()  # what is queued is training, and no part of what a save costs
        started = time.perf_counter()
        with self.timers["checkpoint"]:
            self._end_save()
            if self.saved_step != self.state.step:
                if self.train_step.window.steps:
                    self.check_finite()
                metrics_bytes = dist.broadcast(self.tracker.sync())
                if metrics_bytes is None:
                    self._save_failed("metrics.jsonl cannot be written")
                else:
                    saved = snapshot.checkpoint_metadata(
                        self.cfg, self.state, self.train_step, metrics_bytes, self.total, self.threads
                    )
                    tensors = snapshot.state_dict(self.train_step)
                    self.checkpoints.save(self.state.step, tensors, msgspec.json.encode(saved), self.state.best_step)
                    self.saved_step = self.state.step
                    self._plan_next_save(started)
            if wait:
                self._end_save()
                if self.saved_step != self.state.step:
                    raise TrainingError(f"the checkpoint of step {self.state.step} could not be saved; an older one is left")

    def _plan_next_save(self, started: float) -> None:
        """Learn from the save that began at `started`; each rank's clock says something else, so rank 0 decides."""
        if self.cfg.save_every == "auto":
            self.save_schedule.next = dist.broadcast(self.save_schedule.after(self.state.step, started, time.perf_counter()))

    def _end_save(self) -> None:
        if (error := self.checkpoints.wait()) is not None:
            self._save_failed(error)

    def _save_failed(self, why: str) -> None:
        self.saved_step = None
        self.tracker.line(f"saving a checkpoint failed, the next interval tries again: {why}")

    def save_and_leave(self) -> bool:
        self.consensus.wait()
        self.save(wait=True)
        self.tracker.line(f"stopped at step {self.state.step} after a save: the same command goes on from there")
        return False

    def finish(self) -> bool:
        """The last row, the last save, the test split, and the model for others to load."""
        self.consensus.wait()
        if self.train_step.window.steps:
            self.log()
        self.save(wait=True)
        if len(self.loaders["test"]):
            self.evaluate("test")
        if self.world.is_main:
            export(self.train_step.evaluated.state_dict(), self.cfg, self.run_dir / "model")
        return True

    def resume(self) -> bool:
        """Go to where the newest valid checkpoint stands, or to the start, and open the sinks there.

        Returns False where the run is complete: there is nothing to do, and nothing is touched.
        """
        rows = next(data.steps(self.sampler, 0, self.loaders["train"].storage_device))
        with explaining_memory(self.cfg, self.world.world_size):
            if self.peak:
                self.flops = self.train_step.flops(rows)
            self.train_step.warmup(rows)
        self.checkpoints.clean()
        found = self.checkpoints.newest()
        metrics_bytes = 0
        if found is not None:
            self.notes += [*found.complaints, f"resumed at step {found.step} of {self.total}"]
            metrics_bytes = self._load(self.checkpoints, found.step)
            self.saved_step = found.step
            if self.finished and dist.broadcast(self._is_complete()):
                return False
        elif self.cfg.fork_from:
            self._fork(Path(self.cfg.fork_from))
        elif self.cfg.init_from:
            self._load_weights(Path(self.cfg.init_from))
        if self.world.is_main:
            (self.run_dir / outcome.FILE).unlink(missing_ok=True)
            about = describe_environment(self.world.world_size, self.threads, str(self.world.device))
            self.tracker = Tracker.open(self.cfg, metrics_bytes, (self.state.step, self.total), about, self.checkpoints.may_commit)
            for note in self.notes:
                self.tracker.line(note)
        return True

    def _is_complete(self) -> bool:
        """Whether an earlier start did all that this one would."""
        end = outcome.read(self.run_dir)
        return end is not None and (end.outcome, end.step) == ("done", self.state.step)

    def _load(self, checkpoints: CheckpointStore, step: int) -> int:
        """Take over a checkpoint's whole state; returns the size of metrics.jsonl at its save. Raises TrainingError."""
        saved = snapshot.load_state_dict(checkpoints, step, self.train_step)
        self.state, self.schedule.plateau = saved.state, saved.plateau
        self.notes += snapshot.compare(saved, self.cfg, self.total, self.threads)
        return saved.metrics_bytes

    def _fork(self, source: Path) -> None:
        """Take over another run's newest state; its best is not a checkpoint of this run."""
        others = CheckpointStore(source / "checkpoints", 1, "sync")
        found = others.newest()
        if found is None:
            raise TrainingError(f"no checkpoint in {source}")
        self._load(others, found.step)
        others.close()
        self.state.best_value = self.state.best_step = None
        self.state.bad_evals = 0
        self.notes += [*found.complaints, f"forked from {source} at step {found.step}"]

    def _load_weights(self, run_dir: Path) -> None:
        weights = load_weights(run_dir)
        for model in {self.train_step.model, self.train_step.evaluated}:
            try:
                model.load_state_dict(weights)
            except RuntimeError as error:
                raise UserError(f"--init-from: the model in {run_dir} has other parameters than this one") from error

    def _row(self, metrics: dict[str, float]) -> None:
        step = self.state.step
        where = {
            "step": step,
            "epoch": step / self.sampler.steps_per_epoch,
            "samples_seen": step * self.cfg.global_batch_size,
        }
        self.tracker.row(where | {"time": time.time()} | metrics)

    def _start_clock(self) -> None:
        self.clock = (self.state.step, self.timers.now())

    def close(self) -> None:
        if self.profile:
            self.profile.close()
        self.checkpoints.close()
        self.tracker.close()
