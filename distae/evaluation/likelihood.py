"""How probable samples are under the model: bounds of log p(x) from samples of the posterior."""

import math
from collections.abc import Iterator
from math import prod

import torch
from torch import Tensor

from distae.config.names import TRAITS
from distae.evaluation.evaluation import Evaluation
from distae.evaluation.metrics import Figure, Skip, register_metric
from distae.evaluation.shared import once
from distae.models import Batch
from distae.noise import Noise

VALUES = 1 << 21
"""Decoded values of a chunk at once, over all ranks: what bounds the memory of many importance samples."""


def in_parts(k: int, values: int) -> Iterator[int]:
    """`k` in parts whose `values` each fit in VALUES; the same ones at every world size, for they are part of the noise's key."""
    most = max(1, VALUES // values)
    for start in range(0, k, most):
        yield min(most, k - start)


@once
def _bounds(e: Evaluation) -> dict[str, float]:
    """Means over all samples in nats: `elbo`, and where the model has importance weights `iwae_bound`."""
    if not e.model.has_log_bound:
        raise Skip(f"{e.model.cfg.name} has no bound of log p(x)")
    k = e.settings.importance_samples

    def terms(batch: Batch, noise: Noise) -> dict[str, Tensor]:
        total = highest = None
        for part in in_parts(k, e.chunk * prod(e.model.shape)):
            weights = e.model.log_weights(batch, part, noise)
            if weights is None:
                return {"elbo": e.model.log_bound(batch, noise)}
            mean, best = weights.double().sum(1) / k, torch.logsumexp(weights.double(), 1)
            total = mean if total is None else total + mean
            highest = best if highest is None else torch.logaddexp(highest, best)
        assert total is not None
        assert highest is not None
        return {"elbo": total, "iwae_bound": highest - math.log(k)}

    return e.mean(terms, "likelihood")


def _protocol(e: Evaluation) -> dict[str, object]:
    """What x is: only probabilities compare with those of other models of the same values."""
    name, binarize, binary = e.model.cfg.likelihood, e.run.data.binarize, "bernoulli"
    support = TRAITS[name].support
    if name == binary:
        of = "probability of pixels that are 0 or 1" if binarize != "none" else "grey values taken as probabilities: no likelihood"
    else:
        of = "probability" if support in ("counts", "onehot") or name == "logistic_mixture" else "density of the model's values"
    return {"likelihood": name, "binarize": binarize, "is": of}


@register_metric("elbo", task="likelihood", unit="nats per sample", better="higher")
def elbo(e: Evaluation) -> Figure:
    """E[log p(x, z) - log q(z|x)], a lower bound of log p(x) (Kingma & Welling 2014, eq. 2), the mean of K posterior samples."""
    found = _bounds(e)
    samples = e.settings.importance_samples if "iwae_bound" in found else 1
    return Figure(found["elbo"], protocol={**_protocol(e), "posterior_samples": samples})


@register_metric("iwae_bound", task="likelihood", unit="nats per sample", better="higher")
def importance_weighted(e: Evaluation) -> Figure:
    """log 1/K sum_k p(x, z_k) / q(z_k|x), a tighter bound the larger K is (Burda et al. 2016, eq. 8)."""
    found = _bounds(e)
    if "iwae_bound" not in found:
        raise Skip(f"{e.model.cfg.name} has no importance weights")
    return Figure(found["iwae_bound"], protocol={**_protocol(e), "posterior_samples": e.settings.importance_samples})


@register_metric("bits_per_dim", task="likelihood", unit="bits per value")
def bits_per_dim(e: Evaluation) -> Figure:
    """-log p(x) / (D ln 2) by the tightest bound; of densities, that of the stored values (Theis et al. 2016, sec. 3.1)."""
    found, protocol = _bounds(e), _protocol(e)
    nats = -found.get("iwae_bound", found["elbo"]) / prod(e.model.shape)
    if str(protocol["is"]).startswith("density"):
        nats += math.log(e.transform.scale)
        protocol["is"] = "density of the stored values, not dequantized"
    return Figure(nats / math.log(2), protocol={**protocol, "posterior_samples": e.settings.importance_samples})
