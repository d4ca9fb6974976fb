"""Flows, spheres, mixtures, ladders and categories against autograd, quadrature and torch.distributions."""

import math

import numpy as np
import pytest
import torch
from scipy.integrate import quad
from scipy.special import ive
from torch.distributions import Categorical, Independent, MixtureSameFamily, Normal, OneHotCategorical, kl_divergence
from torch.func import jacrev, vmap
from variants import data, make, noise, run

from distae.losses import kl_normal
from distae.losses.similarity import SCALE_WEIGHTS, ms_ssim
from distae.models.hierarchy import combine
from distae.models.sphere import VonMisesFisher, rotate
from distae.nn.flows import InverseAutoregressive, Planar, Radial


def gaussian(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def shaken(module, seed=0):
    """The module with weights of size 1, far from where they start."""
    with torch.no_grad():
        for i, p in enumerate(module.double().parameters()):
            p.copy_(gaussian(*p.shape, seed=seed + i))
    return module


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("kind", [Planar, Radial])
def test_the_log_determinant_of_a_flow_is_autograds(kind, seed):
    flow, z = shaken(kind(3), seed), gaussian(20, 3)
    jacobians = vmap(jacrev(lambda row: flow(row[None])[0][0]))(z)
    sign, expected = torch.linalg.slogdet(jacobians)
    torch.testing.assert_close(flow(z)[1], expected)
    assert (sign > 0).all()


@pytest.mark.parametrize("reverse", [False, True])
def test_an_autoregressive_flow_is_triangular_and_its_log_determinant_autograds(reverse):
    flow, z, context = shaken(InverseAutoregressive(4, 9, 2, reverse)), gaussian(20, 4), gaussian(20, 2, seed=1)
    jacobians = vmap(jacrev(lambda row, c: flow(row[None], c[None])[0][0]))(z, context)
    torch.testing.assert_close(flow(z, context)[1], torch.linalg.slogdet(jacobians)[1])
    assert not torch.triu(jacobians.flip(1, 2) if reverse else jacobians, 1).any()
    assert torch.tril(jacobians.flip(1, 2) if reverse else jacobians, -1).ne(0).any(0).sum() == 6
    assert not torch.equal(flow(z, context)[0], flow(z, 2 * context)[0])


@pytest.mark.slow
@pytest.mark.parametrize("name", ["lin_nf_vae", "lin_nf_vae radial", "iaf_vae", "vamp_vae"])
def test_the_ratio_of_prior_and_posterior_has_mean_one(name):
    """E_q[p(z) / q(z|x)] = 1: so log q is the density of the codes that are drawn, and p a density."""
    kind, *flow = name.split()
    x, model = data(4).repeat_interleave(20000, 0), make(kind, latent_dim=2, **({"flow": flow[0]} if flow else {}))
    if name == "lin_nf_vae":
        for i, flow in enumerate(model.flows):
            flow.u.data += 0.2 * gaussian(1, 2, seed=i)  # it starts near the identity
    with torch.no_grad():
        ratio = torch.exp(-run(model, x).per_sample["kl"]).view(4, -1)
    error = ratio.std(1) / ratio.shape[1] ** 0.5
    assert error.max() < 0.1
    assert ((ratio.mean(1) - 1).abs() < 4 * error).all()


def test_vamps_prior_is_a_mixture_of_posteriors():
    model, z = make("vamp_vae", components=7), gaussian(5, 3)
    mu, logvar = model.posterior(model.pseudo_inputs(), None)
    parts = Independent(Normal(mu, torch.exp(0.5 * logvar)), 1)
    mixture = MixtureSameFamily(Categorical(torch.ones(7, dtype=torch.float64)), parts)
    torch.testing.assert_close(model.log_prior(z), mixture.log_prob(z))
    drawn = model.prior(20000, noise(20000))
    torch.testing.assert_close(drawn.mean(0), mu.mean(0), rtol=0, atol=0.03)


def bessel_ratio(dim, kappa):
    """Mean cosine of a von Mises-Fisher distribution."""
    return ive(dim / 2, kappa) / ive(dim / 2 - 1, kappa)


CONCENTRATIONS = [(2, 3.0), (3, 0.5), (3, 500.0), (10, 5.0), (10, 300.0), (40, 1000.0)]


@pytest.mark.parametrize(("dim", "kappa"), CONCENTRATIONS)
def test_the_kl_of_von_mises_and_fisher_is_that_of_bessel_functions(dim, kappa):
    q = VonMisesFisher(torch.tensor([kappa], dtype=torch.float64), dim)
    order = dim / 2 - 1
    log_constant = order * math.log(kappa) - dim / 2 * math.log(2 * math.pi) - (math.log(ive(order, kappa)) + kappa)
    log_area = math.log(2) + dim / 2 * math.log(math.pi) - math.lgamma(dim / 2)
    expected = kappa * bessel_ratio(dim, kappa) + log_constant + log_area
    assert float(q.kl_from_uniform()) == pytest.approx(expected, rel=1e-6, abs=1e-9)


def test_the_normaliser_is_that_of_numerical_integration():
    for dim, kappa in [(3, 2.0), (6, 20.0)]:
        q = VonMisesFisher(torch.tensor([kappa], dtype=torch.float64), dim)
        whole, _ = quad(lambda t, d=dim, k=kappa: math.sin(t) ** (d - 2) * math.exp(k * (math.cos(t) - 1)), 0, math.pi)
        assert float(q.log_total) == pytest.approx(math.log(whole), abs=1e-8)


EXACT_KL = {
    2: [(0.21047561, 0.35434603), (2.1109852, 0.016959391), (3.8198579, 0.00055586471), (5.0240837, 5.00025e-05)],
    3: [(0.15159592, 0.27593834), (3.0943446, 0.033333333), (6.4955419, 0.0011111111), (8.9034876, 1e-4)],
    10: [(0.049384755, 0.097558207), (6.310701, 0.13174131), (21.096587, 0.0049805233), (31.916403, 0.00044984248)],
}  # fmt: skip
"""By dimension, KL from the uniform distribution and its derivative at kappa 1, 30, 900 and 10^4, by mpmath's Bessel functions."""


@pytest.mark.parametrize("dim", EXACT_KL)
def test_kl_and_its_gradient_are_right_in_float32_up_to_a_kappa_of_ten_thousand(dim):
    kappa = torch.tensor([1.0, 30.0, 900.0, 1e4], requires_grad=True)
    kl = VonMisesFisher(kappa, dim).kl_from_uniform()
    (slope,) = torch.autograd.grad(kl.sum(), kappa)
    expected, expected_slope = torch.tensor(EXACT_KL[dim]).T
    torch.testing.assert_close(kl, expected, rtol=0, atol=1e-5)
    torch.testing.assert_close(slope, expected_slope, rtol=1e-5, atol=0)


@pytest.mark.parametrize("dim", [2, 3, 10])
def test_no_sample_of_a_large_kappa_lies_opposite_its_mean(dim):
    kappa = torch.linspace(100, 1e4, 300)
    angle = VonMisesFisher(kappa, dim).angle(torch.full((300,), 1 - 2**-24))  # the largest number that rand gives
    assert (angle * kappa.sqrt() < 9).all()  # a tail of 6e-8 is at 5.4 standard deviations in one dimension, 7.9 in nine
    assert not VonMisesFisher(kappa, dim).angle(torch.zeros(300)).isnan().any()


@pytest.mark.parametrize(("dim", "kappa"), CONCENTRATIONS)
def test_samples_of_the_sphere_have_the_right_mean_and_derivative(dim, kappa):
    u = (torch.arange(4000, dtype=torch.float64) + 0.5) / 4000
    strength = torch.full((4000,), kappa, dtype=torch.float64, requires_grad=True)
    mean = VonMisesFisher(strength, dim).angle(u).cos().mean()
    assert float(mean.detach()) == pytest.approx(bessel_ratio(dim, kappa), rel=1e-3)
    (slope,) = torch.autograd.grad(mean, strength)
    h = kappa * 1e-3
    expected = (bessel_ratio(dim, kappa + h) - bessel_ratio(dim, kappa - h)) / (2 * h)
    assert float(slope.sum()) == pytest.approx(expected, rel=0.02)


def test_codes_lie_on_the_sphere_around_their_mean():
    x, model = data(4).repeat_interleave(3000, 0), make("svae", latent_dim=4)
    mu, kappa = model.posterior(x, None)
    z = model.draw(VonMisesFisher(kappa, 4), mu, noise(len(x)))
    torch.testing.assert_close(z.norm(dim=1), torch.ones(len(x), dtype=torch.float64))
    mean = z.view(4, -1, 4).mean(1)
    expected = mu[::3000] * torch.tensor([bessel_ratio(4, float(k)) for k in kappa[::3000].detach()])[:, None]
    torch.testing.assert_close(mean, expected, rtol=0, atol=0.03)
    axis = torch.zeros(2, 4, dtype=torch.float64)
    axis[:, 0] = 1
    torch.testing.assert_close(rotate(axis, mu[:2]), mu[:2])


def test_the_kl_of_two_gaussians_is_torchs():
    mu, logvar, prior_mu, prior_logvar = gaussian(4, 5, 3)
    q, p = Normal(mu, torch.exp(0.5 * logvar)), Normal(prior_mu, torch.exp(0.5 * prior_logvar))
    torch.testing.assert_close(kl_normal(mu, logvar, prior_mu, prior_logvar), kl_divergence(q, p).sum(1))


def test_combined_gaussians_are_their_normalised_product():
    a, b = (gaussian(1, 1), gaussian(1, 1, seed=1)), (gaussian(1, 1, seed=2), gaussian(1, 1, seed=3))
    grid = torch.linspace(-20, 20, 40001, dtype=torch.float64)
    product = torch.exp(sum(Normal(m[0, 0], torch.exp(0.5 * v[0, 0])).log_prob(grid) for m, v in (a, b)))
    product /= product.sum()
    mean = (product * grid).sum()
    found = combine(a, b)
    torch.testing.assert_close(found[0][0, 0], mean)
    torch.testing.assert_close(found[1].exp()[0, 0], (product * (grid - mean) ** 2).sum())


def test_the_layers_of_a_ladder_pay_their_kl_to_the_layer_above():
    x, model = data(6), make("hvae", upper=(2,), hidden=8)
    for p in model.expected.parameters():
        torch.nn.init.zeros_(p)  # p(z_1|z_2) is then standard normal
    (mu, logvar), top = model.bottom_up(x, None)
    variance = 1 / (1 + torch.exp(-logvar))
    lower = kl_divergence(Normal(mu * torch.exp(-logvar) * variance, variance.sqrt()), Normal(0.0, 1.0)).sum(1)
    upper = kl_divergence(Normal(top[0], torch.exp(0.5 * top[1])), Normal(0.0, 1.0)).sum(1)
    out = run(model, x)
    torch.testing.assert_close(out.per_sample["kl_upper"], upper)
    torch.testing.assert_close(out.per_sample["kl"], upper + lower)


def test_a_ladder_samples_from_the_top():
    model = make("hvae", upper=(2, 2), hidden=8, latent_dim=1, likelihood="bernoulli")
    last = model.expected[0].layers[-1]
    with torch.no_grad():
        last.weight.zero_()
        last.bias.copy_(torch.tensor([3.0, -10.0]))  # p(z_1|z_2) = N(3, e^-10)
    expected = model.decode(torch.full((1, 1), 3.0, dtype=torch.float64))
    torch.testing.assert_close(model.sample(50, noise(50)), expected.expand(50, -1), rtol=0, atol=0.05)


def test_the_kl_of_categories_is_torchs():
    x, model = data(6), make("categorical_vae", latent_dim=12, categories=4)
    q = OneHotCategorical(logits=model.logits(x, None))
    uniform = OneHotCategorical(logits=torch.zeros(6, 3, 4, dtype=torch.float64))
    torch.testing.assert_close(run(model, x).per_sample["kl"], kl_divergence(q, uniform).sum(1))


def test_cold_gumbel_softmax_draws_each_category_as_often_as_it_is_probable():
    logits = torch.tensor([0.0, 1.0, -1.0, 2.0], dtype=torch.float64).expand(20000, 1, 4)
    z = make("categorical_vae", latent_dim=4, categories=4).relax(logits, 1e-3, noise(20000))
    torch.testing.assert_close(z.mean((0, 1)), torch.softmax(logits[0, 0], 0), rtol=0, atol=0.01)
    assert (z.amax(2) > 0.999).double().mean() > 0.99


def brute_force(x, y, window):
    """SSIM and its structure part of two images, window by window."""
    line = np.exp(-((np.arange(window) - window // 2) ** 2) / 4.5)
    weight = np.outer(line, line) / line.sum() ** 2
    whole, structure = [], []
    for i in range(x.shape[0] - window + 1):
        for j in range(x.shape[1] - window + 1):
            a, b = x[i : i + window, j : j + window], y[i : i + window, j : j + window]
            ma, mb = (weight * a).sum(), (weight * b).sum()
            va, vb, cov = ((weight * p).sum() for p in ((a - ma) ** 2, (b - mb) ** 2, (a - ma) * (b - mb)))
            structure.append((2 * cov + 9e-4) / (va + vb + 9e-4))
            whole.append((2 * ma * mb + 1e-4) / (ma**2 + mb**2 + 1e-4) * structure[-1])
    return np.mean(whole), np.mean(structure)


def test_structural_similarity_is_that_of_brute_force_at_each_scale():
    x = data(3, 1, 12, 12)
    y = (x + 0.1 * gaussian(3, 1, 12, 12)).clamp(0, 1)
    torch.testing.assert_close(ms_ssim(x, x, 5), torch.ones(3, dtype=torch.float64))
    share = SCALE_WEIGHTS[0] / sum(SCALE_WEIGHTS[:2])
    for i, found in enumerate(ms_ssim(x, y, 5).tolist()):
        a, b = (t[i, 0].numpy() for t in (x, y))
        half_a, half_b = (t.reshape(6, 2, 6, 2).mean((1, 3)) for t in (a, b))
        expected = brute_force(a, b, 5)[1] ** share * brute_force(half_a, half_b, 5)[0] ** (1 - share)
        assert found == pytest.approx(expected, rel=1e-9)


def test_msssim_vae_pays_for_what_is_not_similar():
    x, model = data(3, 1, 8, 8), make("msssim_vae", shape=(1, 8, 8), likelihood="bernoulli", weight=10.0, window=3, beta=2.0)
    out = run(model, x)
    similarity = ms_ssim(x, model.likelihood.mean(out.recon), 3)
    torch.testing.assert_close(out.loss, (10 * (1 - similarity) + 2 * out.per_sample["kl"]).mean())
