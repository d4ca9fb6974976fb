"""How well a model removes noise from its input, beside PCA with as many components as the code has values and non-local means."""

from collections.abc import Callable
from math import prod

import torch
import torch.nn.functional as F
from torch import Tensor

from distae.evaluation.evaluation import Evaluation
from distae.evaluation.metrics import Figure, Skip, register_metric
from distae.evaluation.reconstruction import psnr
from distae.evaluation.scores import squared
from distae.evaluation.shared import are_images, need_images, once, pca_of_code
from distae.models import Batch
from distae.noise import Noise, Rows

LEVELS = (0.1, 0.25, 0.5)
"""Standard deviations of the noise, in units of the model's values."""
PATCH, SEARCH = 5, 5
"""Non-local means: side of a patch, and how far away patches are compared, in pixels."""
STRENGTHS = (0.25, 0.5, 0.75, 1.0, 1.5, 2.0)
"""Filter strengths h, in standard deviations of the noise, of which training samples choose."""
MOST_VALUES = 3 * 64 * 64
"""Values of an image up to which non-local means are computed: each costs 121 passes over it."""
TRIED = 64
"""Training samples that choose."""


def non_local_means(x: Tensor, std: float, h: float) -> Tensor:
    """Buades et al. 2005, eq. 1, of images `[B, C, H, W]` with gaussian noise of `std`: each pixel is a mean of its neighbours'.

    Weights are exp(-max(d^2 - 2 std^2, 0) / h^2), d^2 the mean squared difference of the patches around both (Buades et al.
    2011, sec. 3).
    """
    height, width = x.shape[2:]
    reach, half = min(SEARCH, height - 1, width - 1), PATCH // 2
    padded = F.pad(x, (reach,) * 4, "reflect")
    total, weights = torch.zeros_like(x), torch.zeros_like(x[:, :1])
    for down in range(2 * reach + 1):
        for right in range(2 * reach + 1):
            other = padded[:, :, down : down + height, right : right + width]
            apart = F.avg_pool2d((x - other).square().mean(1, keepdim=True), PATCH, 1, half, count_include_pad=False)
            weight = torch.exp(-(apart - 2 * std**2).clamp_min(0) / h**2)
            total, weights = total + weight * other, weights + weight
    return total / weights


def _ends(e: Evaluation) -> Callable[[Tensor], Tensor]:
    """What is known of clean values: those of images are in [0, 1], which helps the baselines whose output is not."""
    return (lambda x: x.clamp(0, 1)) if are_images(e) else lambda x: x


@once
def _strengths(e: Evaluation) -> dict[float, float]:
    """The h of non-local means that has the lowest squared error on training samples, by level; none where it is not computed."""
    if len(e.model.shape) != 3 or prod(e.model.shape) > MOST_VALUES:
        return {}
    clean, end = e.values("train")[:TRIED], _ends(e)
    found = {}
    for level in LEVELS:
        noise = Noise(e.seed, ("non-local means", str(level)), Rows(len(clean)), clean.device)
        noisy = clean + level * noise.normal(clean)
        errors = {c * level: float(squared(clean, end(non_local_means(noisy, level, c * level))).mean()) for c in STRENGTHS}
        found[level] = min(errors, key=errors.__getitem__)
    return found


@once
def _errors(e: Evaluation) -> dict[str, float]:
    """Means over all samples of `mse` and `psnr` of the model, and of each baseline, by level: `model mse 0.1`."""
    if e.model.input_shape != e.model.shape:
        raise Skip("the model reconstructs a part of a sample from the others, not samples")
    if e.model.cfg.missing or e.transform.columns:
        raise Skip("noise is added to values of one kind, none of them missing")
    pca, end, strengths = pca_of_code(e), _ends(e), _strengths(e)

    def terms(batch: Batch, noise: Noise) -> dict[str, Tensor]:
        found = {}
        for level in LEVELS:
            noisy = batch.x + level * noise.normal(batch.x).to(batch.x.dtype)
            made = {"model": e.model.reconstruct(noisy, batch.label), "noisy": noisy}
            if pca:
                made["pca"] = pca.reconstruct(noisy.cpu()).to(noisy)
            if level in strengths:
                made["non_local_means"] = non_local_means(noisy, level, strengths[level])
            for name, x in made.items():
                found[f"{name} mse {level}"] = mse = squared(batch.x, end(x))
                found[f"{name} psnr {level}"] = psnr(mse)
        return found

    return e.mean(terms, "denoising")


def _figures(e: Evaluation, name: str) -> dict[str, Figure]:
    found = _errors(e)
    figures = {}
    for level in LEVELS:
        of = {key.split()[0]: value for key, value in found.items() if key.endswith(f" {name} {level}")}
        protocol = {
            "noise": "gaussian",
            "std": level,
            "clamped": are_images(e),
            "h": _strengths(e).get(level),
        }
        figures[str(level)] = Figure(of.pop("model"), of, protocol=protocol)
    return figures


@register_metric("denoising_mse", task="denoising", unit="squared units of the model's values")
def denoising_mse(e: Evaluation) -> dict[str, Figure]:
    """(x - reconstruct(x + noise))^2, averaged over the values of a sample, by the noise's standard deviation."""
    return _figures(e, "mse")


@register_metric("denoising_psnr", task="denoising", unit="dB", better="higher")
def denoising_psnr(e: Evaluation) -> dict[str, Figure]:
    """-10 log10 of each image's squared error against the clean one, by the noise's standard deviation."""
    need_images(e)
    return _figures(e, "psnr")
