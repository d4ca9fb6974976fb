"""Variational variants against closed forms, quadrature, limits and bounds."""

import math
from typing import Any

import pytest
import torch
from torch.distributions import Independent, MultivariateNormal, Normal, kl_divergence
from variants import data, make, noise, run, train

from distae.config.weights import Ramp
from distae.losses import mmd
from distae.models.importance import bound
from distae.models.vae import Posterior, log_stratified_weights

PLAIN = ("vae", "beta_vae", "capacity_vae", "beta_tc_vae", "dip_vae", "info_vae", "iwae", "miwae", "ciwae", "piwae")


def like(model, name, **settings):
    """Another variant with the same weights."""
    other = make(name, **settings)
    other.load_state_dict(model.state_dict())
    return other


def posterior(model, x):
    mu, logvar = model.posterior(x, None)
    return Independent(Normal(mu, torch.exp(0.5 * logvar)), 1)


def standard(dim=3):
    zero = torch.zeros(dim, dtype=torch.float64)
    return Independent(Normal(zero, zero + 1), 1)


def test_the_kl_is_torchs():
    x, model = data(8), make("vae")
    torch.testing.assert_close(run(model, x).per_sample["kl"], kl_divergence(posterior(model, x), standard()))


def test_beta_and_its_ramp_weigh_the_kl():
    x, model = data(8), make("vae")
    recon, kl = (run(model, x).per_sample[k].mean() for k in ("recon", "kl"))
    torch.testing.assert_close(run(like(model, "beta_vae"), x).loss, recon + 4 * kl)
    ramp = like(model, "vae", beta=Ramp("0:2@10"))
    torch.testing.assert_close(run(ramp, x, step=5).loss, recon + kl)
    torch.testing.assert_close(run(ramp, x).loss, recon + 2 * kl)


def test_free_bits_are_a_floor_per_dimension():
    x, model = data(8), make("vae")
    out = run(model, x)
    by_dimension = kl_divergence(posterior(model, x).base_dist, Normal(0.0, 1.0)).mean(0)
    middle = float(by_dimension.detach().median())
    for floor in (1e-9, middle, 50.0):
        paid = by_dimension.clamp_min(floor).sum()
        torch.testing.assert_close(run(like(model, "vae", free_bits=floor), x).loss, out.per_sample["recon"].mean() + paid)


def test_capacity_zero_is_a_beta_vae():
    x, model = data(8), make("vae", beta=7.0)
    torch.testing.assert_close(run(like(model, "capacity_vae", gamma=7.0, capacity=0.0), x).loss, run(model, x).loss)
    far = run(like(model, "capacity_vae", gamma=7.0, capacity=100.0), x)
    torch.testing.assert_close(far.loss, far.per_sample["recon"].mean() + 7 * (100 - far.per_sample["kl"].mean()))


def test_beta_tc_with_weights_one_is_the_elbo_of_the_same_sample():
    x, model = data(8), make("beta_tc_vae", alpha=1.0, beta=1.0, gamma=1.0)
    q = posterior(model, x)
    mu, logvar = model.posterior(x, None)
    z = Posterior.draw(mu, logvar, noise(8)).z
    expected = run(model, x).per_sample["recon"] + q.log_prob(z) - standard().log_prob(z)
    torch.testing.assert_close(run(model, x).per_sample["loss"], expected)


def test_stratified_weights_are_a_distribution_over_the_data_set():
    weights = log_stratified_weights(torch.arange(5), 5, 100).exp()
    torch.testing.assert_close(weights.sum(1), torch.ones(5, dtype=torch.float64))
    torch.testing.assert_close(weights.diagonal(), torch.full((5,), 1 / 100, dtype=torch.float64))
    assert sorted(set(weights[2].tolist())) == pytest.approx([1 / 100, 96 / 400, 1 / 4])
    whole = log_stratified_weights(torch.arange(5), 5, 5).exp()
    torch.testing.assert_close((whole.sum() - whole.trace()) / 20, torch.tensor(1 / 5, dtype=torch.float64))
    assert log_stratified_weights(torch.arange(1), 1, 1).exp().item() == 1


def test_total_correlation_is_that_of_a_gaussian():
    """Narrow posteriors whose means are correlated make up a correlated gaussian: TC = -1/2 log(1 - r^2)."""
    n, r = 2000, 0.9
    pair = torch.randn(n, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    mu = torch.stack([pair[:, 0], r * pair[:, 0] + math.sqrt(1 - r**2) * pair[:, 1]], 1)
    model = make("beta_tc_vae", latent_dim=2)
    model.posterior = lambda x, noise: (mu, torch.full_like(mu, math.log(0.15**2)))
    out = run(model, data(n))
    blurred = r / (1 + 0.15**2)
    expected = -0.5 * math.log(1 - blurred**2)
    assert float(out.per_sample["total_correlation"].mean()) == pytest.approx(expected, rel=0.15)


@pytest.mark.parametrize("variant", ["I", "II"])
def test_dip_vae_looks_at_the_covariance_of_the_codes(variant):
    x = data(50)
    model = make("dip_vae", variant=variant)
    mu, logvar = model.posterior(x, None)
    z = mu if variant == "I" else torch.cat([Posterior.draw(mu, logvar, noise(50, i)).z for i in range(2000)])
    cov = torch.cov(z.T, correction=0)
    out = run(model, x)
    exactness: dict[str, Any] = {"rtol": 1e-9, "atol": 1e-9} if variant == "I" else {"rtol": 0.1, "atol": 1e-3}
    torch.testing.assert_close(out.per_batch["off_diagonal"], 2 * torch.triu(cov, 1).square().sum(), **exactness)
    torch.testing.assert_close(out.per_batch["diagonal"], (cov.diagonal() - 1).square().sum(), **exactness)


@pytest.mark.parametrize("shift", [0.0, 1.0])
def test_mmd_of_gaussians_is_its_closed_form(shift):
    generator = torch.Generator().manual_seed(0)
    x, y = (torch.randn(2000, 3, generator=generator, dtype=torch.float64) for _ in range(2))
    width = 3.0  # s^2 = dim * 1^2
    between = (width / (width + 2)) ** 1.5 * math.exp(-3 * shift**2 / (2 * (width + 2)))
    expected = 2 * (width / (width + 2)) ** 1.5 - 2 * between
    assert float(mmd(x, y + shift, "rbf", (1.0,))) == pytest.approx(expected, abs=0.015)  # two of its standard errors


@pytest.mark.slow
@pytest.mark.parametrize("kernel", ["rbf", "imq"])
def test_mmd_is_unbiased(kernel):
    """Its mean over equal distributions is 0, not the positive bias of the estimate that counts each sample with itself."""
    generator = torch.Generator().manual_seed(0)
    pairs = torch.randn(2000, 2, 8, 2, generator=generator, dtype=torch.float64)
    draws = [mmd(x, y, kernel, (1.0,)) for x, y in pairs]
    assert abs(float(torch.stack(draws).mean())) < 0.01


def test_info_vae_goes_from_the_elbo_to_reconstruction_alone():
    x, model = data(8), make("vae")
    torch.testing.assert_close(run(like(model, "info_vae", alpha=0.0, lambda_=1.0), x).loss, run(model, x).loss)
    alone = run(like(model, "info_vae", alpha=1.0, lambda_=0.0), x)
    torch.testing.assert_close(alone.loss, alone.per_sample["recon"].mean())


def test_a_cvae_that_ignores_the_label_is_the_vae():
    x, model, plain = data(8), make("cvae", classes=3), make("vae")
    label = torch.arange(8) % 3
    weights = {k: v.clone() for k, v in model.state_dict().items()}
    weights["encoder.layers.1.layer.weight"][:, 6:] = 0
    weights["decoder.layers.0.layer.weight"][:, 3:] = 0
    model.load_state_dict(weights)
    weights["encoder.layers.1.layer.weight"] = weights["encoder.layers.1.layer.weight"][:, :6]
    weights["decoder.layers.0.layer.weight"] = weights["decoder.layers.0.layer.weight"][:, :3]
    plain.load_state_dict(weights)
    torch.testing.assert_close(run(model, x, label=label).loss, run(plain, x).loss)


def test_a_cvae_samples_the_label_it_is_asked_for():
    """Four corners of a square by label: nothing but the label can say which."""
    corners = torch.tensor([[0.0, 0.0], [0.0, 1.0], [1.0, 0.0], [1.0, 1.0]], dtype=torch.float64)
    label = torch.arange(40) % 4
    model = make("cvae", shape=(2,), classes=4, latent_dim=1, scale=0.1)
    optimizer = torch.optim.Adam(model.parameters(), 0.02)
    for step in range(300):
        optimizer.zero_grad()
        run(model, corners[label], step, label=label).loss.backward()
        optimizer.step()
    assert (model.sample(40, noise(40), label) - corners[label]).abs().mean() < 0.1
    assert (model.sample(4, noise(4)) - corners).abs().mean() < 0.1


@pytest.mark.slow
def test_iwae_with_one_sample_is_the_vae():
    x, model = data(8), make("vae")
    iwae = like(model, "iwae", samples=1)
    draws = [run(iwae, x, i).per_sample["loss"] - run(model, x, i).per_sample["recon"] for i in range(4000)]
    kl = run(model, x).per_sample["kl"]
    torch.testing.assert_close(torch.stack(draws).mean(0), kl, rtol=0.05, atol=0.02)


def test_iwae_with_many_samples_is_the_likelihood_of_a_linear_model():
    """x = W z + b + e: p(x) is a gaussian that one can write down."""
    x, model = data(8), make("iwae", layers=(), samples=20000, latent_dim=2)
    linear = model.decoder.layers[0]
    covariance = linear.weight @ linear.weight.T + torch.eye(6)
    expected = -MultivariateNormal(linear.bias, covariance).log_prob(x)
    torch.testing.assert_close(run(model, x).per_sample["loss"], expected, rtol=0.01, atol=0.01)


@pytest.mark.slow
def test_more_samples_give_a_higher_bound_on_a_trained_model():
    x = data(64)
    model = train(make("vae", scale=0.1), x, 300)
    bounds = [
        torch.stack([-run(like(model, "iwae", samples=k, scale=0.1), x, i).loss for i in range(20)]).mean() for k in (1, 5, 50)
    ]
    assert bounds[0] < bounds[1] < bounds[2]


def test_the_relatives_of_iwae_agree_where_they_should():
    x, model = data(8), make("vae")
    iwae = run(like(model, "iwae", samples=6), x).loss
    torch.testing.assert_close(run(like(model, "miwae", bounds=1, samples=6), x).loss, iwae)
    torch.testing.assert_close(run(like(model, "ciwae", elbo_share=0.0, samples=6), x).loss, iwae)
    elbo = run(like(model, "miwae", bounds=6, samples=1), x).loss
    torch.testing.assert_close(run(like(model, "ciwae", elbo_share=0.25, samples=6), x).loss, 0.25 * elbo + 0.75 * iwae)
    piwae = like(model, "piwae", bounds=2, samples=3)
    torch.testing.assert_close(run(piwae, x).loss, iwae)
    torch.testing.assert_close(run(piwae, x, phase="encoder").loss, run(like(model, "miwae", bounds=2, samples=3), x).loss)


def test_the_phases_of_piwae_share_out_all_parameters():
    model = make("piwae", learn_scale=True)
    names = {id(p): n for n, p in model.named_parameters()}
    phases = {t.name: {names[id(p)].split(".")[0] for p in t.parameters} for t in model.phases()}
    assert phases == {"decoder": {"decoder", "likelihood"}, "encoder": {"encoder"}}
    assert sum(len(t.parameters) for t in model.phases()) == len(names)


def test_a_bound_of_equal_weights_is_their_log():
    torch.testing.assert_close(bound(torch.full((2, 5), -3.0)), torch.full((2,), -3.0))


@pytest.mark.parametrize("name", PLAIN)
def test_what_has_a_prior_samples_from_it(name):
    model = make(name, likelihood="bernoulli")
    drawn = model.sample(2000, noise(2000))
    again = model.decode(standard().sample((2000,)))
    torch.testing.assert_close(drawn.mean(0), again.mean(0), rtol=0.05, atol=0.02)
