"""Ranking items for users that were not trained on, beside popularity, truncated SVD and EASE.

The protocol of Liang et al. 2018 (arXiv 1802.05814): of each user with MIN_ITEMS items or more a random fifth is held out, the
others are given to the model, and all items but these are ranked. Which are held out follows from the seed and the user's row.
"""

import math
from collections.abc import Callable
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor

from distae.evaluation.evaluation import Evaluation
from distae.evaluation.intervals import Z
from distae.evaluation.metrics import Figure, Skip, register_metric
from distae.models import Batch
from distae.noise import Noise

HELD_OUT, MIN_ITEMS = 0.2, 5
MOST_ITEMS = 10_000
"""Of the closed-form baselines, which hold a matrix of items by items."""
RANKS: tuple[int, ...] = (8, 16, 32, 64, 128)
RIDGES: tuple[float, ...] = (20.0, 50.0, 100.0, 200.0, 500.0, 1000.0)
"""Of truncated SVD, and lambda of EASE: the best by NDCG@100 on the validation users is taken."""
N = TypeVar("N", int, float)
Scorer = Callable[[Tensor], Tensor]
"""Scores `[B, items]` of the interactions `[B, items]` that are given."""


class FoldIn(NamedTuple):
    """Interactions of users, in two parts."""

    given: Tensor
    """`[B, items]`."""
    held: Tensor
    """`[B, items]` bool."""


def fold_in(x: Tensor, noise: Noise) -> FoldIn:
    """A random fifth, rounded down, of the items of each user that has enough is held out."""
    there = x > 0
    count = there.sum(1, keepdim=True)
    draws = torch.where(there, noise.uniform(x), 2.0)
    held = draws.argsort(1).argsort(1) < torch.where(count >= MIN_ITEMS, (HELD_OUT * count).floor(), 0)
    return FoldIn(torch.where(held, 0, x), held)


def ndcg(scores: Tensor, held: Tensor, k: int) -> Tensor:
    """Sum of 1 / log2(place + 1) over the places, from 1 to `k`, of held items, divided by the largest possible: `[B]`."""
    k = min(k, scores.shape[1])
    discount = 1 / torch.arange(2, k + 2, dtype=torch.float64, device=scores.device).log2()
    hits = held.gather(1, scores.topk(k).indices).double()
    ideal = discount.cumsum(0)[held.sum(1).clamp(1, k) - 1]
    return (hits * discount).sum(1) / ideal


def recall(scores: Tensor, held: Tensor, k: int) -> Tensor:
    """Held items among the first `k`, over the smaller of `k` and their number: `[B]`."""
    hits = held.gather(1, scores.topk(min(k, scores.shape[1])).indices).sum(1)
    return hits.double() / held.sum(1).clamp(1, k)


MEASURES = {"ndcg_100": (ndcg, 100), "recall_20": (recall, 20), "recall_50": (recall, 50)}


def popularity(x: Tensor) -> Scorer:
    """The number of training users of each item."""
    counts = (x > 0).double().sum(0)
    return lambda given: counts.expand(len(given), -1)


class Linear(NamedTuple):
    """Closed-form models of the training users' interactions."""

    axes: Tensor
    """`[items, items]` float64, eigenvectors of X'X in columns, by rising eigenvalue."""
    eigenvalues: Tensor

    @classmethod
    def of(cls, x: Tensor) -> "Linear":
        """`x` `[users, items]` float64."""
        eigenvalues, axes = torch.linalg.eigh(x.T @ x)
        return cls(axes, eigenvalues)

    def svd(self, rank: int) -> Scorer:
        """Projection on the first singular vectors (PureSVD, Cremonesi et al. 2010)."""
        axes = self.axes[:, -rank:]
        return lambda given: given.double() @ axes @ axes.T

    def ease(self, ridge: float) -> Scorer:
        """Least squares of each item by the others: B = I - P / diag(P), P = (X'X + lambda I)^-1 (Steck 2019, arXiv 1905.03375)."""
        inverse = self.axes / (self.eigenvalues + ridge) @ self.axes.T
        weights = -inverse / inverse.diagonal()
        weights.fill_diagonal_(0)
        return lambda given: given.double() @ weights


def _measured(e: Evaluation, scorers: dict[str, Scorer]) -> dict[str, dict[str, float]]:
    """Means over users of every measure of every scorer, and of its square; by the name of the scorer, then `users`."""

    def terms(batch: Batch, noise: Noise) -> dict[str, Tensor]:
        given, held = fold_in(batch.x, noise)
        counts = held.any(1)
        found = {"users": counts.double()}
        for name, scorer in scorers.items():
            scores = scorer(given).masked_fill(given > 0, -math.inf)
            for measure, (of, k) in MEASURES.items():
                value = torch.where(counts, of(scores, held, k), 0.0)
                found |= {f"{name}/{measure}": value, f"{name}/{measure}/square": value**2}
        return found

    means = e.mean(terms, "fold in")
    if not means["users"]:
        raise Skip(f"no user has {MIN_ITEMS} items")
    found: dict[str, dict[str, float]] = {"": {"users": means["users"]}}
    for key, mean in means.items():
        name, _, measure = key.partition("/")
        if measure:
            found.setdefault(name, {})[measure] = mean / means["users"]
    return found


def _baselines(e: Evaluation) -> tuple[dict[str, dict[str, float]], dict[str, float]]:
    """Measures of the baselines by name, and the rank and lambda that were chosen."""
    x = e.values("train").flatten(1).double()
    scorers, chosen = {"popularity": popularity(x)}, dict[str, float]()
    if x.shape[1] <= MOST_ITEMS:
        linear = Linear.of(x)
        ranks, ridges = {k: linear.svd(k) for k in RANKS}, {k: linear.ease(k) for k in RIDGES}
        rank, ridge = _best(e, ranks), _best(e, ridges)
        scorers |= {"truncated svd": ranks[rank], "ease": ridges[ridge]}
        chosen = {"svd rank": rank, "ease lambda": ridge}
    return _measured(e, scorers), chosen


def _best(e: Evaluation, scorers: dict[N, Scorer]) -> N:
    """The one with the highest NDCG@100 on the validation users, or in the middle where there are none."""
    if not len(e.splits["val"]):
        return list(scorers)[len(scorers) // 2]
    found = _measured(e.other(split="val"), {str(k): scorer for k, scorer in scorers.items()})
    return max(scorers, key=lambda k: found[str(k)]["ndcg_100"])


def _figure(e: Evaluation, measure: str) -> Figure:
    if e.run.data.name != "sparse":
        raise Skip("the samples are not users of items (--data sparse)")
    found = e.once("recommendation", lambda: _measured(e, {"model": e.model.reconstruct}), of_model=True)
    beside, chosen = e.once("recommenders", lambda: _baselines(e))
    value, users = found["model"][measure], round(found[""]["users"] * len(e.splits[e.split]))
    spread = Z * math.sqrt(max(0.0, found["model"][f"{measure}/square"] - value**2) / users)
    protocol = {"users": users, "held out": HELD_OUT, "items at least": MIN_ITEMS, **chosen}
    baselines = {name: measures[measure] for name, measures in beside.items() if name}
    return Figure(value, baselines, (value - spread, value + spread), protocol)


@register_metric("ndcg_100", task="recommendation", better="higher")
def ndcg_100(e: Evaluation) -> Figure:
    """NDCG@100 of held-out items: `ndcg`, the mean over users."""
    return _figure(e, "ndcg_100")


@register_metric("recall_20", task="recommendation", better="higher")
def recall_20(e: Evaluation) -> Figure:
    """Recall@20 of held-out items: `recall`, the mean over users."""
    return _figure(e, "recall_20")


@register_metric("recall_50", task="recommendation", better="higher")
def recall_50(e: Evaluation) -> Figure:
    """Recall@50 of held-out items: `recall`, the mean over users."""
    return _figure(e, "recall_50")
