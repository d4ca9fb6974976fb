"""A metric of your own: --plugin examples/my_metric.py --best-metric val/max_error."""

from distae.evaluation.metrics import register_metric


@register_metric("max_error")
def max_error(model, batch, out):
    """The largest absolute error of each sample, `[B]`; `val/max_error` is its mean over all samples of all ranks."""
    return (batch.x - model.likelihood.mean(out.recon)).abs().flatten(1).amax(1)
