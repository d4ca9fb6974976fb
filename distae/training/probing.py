"""Metrics of whole splits during training: those of --probe-every, and --best-metric where it is one."""

from collections.abc import Sequence

from distae import distributed as dist
from distae.config import TrainConfig
from distae.config.evaluation import EvaluationConfig
from distae.config.names import METRICS, metric_of
from distae.data import Reading, Split
from distae.errors import UserError
from distae.evaluation.evaluation import Evaluation
from distae.evaluation.metrics import Skip, load_all, named
from distae.models import Autoencoder
from distae.training.step import autocast

LIMIT = 4096
"""Samples of a split: a probe is cheap next to an evaluation."""


class Probes:
    """Metrics of the validation split that are computed from the first LIMIT samples. All ranks call the same methods together."""

    def __init__(self, cfg: TrainConfig, splits: dict[str, Split], model: Autoencoder) -> None:
        self.cfg = cfg
        self.best = cfg.best_metric.removeprefix("val/")
        self.registered = named(cfg.best_metric)
        if cfg.probe_every:
            load_all()
        self.names: tuple[str, ...] = cfg.probes if cfg.probe_every else ()
        self.of_task = (metric_of(cfg.best_metric),) if self.registered and self.registered.task else ()
        self.evaluation: Evaluation | None = None
        if self.names or self.of_task:  # values stay where they are: a second copy on the GPU would take the memory of training
            reading = Reading(storage="mapped")
            was_training = model.training
            self.evaluation = Evaluation(model, cfg, splits, "val", EvaluationConfig(limit=LIMIT), reading)
            model.train(was_training)

    @property
    def sign(self) -> int:
        """-1 where a higher value of --best-metric is better."""
        return self.registered.sign if self.registered else 1

    def prepare(self, model: Autoencoder) -> list[str]:
        """Notes on the probes that do not apply, which are left out from then on; baselines are computed and kept.

        Raises UserError if --best-metric does not apply.
        """
        if self.registered and self.registered.better is None:
            raise UserError(f"--best-metric {self.cfg.best_metric}: neither lower nor higher is better")
        if odd := [name for name in self.names if METRICS[name].task is None]:
            raise UserError(f"--probes {odd[0]}: every evaluation has it; leave it out")
        if not self.evaluation or not len(self.evaluation.splits["val"]):
            return []
        try:
            found = self.of_best(model)
        except Skip as why:
            raise UserError(f"--best-metric {self.cfg.best_metric}: {why}") from why
        if found and self.best not in found:
            raise UserError(f"--best-metric {self.cfg.best_metric}; valid: {', '.join(f'val/{name}' for name in found)}")
        notes = []
        for name in self.names:
            try:
                self._computed((name,), model)
            except Skip as why:
                self.names = tuple(other for other in self.names if other != name)
                notes.append(f"--probe-every: {name} is left out: {why}")
        return notes

    def of_best(self, model: Autoencoder) -> dict[str, float]:
        """The figures of --best-metric; none where every evaluation has it."""
        return self._computed(self.of_task, model)

    def __call__(self, model: Autoencoder) -> dict[str, float]:
        """The figures of --probe-every."""
        return self._computed(self.names, model)

    def _computed(self, names: Sequence[str], model: Autoencoder) -> dict[str, float]:
        if not names or self.evaluation is None:
            return {}
        found: dict[str, float] = {}
        was_training = model.training
        self.evaluation.model = model.eval()
        self.evaluation.forget_model()
        try:
            with autocast(self.cfg.precision, dist.world().device):
                for name in names:
                    figures = METRICS[name].compute(self.evaluation)
                    figures = figures if isinstance(figures, dict) else {"": figures}
                    found |= {f"{name}/{suffix}" if suffix else name: figure.value for suffix, figure in figures.items()}
        finally:
            model.train(was_training)
        return dist.broadcast(found)  # type: ignore[no-any-return]
