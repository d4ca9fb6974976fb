"""What a network makes of reconstructions in place of the activations that they are of."""

from collections.abc import Callable

import torch
from torch import Tensor

from distae.config.plugin import function
from distae.errors import UserError
from distae.evaluation.evaluation import Evaluation
from distae.evaluation.metrics import Figure, Skip, register_metric


@register_metric("loss_recovered", task="downstream", unit="share of loss", better="higher")
def loss_recovered(e: Evaluation) -> dict[str, Figure]:
    """(loss of the mean sample - loss of reconstructions) / (loss of the mean sample - loss of samples), and these three losses.

    The loss is a function of the user's, --loss-function; means are over the first `limit` samples.
    """
    if e.settings.loss_function is None:
        raise Skip("--loss-function FILE.py:FUNCTION gives the loss of a network")
    loss, values, split = function(e.settings.loss_function, "--loss-function"), e.targets(), e.splits[e.split]
    if split.bad:
        raise Skip("samples that cannot be read are skipped (--data.on-error skip), and their rows are not known apart")
    samples = {"samples": values, "reconstructions": e.reconstructions(), "mean": values.mean(0).expand_as(values)}
    rows = split.rows_at(torch.arange(len(values)))
    found = e.on_main(lambda: {name: _mean(loss, e.transform.invert(x), rows, e.chunk) for name, x in samples.items()})
    recovered = (found["mean"] - found["reconstructions"]) / (found["mean"] - found["samples"])
    protocol = {"function": e.settings.loss_function.rpartition(":")[2], "samples": len(values)}
    figures = {"": recovered} | {f"loss_of_{name}": value for name, value in found.items()}
    return {name: Figure(value, protocol=protocol) for name, value in figures.items()}


@torch.no_grad()
def _mean(loss: Callable[[Tensor, Tensor], Tensor], x: Tensor, rows: Tensor, chunk: int) -> float:
    """Mean loss of all samples. Raises UserError where the function does not give one of each."""
    total = 0.0
    for start in range(0, len(x), chunk):
        part = x[start : start + chunk]
        found = loss(part, rows[start : start + chunk])
        if not isinstance(found, Tensor) or found.shape != (len(part),):
            raise UserError(f"--loss-function gives {getattr(found, 'shape', type(found))}; expected one loss of each sample, [N]")
        total += float(found.double().sum())
    return total / len(x)
