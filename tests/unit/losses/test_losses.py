"""Likelihoods and divergences against torch.distributions."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.distributions import Bernoulli, Laplace, Normal, kl_divergence

from distae.config.models import AEConfig
from distae.losses import build_likelihood, kl_standard_normal, log_normal_pairs, soft_bound

RAW = torch.linspace(-4, 4, 2 * 3 * 5).view(2, 3, 5)
X = torch.linspace(0, 1, 2 * 3 * 5).flip(0).view(2, 3, 5)
FAMILIES: dict[str, Callable[[torch.Tensor, torch.Tensor], Any]] = {
    "bernoulli": lambda raw, scale: Bernoulli(logits=raw, validate_args=False),
    "gaussian": Normal,
    "laplace": Laplace,
}


def test_kl_is_the_closed_form():
    mu, logvar = torch.randn(7, 4), torch.randn(7, 4) * 2
    expected = kl_divergence(Normal(mu, (0.5 * logvar).exp()), Normal(0.0, 1.0)).sum(1)
    torch.testing.assert_close(kl_standard_normal(mu, logvar), expected)


def test_pairs_have_the_density_of_torch():
    z, mu, logvar = torch.randn(5, 4).double(), 3 * torch.randn(7, 4).double(), torch.randn(7, 4).double() * 2
    expected = Normal(mu, (0.5 * logvar).exp()).log_prob(z[:, None]).sum(2)
    torch.testing.assert_close(log_normal_pairs(z, mu, logvar), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("scale", [0.1, 1.0, 2.5])
@pytest.mark.parametrize("kind", FAMILIES)
def test_a_likelihood_is_that_of_torch(kind, scale):
    nll = build_likelihood(AEConfig(likelihood=kind, scale=scale))(RAW, X)
    torch.testing.assert_close(nll, -FAMILIES[kind](RAW, torch.tensor(scale)).log_prob(X).sum((1, 2)))


@pytest.mark.parametrize("kind", FAMILIES)
def test_the_mean_is_that_of_torch(kind):
    torch.testing.assert_close(build_likelihood(AEConfig(likelihood=kind)).mean(RAW), FAMILIES[kind](RAW, torch.tensor(1.0)).mean)


@pytest.mark.parametrize("kind", ["gaussian", "laplace"])
def test_a_learned_scale_gets_the_gradient_of_torch(kind):
    likelihood = build_likelihood(AEConfig(likelihood=kind, scale=0.7, learn_scale=True))
    log_scale = torch.tensor(0.7).log().requires_grad_()
    nll, expected = likelihood(RAW, X), -FAMILIES[kind](RAW, log_scale.exp()).log_prob(X).sum((1, 2))
    torch.testing.assert_close(nll, expected)
    nll.sum().backward()
    expected.sum().backward()
    assert likelihood.log_scale is not None
    torch.testing.assert_close(likelihood.log_scale.grad, log_scale.grad)


@pytest.mark.parametrize("kind", FAMILIES)
def test_half_precision_is_summed_in_single(kind):
    raw, x = RAW.half().repeat(1, 1, 4000), X.half().repeat(1, 1, 4000)  # the sum is past 65504, float16's largest
    nll = build_likelihood(AEConfig(likelihood=kind, scale=0.2))(raw, x)
    assert nll.dtype == torch.float32
    assert nll.isfinite().all()
    assert kl_standard_normal(raw.flatten(1), x.flatten(1)).dtype == torch.float32


def test_extreme_logits_stay_finite():
    nll = build_likelihood(AEConfig())(torch.tensor([[1e4, -1e4]]), torch.tensor([[0.0, 1.0]]))
    torch.testing.assert_close(nll, torch.tensor([2e4]))


def test_a_bound_keeps_its_exponential_finite_and_small_values_as_they_are():
    assert soft_bound(torch.tensor([-1e30, 1e30])).tolist() == [-10, 10]
    torch.testing.assert_close(soft_bound(torch.tensor([-0.1, 0.1])), torch.tensor([-0.1, 0.1]), rtol=1e-4, atol=0)
