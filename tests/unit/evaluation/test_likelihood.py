"""Bounds of log p(x) against a model whose log p(x) is known: linear, with gaussian codes and values (Tipping & Bishop 1999)."""

import math
from typing import Any

import pytest
import torch
from evaluations import evaluation
from helpers import SHIPPED, as_the_model_sees, splits
from variants import SMALL

from distae.config.models import ModelConfig
from distae.config.names import METRICS
from distae.evaluation import likelihood
from distae.evaluation.metrics import Skip
from distae.models import Batch
from distae.noise import Noise, Rows

SCALE = 0.3


def values(e):
    return {name: METRICS[name].compute(e).value for name in ("elbo", "iwae_bound", "bits_per_dim")}


def linear(error=0.0, samples=64, chunk=20, name="vae", **changes):
    """A model of N(b, W W^T + s^2 I), W with orthogonal columns, whose encoder is the posterior but for `error`."""
    how, run = {"importance_samples": samples}, {"eval_batch_size": chunk}
    e = evaluation(name, net={"name": "mlp", "hidden": []}, likelihood="gaussian", scale=SCALE, how=how, run=run, **changes)
    generator = torch.Generator().manual_seed(5)
    basis = torch.linalg.qr(torch.randn(64, 4, dtype=torch.float64, generator=generator)).Q
    weight, bias = basis * torch.tensor([1.0, 0.8, 0.5, 0.3]).double(), 0.5 + 0.1 * torch.randn(64, generator=generator).double()
    variance = 1 / (1 + weight.square().sum(0) / SCALE**2)
    net: Any = e.model
    (encoder,), (decoder,) = ([m for m in part.modules() if isinstance(m, torch.nn.Linear)] for part in (net.encoder, net.decoder))
    to_mu = (variance[:, None] * weight.T) / SCALE**2
    with torch.no_grad():
        decoder.weight.copy_(weight)
        decoder.bias.copy_(bias)
        encoder.weight.copy_(torch.cat([to_mu, torch.zeros_like(to_mu)]))
        raw = 10 * torch.atanh(variance.log() / 10)  # log-variances are bounded by 10 tanh(raw / 10)
        encoder.bias.copy_(torch.cat([-to_mu @ bias + error, raw + error]))
    x = as_the_model_sees(splits()["test"]).flatten(1)
    covariance = weight @ weight.T + SCALE**2 * torch.eye(64, dtype=torch.float64)
    exact = torch.distributions.MultivariateNormal(bias, covariance).log_prob(x).mean()
    return e, float(exact)


def test_bounds_are_exact_where_the_posterior_is():
    """Every importance weight is p(x)."""
    e, exact = linear()
    found = values(e)
    assert found["elbo"] == pytest.approx(exact, rel=1e-10)
    assert found["iwae_bound"] == pytest.approx(exact, rel=1e-10)


def test_bounds_rise_to_log_p_from_below():
    found = []
    for k in (1, 10, 100, 3000):
        e, exact = linear(0.3, k)
        found.append(values(e)["iwae_bound"])
    assert found[0] == pytest.approx(values(linear(0.3, 1)[0])["elbo"])
    assert found == sorted(found)
    assert found[0] < exact - 0.1
    assert exact - 0.02 < found[-1] < exact + 0.005


def test_the_elbo_is_that_of_the_closed_form():
    """log p(x) - KL(q || posterior), by many samples."""
    e, exact = linear(0.3, 3000)
    variance = torch.tensor([1.0, 0.8, 0.5, 0.3]).double().square().div(SCALE**2).add(1).reciprocal()
    x = as_the_model_sees(splits()["test"])
    mu, logvar = (t.detach() for t in e.model.posterior(x, None))
    true_mu = mu - 0.3
    kl = 0.5 * (variance.log() - logvar - 1 + (logvar.exp() + (mu - true_mu).square()) / variance).sum(1)
    assert values(e)["elbo"] == pytest.approx(exact - float(kl.mean()), abs=0.02)


def test_parts_bound_the_memory_and_are_one_estimate(monkeypatch):
    """Of 7 samples at a time, the logarithm of the mean of all 20 weights."""
    e, _ = linear(0.3, 20, chunk=512)
    monkeypatch.setattr(likelihood, "VALUES", 7 * 512 * 64)
    seen = []
    compute = e.model.log_weights

    def seeing(batch, k, noise):
        seen.append(compute(batch, k, noise))
        return seen[-1]

    monkeypatch.setattr(e.model, "log_weights", seeing)
    found = values(e)
    assert [w.shape[1] for w in seen] == [7, 7, 6]
    weights = torch.cat(seen, 1)
    assert found["iwae_bound"] == pytest.approx(float((weights.logsumexp(1) - math.log(20)).mean()), rel=1e-12)
    assert found["elbo"] == pytest.approx(float(weights.mean()), rel=1e-12)


def test_bits_are_of_the_stored_values():
    e, _ = linear(0.3, 10)
    found = values(e)
    assert found["bits_per_dim"] == pytest.approx((-found["iwae_bound"] / 64 + math.log(255)) / math.log(2))
    assert METRICS["bits_per_dim"].compute(e).protocol["is"].startswith("density of the stored values")


@pytest.mark.parametrize(
    ("binarize", "words"), [("none", "no likelihood"), ("threshold", "probability"), ("stochastic", "probability")]
)
def test_what_x_is_comes_with_the_figure(binarize, words):
    found = METRICS["elbo"].compute(evaluation("vae", run={"data": {"binarize": binarize}}))
    assert words in found.protocol["is"]
    assert found.protocol["binarize"] == binarize


WEIGHTED = [
    name for name in SHIPPED
    if "kl" in ModelConfig.choices()[name].terms and name not in ("hvae", "svae", "categorical_vae")
]  # fmt: skip


@pytest.mark.parametrize("name", WEIGHTED)
def test_weights_have_the_elbo_of_the_variant_as_their_mean(name):
    """By many samples: the variant's own `recon` + `kl` is computed otherwise."""
    e = evaluation(name, **SMALL.get(name, {}), run={"eval_batch_size": 64})
    x, n = as_the_model_sees(splits()["test"]), 37
    batch = Batch(x, splits()["test"].label, None, None, n)
    with torch.no_grad():
        weights: Any = e.model.log_weights(batch, 500, Noise(0, ("a",), Rows(n), torch.device("cpu")))
        noises = [Noise(seed, ("b",), Rows(n), torch.device("cpu")) for seed in range(40)]
        outs = [e.model(batch, e.model.phases()[0].name, noise).per_sample for noise in noises]
    own = torch.stack([-(out["recon"] + out["kl"]) for out in outs])
    spread = float(own.mean(1).std()) / 40**0.5 + float(weights.std(1).mean()) / (500 * n) ** 0.5
    assert float(weights.mean()) == pytest.approx(float(own.mean()), abs=5 * spread + 1e-6)


@pytest.mark.parametrize(("name", "words"), [("ae", "has no bound"), ("svae", "no importance weights")])
def test_what_a_model_lacks_is_skipped(name, words):
    with pytest.raises(Skip, match=words):
        METRICS["iwae_bound"].compute(evaluation(name))


def test_a_model_without_weights_has_its_own_bound():
    assert METRICS["elbo"].compute(evaluation("svae")).protocol["posterior_samples"] == 1
