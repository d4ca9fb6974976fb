"""How sparse codes are, what they explain, and whether their latents are the features that the samples were made of.

Values are those that the model sees, over the first `limit` samples of the split, the same on any number of ranks.
"""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import normalize

from distae.data.source import KnownFeatures
from distae.evaluation.evaluation import Evaluation
from distae.evaluation.metrics import Figure, Skip, register_metric
from distae.evaluation.shared import flat, once

BLOCK = 1024
"""Latents that are decoded at once."""


def are_sparse(z: Tensor) -> bool:
    """Whether more than half of the values of codes are 0."""
    return bool((z == 0).double().mean() > 0.5)


def _codes(e: Evaluation) -> Tensor:
    """`[n, L]` float64. Raises Skip where no more than half of the values are 0."""
    z = e.codes().z
    if not are_sparse(z):
        raise Skip("codes are not sparse: no more than half of their values are 0")
    return z


def _figure(e: Evaluation, value: float | Tensor, **protocol: int) -> Figure:
    return Figure(float(value), protocol={"latents": _codes(e).shape[1], "samples": len(_codes(e)), **protocol})


@register_metric("l0", task="sparse_codes", unit="latents", better="lower")
def l0(e: Evaluation) -> Figure:
    """Mean number of values of a code that are not 0."""
    return _figure(e, (_codes(e) != 0).double().sum(1).mean())


@register_metric("dead_share", task="sparse_codes", unit="share of latents", better="lower")
def dead_share(e: Evaluation) -> Figure:
    """The share of latents that are 0 in every sample: it falls as more samples are looked at."""
    return _figure(e, (_codes(e) == 0).all(0).double().mean())


@once
def densities(e: Evaluation) -> Tensor:
    """The share of samples in which each latent is not 0, `[L]` float64."""
    return (_codes(e) != 0).double().mean(0)


DECADES = ("0.00001", "0.0001", "0.001", "0.01", "0.1")
"""Where the bars of the histogram of densities begin; each ends where the next begins, the last at 1."""


@register_metric("latent_density", task="sparse_codes", unit="share of latents", better=None)
def latent_density(e: Evaluation) -> dict[str, Figure]:
    """The histogram of `densities`: the share of latents that are active in that share of samples, or up to ten times it."""
    found, edges = densities(e), [*map(float, DECADES), torch.inf]
    return {
        name: _figure(e, ((found >= low) & (found < high)).double().mean())
        for name, low, high in zip(DECADES, edges, edges[1:], strict=False)
    }


@register_metric("max_cosine", task="sparse_codes", unit="cosine", better="lower")
def max_cosine(e: Evaluation) -> Figure:
    """Mean over latents of the largest cosine of the decoder's vector with that of another latent: 1 if each has a double."""
    vectors, total = normalize(decoder_vectors(e), dim=1), 0.0
    for start in range(0, len(vectors), BLOCK):
        cosines = vectors[start : start + BLOCK] @ vectors.T
        cosines.diagonal(start).fill_(-1.0)
        total += float(cosines.amax(1).sum())
    return _figure(e, total / len(vectors))


@once
def unexplained(e: Evaluation) -> float:
    """sum of (x - reconstruction)^2 / sum of (x - mean of x)^2, both sums over all samples and all values, one mean per value.

    Not the mean over samples of each sample's own quotient, which has another optimum and is often taken for it.
    """
    _codes(e)
    x = flat(e.targets())
    return float((x - flat(e.reconstructions())).square().sum() / (x - x.mean(0)).square().sum())


@register_metric("fvu", task="sparse_codes", unit="share of variance", better="lower")
def fvu(e: Evaluation) -> Figure:
    """`unexplained`."""
    return _figure(e, unexplained(e))


@register_metric("explained_variance", task="sparse_codes", unit="share of variance", better="higher")
def explained_variance(e: Evaluation) -> Figure:
    """1 - `unexplained`."""
    return _figure(e, 1 - unexplained(e))


@register_metric("shrinkage", task="sparse_codes", better=None)
def shrinkage(e: Evaluation) -> Figure:
    """sum of y^2 / sum of x y, of reconstructions y and samples x, both less the mean of x: below 1, y is too small by that factor
    (Rajamanoharan et al. 2024, arXiv 2404.16014, eq. 10, which does not subtract the mean)."""
    _codes(e)
    x, y = flat(e.targets()), flat(e.reconstructions())
    mean = x.mean(0)
    return _figure(e, (y - mean).square().sum() / ((x - mean) * (y - mean)).sum())


class Matched(NamedTuple):
    """Pairs of latents and features."""

    similarity: Tensor
    """`[P]`: absolute cosine of the decoder's vector and the feature's."""
    latents: Tensor
    features: Tensor


def _known(e: Evaluation) -> KnownFeatures:
    features = e.splits[e.split].source.features
    if features is None:
        raise Skip("the features that samples are made of are not known (--data synthetic_features has them)")
    return features


@once
def matched(e: Evaluation) -> Matched:
    """Pairs of one latent and one feature each, as many as there are of the fewer, whose similarities have the largest sum."""
    from scipy.optimize import linear_sum_assignment

    _codes(e)
    truth, found = _known(e).vectors.double(), decoder_vectors(e)
    cosines = normalize(found, dim=1) @ normalize(truth, dim=1).T
    rows, columns = (torch.from_numpy(i) for i in e.on_main(lambda: linear_sum_assignment(-cosines.abs().numpy())))
    return Matched(cosines.abs()[rows, columns], rows, columns)


@torch.no_grad()
def decoder_vectors(e: Evaluation) -> Tensor:
    """What one unit of each latent adds to the reconstruction, `[L, values]` float64 on the CPU; exact for linear decoders."""
    first, latents = next(e.model.parameters()), _codes(e).shape[1]
    nothing = e.model.decode(first.new_zeros(1, latents)).flatten(1)
    found = []
    for start in range(0, latents, BLOCK):
        n = min(BLOCK, latents - start)
        units = first.new_zeros(n, latents).index_put((torch.arange(n), torch.arange(start, start + n)), first.new_ones(n))
        found.append((e.model.decode(units).flatten(1) - nothing).double().cpu())
    return torch.cat(found)


@register_metric("uniqueness", task="sparse_codes", unit="share of latents", better="higher")
def uniqueness(e: Evaluation) -> Figure:
    """Number of features that are the most similar one, by absolute cosine, of some latent, over that of latents (Chanin and
    Garriga-Alonso 2026, arXiv 2602.14687)."""
    found, truth = decoder_vectors(e), _known(e).vectors.double()
    nearest = (normalize(found, dim=1) @ normalize(truth, dim=1).T).abs().argmax(1)
    return _figure(e, len(set(nearest.tolist())) / len(nearest), features=len(truth))


@register_metric("mcc", task="sparse_codes", unit="cosine", better="higher")
def mcc(e: Evaluation) -> Figure:
    """Mean correlation coefficient: the mean absolute cosine of `matched` pairs (O'Neill et al. 2024, arXiv 2411.13117)."""
    return _figure(e, matched(e).similarity.mean(), features=len(_known(e).vectors))


@register_metric("f1", task="sparse_codes", better="higher")
def f1(e: Evaluation) -> Figure:
    """Mean over `matched` pairs of the F1 of "the latent is active" as a classifier of "the feature is in the sample".

    Pairs whose feature is in no sample are left out.
    """
    pairs, z, split = matched(e), _codes(e), e.splits[e.split]
    if split.bad:
        raise Skip("samples that cannot be read are skipped (--data.on-error skip), so the features of each sample are unknown")
    there = (_known(e).activations(split.rows_at(torch.arange(len(z)))) != 0)[:, pairs.features]
    active = (z != 0)[:, pairs.latents]
    both, either = (active & there).sum(0).double(), (active.sum(0) + there.sum(0)).double()
    some = there.any(0)
    return _figure(e, (2 * both[some] / either[some]).mean(), features=len(_known(e).vectors))
