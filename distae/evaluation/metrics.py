"""Metrics of an evaluation besides the model's terms: each is a function of a chunk."""

from collections.abc import Callable

from torch import Tensor

from distae.config.names import METRICS
from distae.models import Autoencoder, Batch, Output

Metric = Callable[[Autoencoder, Batch, Output], Tensor]
"""The value of each sample, `[B]`; rows that `batch.valid_mask` leaves out do not count.

All ranks call it together, on the chunks of `evaluation.exact`; `batch.pool` gives it other ranks' rows.
"""


def register_metric(name: str) -> Callable[[Metric], Metric]:
    """Report the mean over all samples as `val/NAME` and `test/NAME`; --best-metric may name it if lower is better."""
    return METRICS.register(name)


def metrics_of(model: Autoencoder, batch: Batch, out: Output) -> dict[str, Tensor]:
    """Every metric by name, each `[B]`."""
    return {name: metric(model, batch, out) for name, metric in METRICS.items()}


@register_metric("mse")
def squared_error(model: Autoencoder, batch: Batch, out: Output) -> Tensor:
    """(x - mean of p(x|z))^2, averaged over the values of a sample; over those that are not missing, 0 where all are."""
    squares = (batch.x - model.likelihood.matched(model.likelihood.mean(out.recon), batch.x)).square().flatten(1)
    return squares.nanmean(1).nan_to_num(0.0) if model.cfg.missing else squares.mean(1)
