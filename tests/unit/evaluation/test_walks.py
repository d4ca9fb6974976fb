"""Ways through codes against the formulas, worked out by hand."""

import math

import pytest
import torch
from helpers import SHIPPED
from variants import SMALL, data, make

from distae.evaluation.walks import MOST_DIMENSIONS, between, dimensions, is_spherical
from distae.models import Codes


def test_a_spherical_way_keeps_the_length_and_the_speed():
    a, b = torch.tensor([2.0, 0, 0]), torch.tensor([0, 2.0, 0])
    share = torch.linspace(0, 1, 4)
    angle = share * math.pi / 2
    expected = 2 * torch.stack([angle.cos(), angle.sin(), torch.zeros(4)], 1)
    torch.testing.assert_close(between(a, b, share, spherical=True), expected)
    torch.testing.assert_close(between(a, b, share, spherical=False), torch.stack([2 - 2 * share, 2 * share, torch.zeros(4)], 1))


@pytest.mark.parametrize("spherical", [True, False])
@pytest.mark.parametrize("b", [[1.0, 2.0], [2.0, 4.0], [-1.0, -2.0], [0.0, 0.0]])
def test_every_way_is_finite_and_ends_where_it_should(b, spherical):
    a, b = torch.tensor([1.0, 2.0]), torch.tensor(b)
    way = between(a, b, torch.linspace(0, 1, 5), spherical)
    assert way.isfinite().all()
    torch.testing.assert_close(way[[0, -1]], torch.stack([a, b]), atol=1e-6, rtol=0)


def test_gaussian_priors_alone_are_spherical():
    spherical = {name for name in SHIPPED if is_spherical(make(name, shape=(1, 8, 8), **SMALL.get(name, {})))}
    assert spherical >= {"vae", "beta_vae", "svae", "aae", "wae_mmd", "iaf_vae"}
    assert not spherical & {"ae", "vq_vae", "vamp_vae", "categorical_vae", "rae_l2"}


def test_dimensions_are_sorted_by_their_kl_and_walked_one_at_a_time():
    model, x = make("vae", latent_dim=20), data(50)
    with torch.no_grad():
        codes = model.encode(x)
    assert codes.mu is not None
    assert codes.logvar is not None
    found = dimensions(model, codes, codes)
    kl = 0.5 * (codes.mu.square() + codes.logvar.exp() - 1 - codes.logvar).mean(0)
    assert found.is_kl
    assert found.order.tolist() == kl.argsort(descending=True)[:MOST_DIMENSIONS].tolist()
    torch.testing.assert_close(found.importance, kl[found.order])
    walk = found.walk(torch.tensor([-3.0, 0, 3]))
    assert walk.shape == (16, 3, 20)
    moved = walk - codes.z.mean(0)
    for row, i in enumerate(found.order.tolist()):
        torch.testing.assert_close(moved[row, :, i], torch.tensor([-3.0, 0, 3]).double() * codes.z[:, i].std(correction=0))
        assert not moved[row, :, [j for j in range(20) if j != i]].any()


def test_codes_without_a_kl_are_sorted_by_their_variance():
    model, x = make("ae", latent_dim=5), data(50)
    codes = Codes(model.encode(x).z.detach())
    found = dimensions(model, codes, codes)
    assert not found.is_kl
    torch.testing.assert_close(found.importance, codes.z.var(0, correction=0).sort(descending=True).values)
