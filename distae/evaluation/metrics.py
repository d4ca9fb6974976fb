"""Metrics of a model: of each sample in every evaluation, or of a whole split by `distae evaluate`."""

from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple

from torch import Tensor

from distae.config.names import METRICS, metric_of
from distae.config.registry import import_all
from distae.models import Autoencoder, Batch, Output

Better = Literal["lower", "higher"]


class Figure(NamedTuple):
    """A metric's value, beside baselines that are computed from the same samples by the same protocol."""

    value: float
    baselines: Mapping[str, float] = {}
    """By name, such as `pca`."""
    interval: tuple[float, float] | None = None
    """95% confidence interval of the value."""
    protocol: Mapping[str, Any] = {}
    """What else defines the value: the k of kNN, the extractor of features, the level of noise."""


class Skip(Exception):  # noqa: N818 - not an error: the other metrics are still computed
    """Raised by a metric that does not apply to this model or data; the text says why."""


class Metric(NamedTuple):
    """A registered metric."""

    compute: Callable[..., Any]
    """Without a task: `(model, batch, out) -> [B]`, the value of each sample; all ranks call it together, on the chunks of
    `evaluation.exact`, rows that `batch.valid_mask` leaves out do not count, and other ranks' rows come from `batch.pool`.
    With a task: `(Evaluation) -> Figure`, or a dict of figures by suffix."""
    task: str | None = None
    """The question that it answers, which `distae evaluate --tasks` names."""
    unit: str = ""
    better: Better | None = "lower"
    """None where neither is."""

    @property
    def sign(self) -> int:
        """What makes the best value the lowest: -1 where a higher value is better."""
        return -1 if self.better == "higher" else 1


def named(best_metric: str) -> Metric | None:
    """The registered metric that --best-metric names; None for a term of the model."""
    name = metric_of(best_metric)
    if name in METRICS.keys_known and name not in METRICS:
        load_all()
    return METRICS.get(name)


def register_metric(
    name: str, *, task: str | None = None, unit: str = "", better: Better | None = "lower"
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Without `task`, report the mean over all samples as `val/NAME` and `test/NAME`; with it, by `distae evaluate`.

    `--best-metric` may name it.
    """

    def bind(compute: Callable[..., Any]) -> Callable[..., Any]:
        METRICS.register(name)(Metric(compute, task, unit, better))
        return compute

    return bind


def metrics_of(model: Autoencoder, batch: Batch, out: Output) -> dict[str, Tensor]:
    """`[B]` of every metric that has no task."""
    return {name: metric.compute(model, batch, out) for name, metric in METRICS.items() if metric.task is None}


def load_all() -> None:
    """Import all files of this package, which register their metrics."""
    import_all("distae.evaluation")


def metrics_by_task() -> dict[str, dict[str, Metric]]:
    """The metrics of every task by their names."""
    found: dict[str, dict[str, Metric]] = {}
    for name, metric in METRICS.items():
        if metric.task is not None:
            found.setdefault(metric.task, {})[name] = metric
    return found


@register_metric("mse")
def squared_error(model: Autoencoder, batch: Batch, out: Output) -> Tensor:
    """(x - mean of p(x|z))^2, averaged over the values of a sample; over those that are not missing, 0 where all are."""
    made = model.likelihood.matched(model.likelihood.mean(out.recon), batch.x)
    squares = (model.target(batch.x) - made).square().flatten(1)
    return squares.nanmean(1).nan_to_num(0.0) if model.cfg.missing else squares.mean(1)
