"""Ways through the space of codes: from one sample to another, and along each dimension."""

from typing import NamedTuple

import torch
from torch import Tensor

from distae.evaluation.samplers import labels_of
from distae.models import Autoencoder, Codes

MOST_DIMENSIONS = 16
AT_ONCE = 64
"""Codes that are decoded at once."""
REACH = 3.0
"""Standard deviations to either side."""


def is_spherical(model: Autoencoder) -> bool:
    """Whether codes are of a standard normal prior, or on a sphere: a straight line would leave where the prior has its mass."""
    return model.cfg.generative and model.cfg.prior == "normal" and model.num_codes is None


def between(a: Tensor, b: Tensor, share: Tensor, spherical: bool) -> Tensor:
    """Codes `[T, D]` from `a` to `b` `[D]` each, at `share` `[T]` from 0 to 1.

    Spherical: sin((1-t) w) / sin(w) a + sin(t w) / sin(w) b, w the angle between them (White 2016, sec. 2.1); else linear.
    """
    t = share[:, None].to(a)
    cosine = torch.cosine_similarity(a, b, 0).clamp(-1, 1)
    angle = torch.arccos(cosine)
    if not spherical or float(angle.sin()) < 1e-6:
        return (1 - t) * a + t * b
    return (torch.sin((1 - t) * angle) * a + torch.sin(t * angle) * b) / angle.sin()


class Dimensions(NamedTuple):
    """Dimensions of codes, the one that says most first."""

    order: Tensor
    """`[K]` int64."""
    importance: Tensor
    """`[K]`: mean KL from the prior in nats, or the variance of codes where the KL is not a sum over dimensions."""
    is_kl: bool
    mean: Tensor
    """`[D]`: of all dimensions."""
    std: Tensor
    """`[D]`."""

    def walk(self, steps: Tensor) -> Tensor:
        """`[K, T, D]`: the mean code, one dimension of it at mean + step * std for each of `steps` `[T]`."""
        codes = self.mean.repeat(len(self.order), len(steps), 1)
        for row, i in enumerate(self.order.tolist()):
            codes[row, :, i] += steps.to(codes) * self.std[i]
        return codes


def dimensions(model: Autoencoder, codes: Codes, sampled: Codes, most: int = MOST_DIMENSIONS) -> Dimensions:
    """Of `codes` of some samples; `sampled.z` are samples of their posteriors, of which a dimension that the model does not use has
    the prior's standard deviation."""
    mean, std = sampled.z.mean(0), sampled.z.std(0, correction=0)
    kl = model.kl_of_dimensions(codes)
    importance = std.square() if kl is None else kl.mean(0)
    order = importance.argsort(descending=True, stable=True)[:most]
    return Dimensions(order, importance[order], kl is not None, mean, std)


@torch.no_grad()
def decoded(model: Autoencoder, z: Tensor, label: int | None = None) -> Tensor:
    """The model's values `[N, *shape]` of codes `[N, D]`, on the CPU; variants conditioned on labels take `label`, or 0."""
    first = next(model.parameters())
    parts = []
    for part in torch.split(z.to(first), AT_ONCE):
        labels = labels_of(model.cfg, len(part), label or 0, first.device) if model.cfg.conditional else None
        parts.append(model.decode(part, labels).cpu())
    return torch.cat(parts)
