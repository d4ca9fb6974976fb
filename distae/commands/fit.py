"""`distae.fit`: train from a notebook or a script, on the data at hand. The training is that of `distae train`."""

import contextlib
import dataclasses
import json
import re
import shutil
import tempfile
import weakref
from collections.abc import Callable, Iterator, Mapping
from functools import cache, cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from distae import data
from distae import distributed as dist
from distae.commands.checkpoint import export_step
from distae.commands.given import Given, splits_and_settings
from distae.commands.session import Host, run_in_turn, tell_others
from distae.config import TrainConfig, check, to_dict
from distae.config.keywords import from_keywords
from distae.data import Split
from distae.errors import DistaeError, TrainingError, UserError
from distae.models import inference
from distae.runtime.environment import Environment, environment
from distae.runtime.outcome import Outcome

if TYPE_CHECKING:
    from distae.models.inference import Model

DEFAULTS = {"tracking": "none", "progress": "bar", "report": False}
"""What differs from the command line."""


class TemporaryFolder:
    """A folder that is removed with this object, or at the program's end; without tempfile's ResourceWarning."""

    def __init__(self) -> None:
        self.name = tempfile.mkdtemp(prefix="distae-")
        self.remove = weakref.finalize(self, shutil.rmtree, self.name, ignore_errors=True)


class Run:
    """The run that `fit` returns: finished, or stopped after a save. A temporary run folder is removed with this object."""

    def __init__(self, settings: TrainConfig, load: Callable[[], dict[str, Split]], folder: TemporaryFolder | None) -> None:
        self.settings, self._load, self._folder = settings, load, folder
        self.outcome = Outcome("failed", 0, str(settings.run_dir))

    @property
    def run_dir(self) -> Path:
        """The run folder, whose files README.md lists."""
        return Path(str(self.settings.run_dir))

    @property
    def stopped(self) -> bool:
        """Whether Ctrl-C or a signal, on any rank, stopped it before its end: `resume` continues it."""
        return self.outcome.outcome == "stopped"

    @property
    def step(self) -> int:
        """The number of optimizer steps done."""
        return self.outcome.step

    @cached_property
    def model(self) -> "Model":
        """The best model by `best_metric` if there is validation data, else the last; for a stopped run, the newest saved one."""
        if self.stopped:
            with tempfile.TemporaryDirectory(prefix="distae-") as folder:
                export_step(self.run_dir, None, Path(folder))
                return inference.load(folder)
        return inference.load(self.run_dir)

    @cached_property
    def _rows(self) -> list[dict[str, float]]:
        return [json.loads(line) for line in (self.run_dir / "metrics.jsonl").read_text().splitlines()]

    @property
    def history(self) -> Any:
        """Every row of metrics (docs/metrics.md), as a pandas DataFrame if pandas is installed, else a list of dicts."""
        with contextlib.suppress(ImportError):
            import pandas as pd

            return pd.DataFrame(self._rows)
        return self._rows

    @property
    def metrics(self) -> dict[str, float]:
        """The newest value of each metric of training, validation and test: `train/loss`, `val/mse` and so on."""
        return {k: v for row in self._rows for k, v in row.items() if "/" in k}

    def resume(self, **changes: Any) -> "Run":
        """Continue training on the same data: to the end of a stopped run, or beyond it with `epochs=` or `steps=`.

        `changes` are settings that do not define the result, such as `log_every`. Returns the run, with a new `model`.
        Raises UserError if a setting defines the result, and TrainingError as `fit` does.
        """
        with _in_python():
            env = environment()
            settings = from_keywords(TrainConfig, changes, to_dict(dataclasses.replace(self.settings, fresh=False)))
            run = Run(check(settings, env.world_size), self._load, self._folder)
            run._train(env)
        return run

    def _train(self, env: Environment) -> None:
        """Train, on every rank."""
        with _program_settings():
            host = Host(lambda _: self._load(), self._read, is_ours=False)
            self.outcome = run_in_turn(self.settings, env, self._runs(), host)

    @contextlib.contextmanager
    def _runs(self) -> Iterator[list[TrainConfig]]:
        """This run, in a folder that rank 0 makes where none was given; entered and left by all ranks together."""
        made = None
        if self.settings.run_dir == _unused():
            made = self._folder = TemporaryFolder() if dist.world().is_main else None
            name = dist.broadcast(made.name if made else None)
            self.settings = dataclasses.replace(self.settings, run_dir=name)
        try:
            yield [self.settings]
        except BaseException:
            if made:
                made.remove()
            raise

    def _read(self, end: Outcome) -> None:
        """Keep the model and the rows as they are now: a temporary folder may be removed, and `resume` changes its files."""
        self.outcome = end
        dist.broadcast(None)  # rank 0 has exported the model
        with contextlib.suppress(DistaeError, OSError):
            _ = self._rows, self.model
        dist.gather(None)  # before rank 0 may remove the folder

    def __repr__(self) -> str:
        loss = next((f", {k} {self.metrics[k]:.5g}" for k in ("val/loss", "train/loss") if k in self.metrics), "")
        return f"distae.Run({self.settings.model.name}, {self.outcome.outcome} at step {self.step}{loss})"


def fit(x: Any, y: Any = None, *, validation: Any = None, test: Any = None, progress: bool = True, **settings: Any) -> Run:
    """What `distae.fit` does, whose documentation is there."""
    with _in_python():
        env = environment()
        try:
            run = _prepared(Given(x, y, validation, test), settings, progress, env)
            run._train(env)
        except DistaeError as error:
            if env.world_size > 1 and not error.heard:
                tell_others(error, env)
            raise
    return run


def _prepared(given: Given, settings: Mapping[str, Any], progress: bool, env: Environment) -> Run:
    defaults = DEFAULTS | ({} if progress else {"progress": "none"})
    splits, asked = splits_and_settings(given, defaults | dict(settings))
    run_dir, first = asked.run_dir or (None if asked.name else _unused()), asked.fresh and env.first_start
    if run_dir == _unused() and env.world_size > env.local_world_size:
        raise UserError("run_dir is required on several machines: give a folder that all of them can access")
    cfg = check(dataclasses.replace(asked, run_dir=run_dir, fresh=first), env.world_size)
    return Run(cfg, cache(lambda: data.load(cfg.data) if splits is None else splits), None)


def _unused() -> str:
    """Placeholder for a temporary folder until the process group exists."""
    return str(Path(tempfile.gettempdir()) / "distae-temporary")


@contextlib.contextmanager
def _in_python() -> Iterator[None]:
    """Errors name settings as Python writes them, `model.latent_dim` instead of `--model.latent-dim`."""
    try:
        yield
    except DistaeError as error:
        text = re.sub(r"(?<![\w-])--(?!help)([a-z][\w.-]*\w)", lambda m: m[1].replace("-", "_"), str(error))
        if text == str(error):
            raise
        said = type(error)(text) if type(error) in (UserError, TrainingError) else UserError(text)
        said.heard, said.remote = error.heard, error.remote
        raise said from error.__cause__


@contextlib.contextmanager
def _program_settings() -> Iterator[None]:
    """Restore torch's process-wide settings that training changes."""
    threads, tf32 = torch.get_num_threads(), (torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32)
    flushes = float(torch.tensor(1e-310, dtype=torch.float64) * 1.0) == 0
    try:
        yield
    finally:
        torch.set_num_threads(threads)
        torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = tf32
        torch.set_flush_denormal(flushes)
