"""Likelihoods in single precision, and far from where networks start."""

import math

import pytest
import torch

from distae.config.models import AEConfig
from distae.losses import build_likelihood
from distae.losses.likelihoods.counts import log_rising

GENES = 2000


@pytest.mark.parametrize("log_theta", [0.0, 8.0, 30.0])
@pytest.mark.parametrize("name", ["nb", "zinb"])
def test_counts_near_poisson_keep_their_digits_in_single_precision(name: str, log_theta: float) -> None:
    """With a large inverse dispersion, lgamma(x + theta) - lgamma(theta) and log theta - log(theta + mu) cancel."""
    rng = torch.Generator().manual_seed(0)
    likelihood = build_likelihood(AEConfig(likelihood=name), (GENES,))
    torch.nn.init.constant_(likelihood.log_theta, log_theta)  # type: ignore[arg-type]
    raw = torch.randn(4, *likelihood.raw_shape, generator=rng)
    x = torch.poisson(torch.full((4, GENES), 1.5), generator=rng)
    found, expected = likelihood(raw, x).double(), likelihood.double()(raw.double(), x.double())
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=0)


def test_the_difference_of_two_lgamma_is_that_of_float64() -> None:
    theta = torch.logspace(-4, 4.3, 300, dtype=torch.float64)[:, None]
    x = torch.tensor([0.0, 1.0, 2.0, 30.0, 4000.0], dtype=torch.float64)
    expected = torch.lgamma(theta + x) - torch.lgamma(theta)
    torch.testing.assert_close(log_rising(theta, x), expected, rtol=1e-10, atol=1e-9)


@pytest.mark.parametrize("name", ["bernoulli", "continuous_bernoulli", "sigmoid_gaussian", "poisson", "multinomial"])
def test_a_mean_has_a_finite_gradient_at_extremes(name: str) -> None:
    """rae_gp, vamp_vae and vaegan differentiate it."""
    raw = torch.tensor([[-1e4, -100.0, -0.05, 0.0, 0.2, 100.0, 1e4]], requires_grad=True)
    mean = build_likelihood(AEConfig(likelihood=name), (7,)).mean(raw)
    mean.sum().backward()
    assert mean.isfinite().all()
    assert raw.grad is not None
    assert raw.grad.isfinite().all()


@pytest.mark.parametrize("log_scale", [-6.0, -3.0, 0.0, 2.0])
def test_the_mean_of_a_mixture_is_that_of_its_levels_where_components_lie_outside(log_scale: float) -> None:
    """Their tails belong to the lowest and the highest level. To half a level, where a component is narrower than one."""
    likelihood = build_likelihood(AEConfig(likelihood="logistic_mixture", mixtures=3), (1, 1, 1)).double()
    raw = torch.tensor([[0.0, 0.5, -0.5, 3.0, -1.2, 0.1, *3 * [log_scale]]], dtype=torch.float64)[:, :, None, None]
    levels = torch.arange(256, dtype=torch.float64) / 255
    p = torch.exp(-likelihood(raw.expand(256, -1, -1, -1), levels[:, None, None, None]))
    assert p.sum().item() == pytest.approx(1, abs=1e-12)
    assert likelihood.mean(raw).item() == pytest.approx((p * levels).sum().item(), abs=1 / 510)


def test_the_mean_of_colours_is_that_of_each_colour_given_the_means_of_those_before() -> None:
    """One component so narrow that it is where its mean is: green is 0.2 + tanh(1) * red, blue tanh(-1) * red + tanh(2) * green."""
    likelihood = build_likelihood(AEConfig(likelihood="logistic_mixture", mixtures=1), (3, 1, 1)).double()
    raw = torch.tensor([[0.0, 0.5, 0.2, 0.0, *3 * [-30.0], 1.0, -1.0, 2.0]], dtype=torch.float64)[:, :, None, None]
    red = 0.5
    green = 0.2 + math.tanh(1) * red
    blue = math.tanh(-1) * red + math.tanh(2) * green
    expected = (torch.tensor([red, green, blue], dtype=torch.float64) + 1) / 2
    torch.testing.assert_close(likelihood.mean(raw).flatten(), expected, atol=1e-3, rtol=0)
