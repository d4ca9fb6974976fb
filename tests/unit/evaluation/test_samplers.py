"""Densities of codes against scikit-learn, integrals and finite sequences."""

import itertools
import math
from typing import Any

import numpy as np
import pytest
import torch
from helpers import SHIPPED
from sklearn.mixture import GaussianMixture
from variants import IMAGES_ONLY, make, noise

from distae.config.models import ModelConfig
from distae.errors import UserError
from distae.evaluation import samplers
from distae.evaluation.samplers import FITTED, Fit, check_sampler, labels_of, posterior_samples, samplers_of
from distae.models import Codes
from distae.nn.causal import CausalIndices
from distae.nn.flows import MaskedAutoregressive


def fit(name: str, codes: Codes, how: Fit) -> Any:
    """On one thread, whatever the tests before have set."""
    return samplers.fit(name, lambda: codes, how)


def two_moons(n: int = 1500) -> torch.Tensor:
    """Codes `[n, 2]` that no gaussian fits: two half circles, one of them turned over, with some noise."""
    angle = torch.linspace(0, math.pi, n // 2, dtype=torch.float64)
    upper = torch.stack([angle.cos(), angle.sin()], 1)
    lower = torch.stack([1 - angle.cos(), 0.5 - angle.sin()], 1)
    return torch.cat([upper, lower]) + 0.08 * noise(n).normal(torch.empty(n, 2, dtype=torch.float64))


def from_far(x: torch.Tensor, codes: torch.Tensor) -> float:
    """Share of the samples that are far from all codes."""
    return float((torch.cdist(x, codes).amin(1) > 0.25).double().mean())


def test_a_mixture_draws_from_what_scikit_learn_fits():
    codes = two_moons()
    reference = GaussianMixture(5, random_state=3, max_iter=200).fit(codes.numpy())
    mixture = fit("gmm", Codes(codes), Fit(seed=3, components=5))
    drawn = mixture.draw(20000, noise(20000))
    expected, _ = reference.sample(20000)
    mean = reference.weights_ @ reference.means_
    centred = reference.means_ - mean
    covariance = np.einsum("k,kij->ij", reference.weights_, reference.covariances_ + centred[:, :, None] * centred[:, None])
    np.testing.assert_allclose(drawn.mean(0), mean, atol=0.03)
    np.testing.assert_allclose(drawn.T.cov(correction=0), covariance, atol=0.03)
    assert reference.score(drawn.numpy()) == pytest.approx(reference.score(expected), abs=0.03)
    assert np.bincount(reference.predict(drawn.numpy())) / 20000 == pytest.approx(reference.weights_, abs=0.03)


def test_more_components_than_codes_are_rejected():
    with pytest.raises(UserError, match=r"--components 7: more than the 6 codes that it is fitted to; valid: 1 to 6"):
        fit("gmm", Codes(torch.rand(6, 2, dtype=torch.float64)), Fit(components=7))


@pytest.mark.parametrize("dim", [1, 3])
def test_a_flow_is_invertible_and_its_log_density_has_the_jacobian(dim):
    torch.manual_seed(0)
    flow = MaskedAutoregressive(dim, 8, 2).double()
    for parameter in flow.parameters():
        parameter.data += 0.3 * torch.randn_like(parameter)
    x = torch.randn(7, dim, dtype=torch.float64)
    u, log_det = flow(x)
    torch.testing.assert_close(flow.inverse(u), x)
    for i in range(7):
        jacobian = torch.autograd.functional.jacobian(lambda row: flow(row[None])[0][0], x[i])
        assert float(torch.linalg.slogdet(jacobian).logabsdet) == pytest.approx(log_det[i].item(), abs=1e-9)
    parameters = dict(flow.named_parameters())

    def loss(*values: torch.Tensor) -> torch.Tensor:
        named = dict(zip(parameters, values, strict=True))
        return torch.func.functional_call(flow, named, (x,))[1].sum()

    assert torch.autograd.gradcheck(loss, tuple(p.detach().requires_grad_() for p in parameters.values()))


def test_the_density_of_a_flow_integrates_to_one():
    torch.manual_seed(1)
    flow = MaskedAutoregressive(2, 16, 3).double()
    for parameter in flow.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    u = torch.randn(2000, 2, dtype=torch.float64)
    reach = flow.inverse(u).abs().max().item() * 1.5
    line = torch.linspace(-reach, reach, 401, dtype=torch.float64)
    density = flow.log_prob(torch.cartesian_prod(line, line)).exp().sum() * (line[1] - line[0]) ** 2
    assert float(density.detach()) == pytest.approx(1, abs=0.01)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "steps", "share"), [("flow", 800, 0.07), ("two_stage", 800, 0.11), ("gmm", 0, 0.02)])
def test_samples_are_where_the_codes_are(name, steps, share):
    """A single gaussian puts a tenth of its samples far from all codes."""
    codes = two_moons()
    single = fit("gmm", Codes(codes), Fit(components=1)).draw(1000, noise(1000))
    assert from_far(single, codes) > 0.1
    drawn = fit(name, Codes(codes), Fit(steps=steps)).draw(1000, noise(1000))
    assert from_far(drawn, codes) < share
    np.testing.assert_allclose(drawn.mean(0), codes.mean(0), atol=0.1)
    np.testing.assert_allclose(drawn.std(0), codes.std(0), rtol=0.1)


def test_probabilities_of_all_sequences_sum_to_one():
    torch.manual_seed(0)
    model = CausalIndices(3, 4, 8).double()
    every = torch.tensor([*itertools.product(range(3), repeat=4)])
    log_p = model.log_prob(every).detach()
    assert float(log_p.exp().sum()) == pytest.approx(1, abs=1e-12)
    drawn = model.sample(30000, noise(30000))
    counts = torch.bincount(drawn @ torch.tensor([27, 9, 3, 1]), minlength=81)
    np.testing.assert_allclose(counts / 30000, log_p.exp(), atol=0.01)


def test_a_sequence_depends_on_what_comes_before_it():
    torch.manual_seed(0)
    model = CausalIndices(3, 4, 8)
    rows = torch.tensor([[0, 1, 2, 0], [0, 1, 0, 2]])
    logits = model(rows)
    torch.testing.assert_close(logits[0, :3], logits[1, :3])
    assert not torch.allclose(logits[0, 3], logits[1, 3])


@pytest.mark.slow
def test_indices_are_drawn_as_they_depend_on_each_other():
    """The second index is the first one, the third is free; an index that no sample has is never drawn."""
    first = 7 * (torch.arange(900) % 3)
    indices = torch.stack([first, first, 5 * (torch.arange(900) // 3 % 2)], 1)
    density = fit("pixel", Codes(torch.zeros(900, 1), indices=indices), Fit(steps=80))
    drawn = density.draw(2000, noise(2000))
    assert {*drawn.flatten().tolist()} == {0, 5, 7, 14}
    assert float((drawn[:, 0] == drawn[:, 1]).double().mean()) > 0.95
    assert density.about["used"] == 4
    assert density.about["nats"] == pytest.approx(math.log(6), abs=0.1)


@pytest.mark.slow
@pytest.mark.parametrize("name", FITTED)
def test_the_same_seed_fits_the_same_and_a_row_is_of_its_own_noise(name):
    codes = Codes(two_moons(200), indices=torch.arange(400).view(200, 2) % 5)
    how = Fit(seed=5, steps=5, components=3)
    one, other = (fit(name, codes, how) for _ in range(2))
    drawn = one.draw(40, noise(40))
    assert torch.equal(drawn, other.draw(40, noise(40)))
    torch.testing.assert_close(drawn[:13], one.draw(13, noise(13)))
    assert not torch.equal(drawn, fit(name, codes, how._replace(seed=6)).draw(40, noise(40)))


def test_codes_with_a_posterior_are_samples_of_it():
    mu, logvar = torch.zeros(20000, 2, dtype=torch.float64), torch.tensor([[0.0, math.log(9.0)]]).double().expand(20000, 2)
    z = posterior_samples(Codes(mu, mu, logvar), 0).z
    assert z.std(0).tolist() == pytest.approx([1, 3], rel=0.02)
    assert posterior_samples(Codes(mu), 0).z is mu


@pytest.mark.parametrize("name", SHIPPED)
def test_every_variant_has_a_sampler_or_says_which_are_valid(name):
    cfg = ModelConfig.choices()[name]()
    valid = samplers_of(cfg)
    assert valid
    assert [check_sampler(cfg, sampler) for sampler in valid] == valid
    for sampler in {*FITTED, "normal", "vamp"} - {*valid}:
        with pytest.raises(UserError, match=rf"--sampler {sampler} does not fit {name}; valid: {', '.join(valid)}"):
            check_sampler(cfg, sampler)
    if cfg.generative:
        assert check_sampler(cfg, None) == valid[0] == cfg.prior
    else:
        with pytest.raises(UserError, match=f"{name} has no prior of its own: give --sampler; valid: "):
            check_sampler(cfg, None)
    assert ("pixel" in valid) == (make(name, shape=(1, 8, 8) if name in IMAGES_ONLY else (6,)).num_codes is not None)


def test_labels():
    cvae, vae = (ModelConfig.choices()[name]() for name in ("cvae", "vae"))
    assert labels_of(vae, 3, None) is None
    turns = labels_of(cvae, 12, None)
    assert turns is not None
    assert turns.tolist() == [*range(10), 0, 1]
    with pytest.raises(UserError, match="--label: vae is not conditioned on labels"):
        labels_of(vae, 3, 1)
    with pytest.raises(UserError, match="--label 10: valid: 0 to 9"):
        labels_of(cvae, 3, 10)
