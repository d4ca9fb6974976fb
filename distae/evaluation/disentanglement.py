"""Whether each code dimension holds one known factor, beside an untrained encoder of the same architecture.

Codes are posterior means. As in Locatello et al. 2019 (arXiv 1811.12359), factors count as classes, and mutual information is that
of codes in 20 bins of equal width.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from distae.evaluation.evaluation import Evaluation
from distae.evaluation.metrics import Figure, Skip, register_metric
from distae.models import build
from distae.noise import Noise

BINS = 20
MOST_VALUES = 256
"""Of a factor: what has more is a name or a measurement."""
FITTED, TREES, SVM_C = 2000, 20, 0.01
"""Training samples that classifiers are fitted on at most; trees of a forest; penalty of a support vector machine."""
VOTES, BATCH, ACTIVE = 1200, 64, 0.05
"""Of the FactorVAE score: votes, a third of them to test; samples of a vote; least spread of a dimension, over the largest."""
Array = NDArray[Any]


class Known(NamedTuple):
    """Codes and the factors that their samples were made from."""

    codes: Array
    """`[n, D]`."""
    factors: Array
    """`[n, K]`, numbers of values."""


def mig(known: Known) -> float:
    """Mutual information gap, the mean over factors of (largest - second largest mutual information with a dimension) / entropy of
    the factor (Chen et al. 2018, arXiv 1802.04942)."""
    information = np.sort(mutual_information(known), 0)
    second = information[-2] if len(information) > 1 else 0
    return float(((information[-1] - second) / entropies(known.factors)).mean())


def modularity(known: Known) -> float:
    """Mean over dimensions of 1 - (sum of squared information on all factors but the largest) / (largest squared * (K - 1))
    (Ridgeway & Mozer 2018, arXiv 1802.05312); dimensions without information aside."""
    squares = mutual_information(known) ** 2
    squares = squares[squares.max(1) > 0]
    if not len(squares):
        return 0.0
    others = (squares.sum(1) - squares.max(1)) / (squares.max(1) * (squares.shape[1] - 1))
    return float((1 - others).mean())


def mutual_information(known: Known) -> Array:
    """`[D, K]` in nats."""
    from sklearn.metrics import mutual_info_score

    binned = [np.digitize(column, np.histogram(column, BINS)[1][:-1]) for column in known.codes.T]
    return np.array([[mutual_info_score(code, factor) for factor in known.factors.T] for code in binned])


def entropies(factors: Array) -> Array:
    """`[K]` in nats."""
    shares = [np.unique(column, return_counts=True)[1] / len(column) for column in factors.T]
    return np.array([-(p * np.log(p)).sum() for p in shares])


def dci(train: Known, test: Known) -> dict[str, float]:
    """Disentanglement, completeness and informativeness by the importances of a random forest's inputs, one forest for each factor
    (Eastwood & Williams 2018)."""
    from sklearn.ensemble import RandomForestClassifier

    importances, accuracies = [], []
    for wanted, tested in zip(train.factors.T, test.factors.T, strict=True):
        forest = RandomForestClassifier(TREES, max_features=None, min_samples_leaf=2, random_state=0).fit(train.codes, wanted)
        importances.append(forest.feature_importances_)
        accuracies.append(float((forest.predict(test.codes) == tested).mean()))
    return {**dci_of(np.array(importances).T), "informativeness": float(np.mean(accuracies))}


def dci_of(importances: Array) -> dict[str, float]:
    """Of importances `[D, K]`: 1 - entropy of each dimension's over factors, in units of log K, weighted by the dimension's share
    of all; and 1 - entropy of each factor's over dimensions, in units of log D, weighted alike."""
    return {"disentanglement": _one_sided(importances), "completeness": _one_sided(importances.T)}


def _one_sided(importances: Array) -> float:
    total, width = importances.sum(1, keepdims=True), importances.shape[1]
    if not total.sum() or width < 2:
        return 0.0
    p = np.divide(importances, total, out=np.zeros_like(importances), where=total > 0)
    entropy = -(p * np.log(p, out=np.zeros_like(p), where=p > 0)).sum(1) / np.log(width)
    return float(((1 - entropy) * total[:, 0] / total.sum()).sum())


def sap(train: Known, test: Known) -> float:
    """Separated attribute predictability: the mean over factors of the gap between the two dimensions that alone predict it best,
    by the accuracy of a linear SVM (Kumar et al. 2018, arXiv 1711.00848)."""
    from sklearn.svm import LinearSVC

    def accuracy(dimension: int, factor: int) -> float:
        x, y = train.codes[:, [dimension]], train.factors[:, factor]
        svm = LinearSVC(C=SVM_C, class_weight="balanced", dual=False).fit(x, y)
        return float((svm.predict(test.codes[:, [dimension]]) == test.factors[:, factor]).mean())

    dimensions, factors = train.codes.shape[1], train.factors.shape[1]
    found = np.sort([[accuracy(d, k) if np.ptp(train.codes[:, d]) else 0.0 for k in range(factors)] for d in range(dimensions)], 0)
    return float((found[-1] - (found[-2] if dimensions > 1 else 0)).mean())


def factor_vae_score(known: Known, seed: int) -> float:
    """Accuracy of telling which factor was held fixed from the dimension that varies least, relative to its overall variance, by
    majority vote (Kim & Mnih 2018, arXiv 1802.05983)."""
    draws = Noise.seeded(seed, VOTES)
    variance = known.codes.var(0, ddof=1)
    active = np.flatnonzero(np.sqrt(variance) >= ACTIVE * np.sqrt(variance.max()))
    if not variance.max() > 0:
        return 0.0
    votes = np.array([_vote(known, active, variance, draws) for _ in range(VOTES)])
    table = np.zeros((known.codes.shape[1], known.factors.shape[1]), dtype=np.int64)
    cut = VOTES * 2 // 3
    np.add.at(table, tuple(votes[:cut].T), 1)
    return float((table.argmax(1)[votes[cut:, 0]] == votes[cut:, 1]).mean())


def _vote(known: Known, active: Array, variance: Array, draws: Noise) -> tuple[int, int]:
    """The dimension that varies least, and the factor that was held at the value of a sample drawn at random."""
    factor = int(draws.integers(1, known.factors.shape[1]))
    column = known.factors[:, factor]
    several = np.flatnonzero(np.bincount(column)[column] > 1)  # one sample alone does not vary in any dimension
    drawn = several[int(draws.integers(1, len(several)))] if len(several) else 0
    alike = np.flatnonzero(column == column[drawn])
    rows = alike[draws.integers(BATCH, len(alike)).numpy()]
    spread = known.codes[rows][:, active].var(0, ddof=1) / variance[active]
    return int(active[spread.argmin()]), factor


def _beside_random(e: Evaluation, name: str, score: Callable[[Known, Known], Any]) -> tuple[Any, Any]:
    """A score of the codes, and of those of an encoder with its initial weights."""
    trained, untrained = ((_known(e, codes, "train", FITTED), _known(e, codes, e.split)) for codes in (_codes, _random_codes))
    value = e.once(name, lambda: e.on_main(lambda: score(*trained)), of_model=True)
    return value, e.once(name, lambda: e.on_main(lambda: score(*untrained)))


def _figure(e: Evaluation, name: str, score: Callable[[Known, Known], Any], part: str | None = None, **protocol: Any) -> Figure:
    value, random = _beside_random(e, name, score)
    if part:
        value, random = value[part], random[part]
    factors = [name for name, _ in _factors(e)]
    return Figure(value, {"random encoder": random}, None, {"factors": factors, "fitted on": FITTED, **protocol})


def _known(e: Evaluation, codes: Callable[[Evaluation, str], Array], split: str, most: int | None = None) -> Known:
    z = codes(e, split)[:most]
    rows = e.splits[split].rows_at(torch.arange(len(z))).numpy()
    return Known(z, np.stack([column[rows] for _, column in _factors(e)], 1))


def _codes(e: Evaluation, split: str) -> Array:
    return e.codes(split).z.numpy()


def _random_codes(e: Evaluation, split: str) -> Array:
    return e.once("untrained", lambda: _untrained(e)).codes(split).z.numpy()


def _untrained(e: Evaluation) -> Evaluation:
    first = next(e.model.parameters())
    model = build(e.model.cfg, e.model.net, e.model.shape, e.seed, device=first.device, dtype=first.dtype)
    return e.other(model=model)


def _factors(e: Evaluation) -> list[tuple[str, Array]]:
    """Columns of whole numbers that the data keep beside the samples, with 2 to MOST_VALUES values: numbers of these `[N]`, from 0.

    Raises Skip where there are no two.
    """
    if e.splits[e.split].bad:
        raise Skip("samples that cannot be read are skipped (--data.on-error skip), so the factors of each sample are unknown")
    columns = {name: np.asarray(column) for name, column in e.splits[e.split].source.columns.items()}
    whole = [(name, column) for name, column in columns.items() if column.dtype.kind in "iub"]
    numbers = [(name, np.unique(column, return_inverse=True)[1]) for name, column in whole]
    found = [(name, column) for name, column in numbers if 2 <= column.max() + 1 <= MOST_VALUES]
    if len(found) < 2:
        raise Skip("the data has no known factors (--data shapes has)")
    return found


@register_metric("mig", task="disentanglement", better="higher")
def mig_figure(e: Evaluation) -> Figure:
    """`mig`."""
    return _figure(e, "mig", lambda _, test: mig(test), bins=BINS)


@register_metric("modularity", task="disentanglement", better="higher")
def modularity_figure(e: Evaluation) -> Figure:
    """`modularity`."""
    return _figure(e, "modularity", lambda _, test: modularity(test), bins=BINS)


@register_metric("sap", task="disentanglement", better="higher")
def sap_figure(e: Evaluation) -> Figure:
    """`sap`."""
    return _figure(e, "sap", sap, classifier="linear SVM", C=SVM_C)


@register_metric("factor_vae_score", task="disentanglement", unit="share of votes", better="higher")
def factor_vae_figure(e: Evaluation) -> Figure:
    """`factor_vae_score`."""
    return _figure(e, "factor_vae_score", lambda _, test: factor_vae_score(test, e.seed), votes=VOTES, batch=BATCH)


@register_metric("dci_disentanglement", task="disentanglement", better="higher")
def dci_disentanglement(e: Evaluation) -> Figure:
    """`dci`: whether a dimension is of use for one factor."""
    return _figure(e, "dci", dci, "disentanglement", classifier="random forest", trees=TREES)


@register_metric("dci_completeness", task="disentanglement", better="higher")
def dci_completeness(e: Evaluation) -> Figure:
    """`dci`: whether one dimension is of use for a factor."""
    return _figure(e, "dci", dci, "completeness", classifier="random forest", trees=TREES)


@register_metric("dci_informativeness", task="disentanglement", unit="share of samples", better="higher")
def dci_informativeness(e: Evaluation) -> Figure:
    """`dci`: how often the factors are predicted."""
    return _figure(e, "dci", dci, "informativeness", classifier="random forest", trees=TREES)
