"""Denoising: non-local means against loops over pixels, the figures against the whole split in one go."""

import math

import pytest
import torch
from evaluations import evaluation
from helpers import as_the_model_sees, images, splits

from distae.config.names import METRICS
from distae.data import Split
from distae.evaluation import denoising
from distae.evaluation.denoising import LEVELS, non_local_means
from distae.evaluation.metrics import Skip
from distae.noise import Noise, Rows


def by_loops(x, std, h):
    """Of one channel `[H, W]`."""
    height, width = x.shape
    reach, half = denoising.SEARCH, denoising.PATCH // 2

    def inside(i, size):
        """A place beyond the edge is that of its mirror image."""
        return abs(i) if i < size else 2 * (size - 1) - i

    out = torch.zeros_like(x)
    for i in range(height):
        for j in range(width):
            total = weights = 0.0
            for di in range(-reach, reach + 1):
                for dj in range(-reach, reach + 1):
                    squares = [
                        (x[a, b] - x[inside(a + di, height), inside(b + dj, width)]) ** 2
                        for a in range(max(0, i - half), min(height, i + half + 1))
                        for b in range(max(0, j - half), min(width, j + half + 1))
                    ]
                    weight = math.exp(-max(float(sum(squares)) / len(squares) - 2 * std**2, 0) / h**2)
                    total += weight * float(x[inside(i + di, height), inside(j + dj, width)])
                    weights += weight
            out[i, j] = total / weights
    return out


def test_non_local_means_are_those_of_loops_over_pixels(monkeypatch):
    monkeypatch.setattr(denoising, "SEARCH", 2)
    x = torch.rand(1, 1, 7, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(non_local_means(x, 0.1, 0.15)[0, 0], by_loops(x[0, 0], 0.1, 0.15))


def test_non_local_means_keep_edges_and_remove_noise():
    clean = torch.zeros(1, 3, 24, 24, dtype=torch.float64)
    clean[..., 12:] = 1
    noisy = clean + 0.2 * torch.randn(clean.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    error = (non_local_means(noisy, 0.2, 0.2) - clean).square().mean()
    assert error < 0.1 * (noisy - clean).square().mean()


def test_figures_are_those_of_the_whole_split():
    e = evaluation("ae", latent_dim=3, run={"eval_batch_size": 64})
    x = as_the_model_sees(splits()["test"])
    noise = Noise(e.seed, ("denoising", 0), Rows(len(x)), torch.device("cpu"))
    mse, psnr = (METRICS[name].compute(e) for name in ("denoising_mse", "denoising_psnr"))
    assert list(mse) == ["0.1", "0.25", "0.5"]
    for level in LEVELS:
        noisy, found = x + level * noise.normal(x), mse[str(level)]
        made = {
            "noisy": noisy, "pca": e.pca(3).reconstruct(noisy), "model": e.model.reconstruct(noisy).detach(),
            "non_local_means": non_local_means(noisy, level, found.protocol["h"]),
        }  # fmt: skip
        errors = {name: (x - y.clamp(0, 1)).square().flatten(1).mean(1) for name, y in made.items()}
        values = {"model": found.value, **found.baselines}
        assert values == {name: pytest.approx(float(error.mean()), rel=1e-9) for name, error in errors.items()}
        values = {"model": psnr[str(level)].value, **psnr[str(level)].baselines}
        assert values == {name: pytest.approx(float((-10 * error.log10()).mean()), rel=1e-9) for name, error in errors.items()}


@pytest.mark.slow
def test_the_strength_is_the_best_one_on_training_samples(monkeypatch):
    """Of images of a few grey levels in squares: a stronger filter than none."""
    chosen = METRICS["denoising_mse"].compute(evaluation("ae", {name: images(64, 0) for name in ("train", "val", "test")}))
    for level in LEVELS:
        found = chosen[str(level)].baselines["non_local_means"]
        monkeypatch.setattr(denoising, "STRENGTHS", (0.01,))
        worse = METRICS["denoising_mse"].compute(evaluation("ae", {name: images(64, 0) for name in ("train", "val", "test")}))
        assert found < worse[str(level)].baselines["non_local_means"]


def test_vectors_have_no_non_local_means():
    x = torch.randn(60, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    e = evaluation("ae", {name: Split.of(x) for name in ("train", "val", "test")}, likelihood="gaussian")
    assert set(METRICS["denoising_mse"].compute(e)["0.5"].baselines) == {"noisy", "pca"}
    with pytest.raises(Skip, match="not images"):
        METRICS["denoising_psnr"].compute(e)


def test_large_images_have_no_non_local_means(monkeypatch):
    monkeypatch.setattr(denoising, "MOST_VALUES", 63)
    assert set(METRICS["denoising_mse"].compute(evaluation("ae"))["0.5"].baselines) == {"noisy", "pca"}
