"""How samples of the model compare with real ones, in features that the protocol names."""

from typing import NamedTuple

import torch
from torch import Tensor

from distae.evaluation.evaluation import Evaluation
from distae.evaluation.extractors import Extractor, default, frechet, inception
from distae.evaluation.metrics import Figure, Skip, register_metric
from distae.evaluation.samplers import Fit, fit, sample
from distae.evaluation.shared import distance_blocks, nearest, need_images, once, pca_of_code
from distae.noise import Noise, Rows

NEAREST = {"precision": 3, "recall": 3, "density": 5, "coverage": 5}
"""Neighbours k that define the ball around a sample, as in the papers."""
COPY = 1 / 3
"""A sample is a copy if its nearest training sample is nearer than this share of the distance to the second."""


@once
def samples(e: Evaluation) -> Tensor:
    """As many samples of `--sampler` as the split has, `[n, *shape]` on the CPU of every rank, drawn by the ranks in turn."""
    name, density = e.settings.sampler or e.model.cfg.prior, None
    if not (e.model.cfg.generative or e.settings.sampler):
        raise Skip(f"{e.model.cfg.name} has no prior to sample from; give --sampler")
    if name != e.model.cfg.prior:
        codes = e.codes("train")
        density = fit(name, lambda: codes, Fit(e.seed))
    return sample(e.model, density, len(e.values()), e.seed)


@once
def pca_samples(e: Evaluation) -> Tensor | None:
    """Samples of a gaussian on PCA's components, as many of these as the code has values: the linear model's samples."""
    if (pca := pca_of_code(e)) is None:
        return None
    std = pca.encode(e.values("train")).std(0)
    noise = Noise(e.seed, ("pca samples",), Rows(0), torch.device("cpu"))
    z = noise.common(len(e.values()), len(std)).double() * std
    return (z @ pca.components + pca.mean).view(-1, *e.model.shape).to(e.values().dtype)


class Compared(NamedTuple):
    """Features `[n, F]` float64 of the real samples of the split, and of what is compared with them by name."""

    sampler: str
    extractor: Extractor
    real: Tensor
    others: dict[str, Tensor]
    """`model`, `pca`, and `training_samples`, which are as good as a model can get."""

    def figure(self, values: dict[str, float], **more: object) -> Figure:
        protocol = {
            "extractor": self.extractor.name,
            "real": len(self.real),
            "sampler": self.sampler,
            "drawn": "means of p(x|z)",
            **more,
        }
        return Figure(values["model"], {k: v for k, v in values.items() if k != "model"}, protocol=protocol)


def _compared(e: Evaluation, extractor: Extractor) -> Compared:
    drawn, linear, n = samples(e), pca_samples(e), len(e.values())
    sets = {"model": drawn, "pca": linear, "training_samples": e.values("train")[:n]}
    return Compared(
        e.settings.sampler or "prior", extractor, extractor(e.values()), {k: extractor(x) for k, x in sets.items() if x is not None}
    )


@once
def _features(e: Evaluation) -> Compared:
    return _compared(e, default(e))


@once
def _manifolds(e: Evaluation) -> dict[str, dict[str, float]]:
    """Precision, recall, density and coverage by name of what is compared."""
    found = _features(e)
    return e.on_main(lambda: {name: manifold(found.real, other) for name, other in found.others.items()})


def manifold(real: Tensor, made: Tensor) -> dict[str, float]:
    """Precision, recall, density and coverage of features `[m, F]` against those of real samples `[n, F]`.

    Kynkaanniemi et al. 2019, eq. 2; Naeem et al. 2020, eq. 3 and 4. The ball of a sample reaches to its k-th neighbour.
    """
    precise, near, covered, recalled = [], [], [], []
    of_real = nearest(real, real, 1 + max(NEAREST.values()))
    of_made = nearest(made, made, 1 + NEAREST["recall"])
    k = {name: min(k, of_real.shape[1] - 1) for name, k in NEAREST.items()}
    for _, d in distance_blocks(made, real):
        precise.append((d <= of_real[:, k["precision"]].square()).any(1))
        near.append((d <= of_real[:, k["density"]].square()).double().mean(1) * len(real) / k["density"])
    for rows, d in distance_blocks(real, made):
        recalled.append((d <= of_made[:, min(k["recall"], of_made.shape[1] - 1)].square()).any(1))
        covered.append(d.amin(1) <= of_real[rows, k["coverage"]].square())
    parts = {"precision": precise, "recall": recalled, "density": near, "coverage": covered}
    return {name: float(torch.cat(part).double().mean()) for name, part in parts.items()}


def _share(e: Evaluation, name: str) -> Figure:
    values = {of: found[name] for of, found in _manifolds(e).items()}
    return _features(e).figure(values, k=NEAREST[name])


@register_metric("frechet_distance", task="generation", unit="squared units of the features")
def frechet_distance(e: Evaluation) -> Figure:
    """Fréchet distance of gaussians fitted to the features of samples and of real ones (Heusel et al. 2017, eq. 6)."""
    found = _features(e)
    return found.figure(e.on_main(lambda: {name: frechet(found.real, other) for name, other in found.others.items()}))


@register_metric("fid", task="generation")
def frechet_inception_distance(e: Evaluation) -> Figure:
    """The same in the features of Inception, as FID is defined; weights by path, --inception-weights."""
    need_images(e)
    if not e.settings.inception_weights:
        raise Skip("give --inception-weights, a file of weights")
    found = _compared(e, inception(e.settings.inception_weights))
    return found.figure(e.on_main(lambda: {name: frechet(found.real, other) for name, other in found.others.items()}))


@register_metric("precision", task="generation", unit="share of samples", better="higher")
def precision(e: Evaluation) -> Figure:
    """The share of samples in the ball of some real one (Kynkaanniemi et al. 2019, eq. 2)."""
    return _share(e, "precision")


@register_metric("recall", task="generation", unit="share of real samples", better="higher")
def recall(e: Evaluation) -> Figure:
    """The share of real samples in the ball of some sample (Kynkaanniemi et al. 2019, eq. 2)."""
    return _share(e, "recall")


@register_metric("density", task="generation", better="higher")
def density(e: Evaluation) -> Figure:
    """In how many real samples' balls a sample is, over k: about 1 for real samples (Naeem et al. 2020, eq. 3)."""
    return _share(e, "density")


@register_metric("coverage", task="generation", unit="share of real samples", better="higher")
def coverage(e: Evaluation) -> Figure:
    """The share of real samples with a sample in their ball (Naeem et al. 2020, eq. 4)."""
    return _share(e, "coverage")


@register_metric("copies", task="generation", unit="share of samples")
def copies(e: Evaluation) -> Figure:
    """The share of samples whose nearest training sample is at less than 1/3 of the distance to the second: memorised ones.

    Yoon et al. 2023, sec. 3. Distances are of values; beside it the share of the real samples of the split.
    """
    sets, train = {"model": samples(e), "real_samples": e.values()}, e.values("train")

    def share(x: Tensor) -> float:
        first, second = nearest(x, train, 2).unbind(1)
        return float((first < COPY * second).double().mean())

    values = e.on_main(lambda: {name: share(x) for name, x in sets.items()})
    return Figure(values["model"], {"real_samples": values["real_samples"]}, protocol={"training_samples": len(train)})
