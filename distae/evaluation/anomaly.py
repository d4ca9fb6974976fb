"""Anomalies by what a model cannot reconstruct, beside PCA of as many dimensions and an isolation forest."""

from collections.abc import Callable
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor

from distae.evaluation.evaluation import Evaluation
from distae.evaluation.intervals import bootstrap
from distae.evaluation.metrics import Figure, Skip, register_metric
from distae.evaluation.scores import squared
from distae.evaluation.shared import flat, pca_of_code

RESAMPLES = 200
Array = NDArray[Any]


@register_metric("auroc", task="anomaly", better="higher")
def auroc(e: Evaluation) -> Figure:
    """Chance that an anomaly has a higher reconstruction error than a normal sample (Hanley & McNeil 1982); 0.5 by chance."""
    from sklearn.metrics import roc_auc_score

    return _figure(e, roc_auc_score)


@register_metric("average_precision", task="anomaly", better="higher")
def average_precision(e: Evaluation) -> Figure:
    """Precision of the samples above a threshold of the error, averaged over recall; the share of anomalies by chance."""
    from sklearn.metrics import average_precision_score

    return _figure(e, average_precision_score)


def anomalies(train: Tensor | None, labels: Tensor) -> tuple[Tensor, str]:
    """Which samples are anomalies `[n]` bool, and by what rule: classes that no training sample has, else the label 1 of 0 and 1.

    The first covers one class against the others, and one class held out (--data.train-classes). Raises Skip where neither applies.
    """
    known = torch.empty(0, dtype=torch.int64) if train is None else torch.unique(train)
    new = ~torch.isin(labels, known)
    if len(known) and new.any() and not new.all():
        return new, f"classes that no training sample has: normal are {', '.join(map(str, known.tolist()[:20]))}"
    if torch.unique(labels).tolist() == [0, 1]:
        return labels == 1, "label 1"
    raise Skip("labels do not say what an anomaly is: neither 0 and 1, nor classes that were not trained on (--data.train-classes)")


def errors_of(e: Evaluation, reconstructions: Tensor) -> Tensor:
    """`squared` of the samples `[n]`, in float64."""
    return squared(e.targets().double(), reconstructions.double())


def _figure(e: Evaluation, score: Callable[[Array, Array], float]) -> Figure:
    labels = e.labels()
    bad, rule = anomalies(_training_labels(e), labels)
    truth, found = bad.numpy(), errors_of(e, e.reconstructions()).numpy()
    beside = e.once("anomaly scores", lambda: _others(e))
    interval = e.on_main(lambda: bootstrap(lambda rows: _resampled(score, truth[rows], found[rows]), len(truth), e.seed, RESAMPLES))
    protocol = {
        "anomalies": rule,
        "score": "reconstruction error",
        "number": int(truth.sum()),
        "samples": len(truth),
    }
    return Figure(float(score(truth, found)), {k: float(score(truth, v)) for k, v in beside.items()}, interval, protocol)


def _training_labels(e: Evaluation) -> Tensor | None:
    try:
        return e.labels("train")
    except Skip:
        return None


def _resampled(score: Callable[[Array, Array], float], truth: Array, found: Array) -> float:
    """A resample without anomalies, or of nothing else, tells nothing."""
    return float(score(truth, found)) if truth.any() and not truth.all() else float("nan")


def _others(e: Evaluation) -> dict[str, Array]:
    """Scores `[n]` of methods that are fitted on the training samples without the model."""
    from sklearn.ensemble import IsolationForest

    train, mine = (flat(e.values(name)).numpy() for name in ("train", e.split))
    forest = e.on_main(lambda: -IsolationForest(random_state=e.seed).fit(train).score_samples(mine))
    pca = pca_of_code(e)
    if pca is None or len(pca.components) == train.shape[1]:  # all components leave only rounding
        return {"isolation forest": forest}
    return {"pca": errors_of(e, pca.reconstruct(e.values())).numpy(), "isolation forest": forest}
