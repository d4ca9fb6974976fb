"""The error beside that of PCA in one number, which training can follow."""

from math import prod

from distae.evaluation.anomaly import errors_of
from distae.evaluation.evaluation import Evaluation
from distae.evaluation.metrics import Figure, Skip, register_metric


@register_metric("pca_relative_error", task="reconstruction", better="lower")
def pca_relative_error(e: Evaluation) -> Figure:
    """Squared error over that of PCA of as many dimensions, on the same samples: below 1 is better than any linear model."""
    dim = e.model.code_size
    if dim >= prod(e.model.shape):
        raise Skip(f"PCA of {dim} dimensions has no error: a sample has {prod(e.model.shape)} values")
    mine = float(errors_of(e, e.reconstructions()).mean())
    pca = e.once("error of PCA", lambda: float(errors_of(e, e.pca(dim).reconstruct(e.values())).mean()))
    return Figure(mine / pca, {"pca": 1.0}, None, {"dimensions": dim, "samples": len(e.values())})
