"""Active units, mutual information and KL by dimension of codes whose values are known."""

import math

import pytest
import torch
from helpers import images
from variants import make, noise

from distae.data import Loader
from distae.evaluation.diagnosis import diagnose, warnings
from distae.models import Codes

CPU = torch.device("cpu")
LOADER = Loader(images(50, 4), "none", CPU, torch.float64)


def coded(mu, logvar):
    """A VAE that gives sample i of 50 the posterior i."""
    model = make("vae", shape=(1, 8, 8), latent_dim=mu.shape[1])
    known = LOADER.batch(torch.arange(50), noise(50))[0].flatten(1)

    def encode(x, label=None):
        row = (x.flatten(1)[:, None] == known).all(2).int().argmax(1)
        return Codes(mu[row], mu[row], logvar[row])

    model.encode = encode
    return model


def test_a_dimension_is_active_where_its_mean_varies():
    mu = torch.stack([torch.linspace(-1, 1, 50), torch.full((50,), 0.7), 0.05 * torch.linspace(-1, 1, 50)], 1).double()
    logvar = torch.full_like(mu, math.log(0.25))
    found = diagnose(coded(mu, logvar), LOADER, 20, 0)
    assert found["active_units"] == 1
    expected = 0.5 * (mu.square().mean(0) + 0.25 - 1 - math.log(0.25))
    assert [found[f"kl_dim/{i:03}"] for i in range(3)] == pytest.approx(expected.tolist())


def test_the_kl_of_codes_with_a_place_is_that_of_each_channel(monkeypatch):
    mu = torch.randn(50, 6, generator=torch.Generator().manual_seed(0)).double()
    model = coded(mu, torch.zeros_like(mu))
    flat = diagnose(model, LOADER, 20, 0)
    monkeypatch.setattr(type(model), "code_shape", (1, 3, 2))
    found = diagnose(model, LOADER, 20, 0)
    assert [found[f"kl_dim/{i:03}"] for i in range(2)] == pytest.approx(
        [sum(flat[f"kl_dim/{i:03}"] for i in range(c, 6, 2)) for c in range(2)]
    )
    assert "kl_dim/002" not in found
    assert found["active_units"] == 6


@pytest.mark.parametrize(("spread", "expected"), [(0.0, 0.0), (1000.0, 2 / 5 * math.log(20) * 2 + 1 / 5 * math.log(10))])
def test_information_is_none_of_equal_posteriors_and_all_of_separate_ones(spread, expected):
    """Chunks of 20, 20 and 10 samples, of which the code tells each."""
    mu = spread * torch.arange(50).double()[:, None]
    assert diagnose(coded(mu, torch.zeros_like(mu)), LOADER, 20, 0)["mi"] == pytest.approx(expected, abs=1e-9)


def test_what_has_no_posterior_has_no_diagnosis():
    assert diagnose(make("ae", shape=(1, 8, 8)), LOADER, 20, 0) == {}


def test_no_dimension_has_a_kl_where_the_prior_is_a_mixture():
    assert diagnose(make("vamp_vae", shape=(1, 8, 8)), LOADER, 20, 0).keys() == {"active_units", "mi"}


def test_warnings_name_what_to_try():
    assert not warnings({"active_units": 8.0, "live": 0.5}, 16)
    assert not warnings({}, 16)
    assert "1 of 16 code dimensions" in warnings({"active_units": 1.0}, 16)[0]
    assert "2.0% of the codes" in warnings({"live": 0.02}, 16)[0]
