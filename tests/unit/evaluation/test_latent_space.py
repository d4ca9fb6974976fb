"""Metrics of the space of codes: on decoders and codes whose figures are known."""

import pytest
import torch
from evaluations import evaluation
from helpers import images, splits

from distae.config.names import METRICS
from distae.evaluation import latent_space
from distae.evaluation.metrics import Skip
from distae.models import Codes


def value(name, e):
    return METRICS[name].compute(e).value


def with_codes(codes, name="vae", **changes):
    """An evaluation of a model with these codes."""
    n = len(codes.z)
    e = evaluation(name, {"train": images(n, 1), "val": images(2, 2), "test": images(n, 3)}, **changes)
    e._codes["test"] = codes
    return e


def normal(n, dim, seed=0):
    return torch.randn(n, dim, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def test_neighbourhoods_of_a_copy_are_perfect_and_of_noise_random():
    for name in ("trustworthiness", "continuity"):
        e = with_codes(Codes(normal(400, 3)))
        assert value(name, e) == pytest.approx(0.5, abs=0.05)
        e._codes["test"] = Codes(3 * e.values().flatten(1))
        assert value(name, e) == pytest.approx(1)


def test_continuity_falls_where_neighbours_are_torn_apart_and_trust_where_strangers_are_joined(monkeypatch):
    e = with_codes(Codes(normal(400, 1)))
    line = torch.linspace(-1, 1, 400, dtype=torch.float64)[:, None]
    e._values["test"] = line
    monkeypatch.setattr(latent_space, "pca_of_code", lambda e: None)
    e._codes["test"] = Codes(line.abs())  # folded: both halves on each other
    assert value("trustworthiness", e) < 0.9 < value("continuity", e)
    e._codes["test"] = Codes(torch.where(torch.arange(400)[:, None] % 2 == 0, line, line + 10))  # torn: every other one is far away
    assert value("continuity", e) < value("trustworthiness", e)


def test_an_even_path_has_no_jump_and_a_step_is_one():
    e = with_codes(Codes(normal(60, 4)))
    e.model.decode = lambda z, label: z @ torch.ones(4, 64, dtype=z.dtype)
    assert value("interpolation_jump", e) == pytest.approx(1)
    e.model.decode = lambda z, label: (z[:, :1] > z[:, :1].mean()).to(z).expand(-1, 64)
    assert value("interpolation_jump", e) == pytest.approx(10)


def test_a_decoder_of_training_samples_is_complete_and_of_noise_is_not(monkeypatch):
    e = evaluation("vae", {"train": images(100, 1), "val": images(2, 2), "test": images(100, 3)})
    e._reconstructions["test"] = e.values("train") + 0.01
    monkeypatch.setattr(latent_space, "samples", lambda e: e.values("train"))
    assert value("completeness", e) == 1
    monkeypatch.setattr(latent_space, "samples", lambda e: torch.cat([e.values("train")[:25], e.values()[:75]]))
    assert value("completeness", e) == 0.25
    monkeypatch.setattr(latent_space, "samples", lambda e: e.values("train") + 0.01)
    assert value("completeness", e) == pytest.approx(0.95, abs=0.06)  # as near as reconstructions are, by definition


def test_active_units_vary_over_samples():
    mu = normal(400, 5) * torch.tensor([1, 0.2, 0.11, 0.09, 0])
    assert value("active_units", with_codes(Codes(mu, mu, torch.zeros_like(mu)))) == 3


def test_the_aggregate_posterior_against_the_closed_form():
    mu = normal(500, 3)
    white = (mu - mu.mean(0)) @ torch.linalg.inv(torch.linalg.cholesky(mu.T.cov(correction=0))).T
    s, m = torch.tensor([0.6, 0.8, 1.5]).double(), torch.tensor([0.0, 1, -2]).double()
    logvar = torch.tensor([0.64, 0.36, 0.01]).double().log().expand(500, 3)  # whose sums with s^2 are 1, 1 and 2.26
    e = with_codes(Codes(white * s + m, white * s + m, logvar))
    expected = torch.distributions.kl_divergence(
        torch.distributions.MultivariateNormal(m, (s.square() + logvar[0].exp()).diag()),
        torch.distributions.MultivariateNormal(torch.zeros(3).double(), torch.eye(3).double()),
    )
    assert value("aggregate_kl", e) == pytest.approx(float(expected), rel=1e-9)
    e = with_codes(Codes(white), "wae_mmd")
    assert value("aggregate_kl", e) == pytest.approx(0, abs=1e-9)


def test_mmd_sees_codes_that_are_not_of_the_prior():
    same, other = (with_codes(Codes(x), "wae_mmd") for x in (normal(1000, 3, 5), 0.3 * normal(1000, 3, 5) + 1))
    assert value("aggregate_mmd", same) == pytest.approx(0, abs=0.003)
    assert value("aggregate_mmd", other) > 0.05
    mu = normal(1000, 3, 5) * 0.6  # and with the posterior's variance it is
    assert value("aggregate_mmd", with_codes(Codes(mu, mu, torch.full_like(mu, 0.64).log()))) == pytest.approx(0, abs=0.003)


@pytest.mark.parametrize(
    ("name", "model", "words"),
    [
        ("aggregate_kl", "ae", "not standard normal"),
        ("aggregate_mmd", "vamp_vae", "not standard normal"),
        ("active_units", "ae", "no posterior mean"),
        ("completeness", "ae", "no prior"),
    ],
)
def test_what_a_model_lacks_is_skipped(name, model, words):
    with pytest.raises(Skip, match=words):
        value(name, evaluation(model, splits()))


def test_conditioned_codes_are_decoded_with_their_labels():
    assert value("interpolation_jump", evaluation("cvae")) >= 1
