"""Where a run starts: at its newest checkpoint, at another run's, at a trained model's weights, or from scratch."""

from pathlib import Path

from distae import distributed as dist
from distae.checkpoint import CheckpointReader
from distae.config import TrainConfig
from distae.distributed.parallelize import load_whole_state
from distae.errors import TrainingError, UserError
from distae.models.serialization import is_partial, load_weights
from distae.runtime import outcome
from distae.runtime.run_dir import check_saved
from distae.tracking import Extent
from distae.training.checkpointing import CheckpointManager
from distae.training.state import CheckpointMetadata, TrainState, changed_data, check_order, compare, load_state_dict
from distae.training.step import TrainStep


class RunRestorer:
    """Brings model, optimizers and counters to where a run starts. All ranks call the same methods together."""

    def __init__(self, cfg: TrainConfig, train_step: TrainStep, state: TrainState, checkpoints: CheckpointManager) -> None:
        self.cfg, self.train_step, self.state, self.checkpoints = cfg, train_step, state, checkpoints
        self.notes: list[str] = []
        """Notes on the start for the log."""
        self.resumed: CheckpointMetadata | None = None

    def restore(self) -> Extent:
        """Load the state that the run starts from; returns the extent of metrics.jsonl at that step.

        Raises TrainingError if no checkpoint can be used, UserError if settings or data do not match.
        """
        store = self.checkpoints.store
        store.recover()
        latest = store.newest()
        set_aside = store.clean(latest)
        if latest is not None:
            self.notes += latest.complaints + set_aside
            self.notes.append(f"resumed at {self._where(latest.step)}")
            self.checkpoints.saved_step = latest.step
            self.resumed = self._load(store, latest.step)
            check_saved(self.resumed.settings, self.cfg)
            self._check_data(self.resumed)
            return Extent(self.resumed.metrics_bytes, self.resumed.metrics_xxh3)
        if self.cfg.fork_from:
            self._fork(Path(self.cfg.fork_from))
        elif self.cfg.init_from:
            self._load_weights(Path(self.cfg.init_from))
        return Extent()

    def _where(self, step: int) -> str:
        total = self.checkpoints.logger.total_steps
        return f"step {step} of {total}" if step <= total else f"step {step}, which is more than the {total} steps asked for"

    def is_complete(self) -> bool:
        """Whether an earlier start already finished the run."""
        end = outcome.read(Path(self.cfg.run_dir or "."))
        return bool(dist.broadcast(end is not None and (end.outcome, end.step) == ("done", self.state.step)))

    def check_order(self) -> None:
        """Raises UserError if the run is of a version with a different order of rows: it would continue differently."""
        if self.resumed:
            check_order(self.resumed, self.cfg.run_dir)

    def _load(self, store: CheckpointReader, step: int) -> CheckpointMetadata:
        """Load a checkpoint's whole state; returns its metadata. Raises TrainingError."""
        saved = load_state_dict(store, step, self.train_step)
        self.state.assign(saved.state)
        self.train_step.schedule.plateau = saved.plateau
        self.notes += compare(saved, self.cfg, self.checkpoints.logger.total_steps, self.checkpoints.threads)
        return saved

    def _check_data(self, saved: CheckpointMetadata) -> None:
        """Raises UserError if the data differ from those of the checkpoint, unless that is allowed."""
        if saved.data is None:
            self.notes.append("the checkpoint is of an earlier version and does not record its data: not compared")
        changed = changed_data(saved, self.cfg, self.checkpoints.data)
        if changed and not self.cfg.allow_changed_data:
            raise UserError(f"{changed}.\nGive that data, another --run-dir, or --allow-changed-data to resume with this data")
        if not changed:
            self.checkpoints.logger.skipped.load(saved.bad_rows)
        self.notes += [f"{changed}; resumed with this data (--allow-changed-data)"] if changed else []

    def _fork(self, source: Path) -> None:
        """Load another run's newest state, without its best, which is not a checkpoint of this run. Raises UserError."""
        store = CheckpointReader(source / "checkpoints")
        try:
            latest = store.newest()
            if latest is None:
                raise UserError(f"--fork-from: no checkpoint in {source}")
            saved = self._load(store, latest.step)
        except TrainingError as error:
            raise UserError(f"--fork-from: {error}") from error
        changed = changed_data(saved, self.cfg, self.checkpoints.data)
        if not changed:
            self.checkpoints.logger.skipped.load(saved.bad_rows)
        self.state.best_value = self.state.best_step = None
        self.state.bad_evals = 0
        self.notes += [*latest.complaints, f"forked from {source} at step {latest.step}"]
        self.notes += [changed] if changed else []

    def _load_weights(self, run_dir: Path) -> None:
        weights = load_weights(run_dir, self.train_step.loader.split.transform.scale)
        for model in {self.train_step.model, self.train_step.weights}:
            try:
                load_whole_state(model, weights, partial=is_partial(run_dir))
            except RuntimeError as error:
                first = str(error).splitlines()[1].strip()[:200]
                raise UserError(f"--init-from: the model in {run_dir} does not match --model and --net: {first}") from error
