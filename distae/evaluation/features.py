"""What codes are worth as features, beside raw values and PCA of as many dimensions."""

import warnings
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from distae.evaluation.evaluation import Evaluation
from distae.evaluation.intervals import bootstrap, wilson
from distae.evaluation.metrics import Figure, Skip, register_metric
from distae.evaluation.shared import flat, pca_of_code

NEIGHBOURS = 5
RESTARTS, RESAMPLES = 5, 200
"""Of k-means, and of the bootstrap of its scores."""
Array = NDArray[Any]
Features = tuple[Array, Array]
"""Of the training split and of the one that the metric is of: `[n, D]` float64 each."""


@register_metric("knn_accuracy", task="features", unit="share of samples", better="higher")
def knn_accuracy(e: Evaluation) -> Figure:
    """Share of samples with the class of most of their `k` nearest training samples, by the Euclidean distance of codes.

    Here and below, codes are those of the model's `features`: of masked_ae the mean of all patches, or the class token.
    """
    return _accuracy(e, "kNN", nearest, {"k": NEIGHBOURS, "distance": "euclidean"})


@register_metric("linear_probe", task="features", unit="share of samples", better="higher")
def linear_probe(e: Evaluation) -> Figure:
    """Accuracy of a logistic regression on codes, standardised, that is fitted on training samples (Alain & Bengio 2016)."""
    return _accuracy(e, "linear probe", probed, {"classifier": "logistic regression", "C": 1.0})


@register_metric("cluster_accuracy", task="features", unit="share of samples", better="higher")
def cluster_accuracy(e: Evaluation) -> Figure:
    """Accuracy of k-means with as many clusters as classes, each named after another class so that most are right (Kuhn 1955)."""
    return _clustering(e, matched_accuracy)


@register_metric("cluster_nmi", task="features", better="higher")
def cluster_nmi(e: Evaluation) -> Figure:
    """Mutual information of the clusters of k-means and the classes over the mean of their entropies, from 0 to 1."""
    from sklearn.metrics import normalized_mutual_info_score

    return _clustering(e, normalized_mutual_info_score)


@register_metric("cluster_ari", task="features", better="higher")
def cluster_ari(e: Evaluation) -> Figure:
    """Adjusted Rand index of the clusters of k-means and the classes: 1 if alike, 0 by chance (Hubert & Arabie 1985)."""
    from sklearn.metrics import adjusted_rand_score

    return _clustering(e, adjusted_rand_score)


def nearest(features: Features, train_labels: Array) -> Array:
    """Classes `[n]` by k nearest neighbours; of classes with as many votes the first."""
    from sklearn.neighbors import KNeighborsClassifier

    k = min(NEIGHBOURS, len(train_labels))
    return KNeighborsClassifier(k, algorithm="brute").fit(features[0], train_labels).predict(features[1])  # type: ignore[no-any-return]


def probed(features: Features, train_labels: Array) -> Array:
    """Classes `[n]` by logistic regression."""
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # of raw values, whose accuracy has settled long before
        model = make_pipeline(StandardScaler(), LogisticRegression(tol=1e-3, max_iter=200)).fit(features[0], train_labels)
    return model.predict(features[1])  # type: ignore[no-any-return]


def matched_accuracy(labels: Array, clusters: Array) -> float:
    """Share of samples whose class is the one that its cluster is matched with, one to one, so that the share is largest."""
    from scipy.optimize import linear_sum_assignment
    from sklearn.metrics.cluster import contingency_matrix

    counts = contingency_matrix(labels, clusters)
    return float(counts[linear_sum_assignment(-counts)].sum() / len(labels))


def _accuracy(e: Evaluation, name: str, classify: Callable[[Features, Array], Array], protocol: Mapping[str, Any]) -> Figure:
    train, labels = e.labels("train").numpy(), e.labels().numpy()
    if len(np.unique(train)) < 2:
        raise Skip("the training samples are of one class")

    def share(features: Features) -> float:
        return float(np.mean(classify(features, train) == labels))

    codes, others = _codes(e), _others(e)
    value = e.on_main(lambda: share(codes))
    baselines = e.once(name, lambda: e.on_main(lambda: {k: share(features) for k, features in others.items()}))
    return Figure(
        value, baselines, wilson(value, len(labels)), {**protocol, "training samples": len(train), "samples": len(labels)}
    )


def _clustering(e: Evaluation, score: Callable[[Array, Array], float]) -> Figure:
    labels = e.labels().numpy()
    classes = len(np.unique(labels))
    if classes < 2:
        raise Skip("the samples are of one class")
    codes, others = _codes(e)[1], _others(e)

    def clusters(x: Array) -> Array:
        from sklearn.cluster import KMeans

        return KMeans(classes, n_init=RESTARTS, random_state=e.seed).fit_predict(x)  # type: ignore[no-any-return]

    found = e.once("k-means of codes", lambda: e.on_main(lambda: clusters(codes)), of_model=True)
    beside = e.once("k-means", lambda: e.on_main(lambda: {k: clusters(features[1]) for k, features in others.items()}))
    interval = e.on_main(lambda: bootstrap(lambda rows: score(labels[rows], found[rows]), len(labels), e.seed, RESAMPLES))
    protocol = {"clusters": classes, "restarts": RESTARTS, "samples": len(labels)}
    return Figure(float(score(labels, found)), {k: float(score(labels, v)) for k, v in beside.items()}, interval, protocol)


def _codes(e: Evaluation) -> Features:
    return e.features("train").numpy(), e.features().numpy()


def _others(e: Evaluation) -> dict[str, Features]:
    """Features that need no training: the values themselves, missing ones as 0, and PCA of as many dimensions as the codes have."""
    train, mine = e.values("train"), e.values()
    found = {"raw values": (flat(train).numpy(), flat(mine).numpy())}
    pca = pca_of_code(e, e.features().shape[1])
    return found | ({"pca": (pca.encode(train).numpy(), pca.encode(mine).numpy())} if pca else {})
