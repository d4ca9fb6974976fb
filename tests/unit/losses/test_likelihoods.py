"""Every likelihood against torch.distributions or its own definition, in float64; then in every variant."""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from helpers import SHIPPED, settings
from torch import Tensor
from torch.distributions import ContinuousBernoulli, Multinomial, NegativeBinomial, Normal, Poisson
from variants import SMALL as SMALL_MODEL

from distae.config.models import AEConfig, ModelConfig
from distae.config.names import TRAITS
from distae.config.nets import MLPConfig
from distae.data.checks import check_data
from distae.data.splits import Split
from distae.errors import UserError
from distae.evaluation.metrics import squared_error
from distae.losses import Likelihood, build_likelihood
from distae.models import Batch, build
from distae.noise import Noise, Rows

CPU = torch.device("cpu")
FEATURES = 5


def made(name: str, shape: tuple[int, ...] = (FEATURES,), **changes: Any) -> Likelihood:
    return build_likelihood(AEConfig(likelihood=name, **changes), shape).double()


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


COUNTS = torch.tensor([[0, 3, 1, 0, 9], [2, 0, 0, 0, 0], [0, 0, 0, 0, 0]], dtype=torch.float64)
UNIT = torch.rand(3, FEATURES, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
ONE_HOT = torch.eye(FEATURES, dtype=torch.float64)[[0, 3, 2]]
ROWS = torch.tensor([[0.3, -1.2, 1, 0, 1], [2.0, 0.1, 0, 1, 0], [0.0, 0.0, 1, 1, 0]], dtype=torch.float64)
DATA = {"counts": COUNTS, "unit": UNIT, "onehot": ONE_HOT, "real": ROWS}
COLUMNS = ("numeric:2", "binary:1", "categorical:2")


def of_counts(raw: Tensor, x: Tensor) -> Tensor:
    return torch.softmax(raw, 1) * x.sum(1, keepdim=True).clamp_min(1e-8)


def nb(mu: Tensor, theta: Tensor, x: Tensor) -> Tensor:
    """log NB by torch, whose `probs` is mu / (mu + theta)."""
    return NegativeBinomial(theta, probs=mu / (mu + theta), validate_args=False).log_prob(x)


def zinb(raw: Tensor, x: Tensor, theta: Tensor) -> Tensor:
    pi = torch.sigmoid(raw[:, FEATURES : 2 * FEATURES])
    log_nb = nb(of_counts(raw[:, :FEATURES], x), theta, x)
    return torch.where(x == 0, pi + (1 - pi) * log_nb.exp(), (1 - pi) * log_nb.exp()).log()


def theta_of(raw: Tensor) -> Tensor:
    return (10 * torch.tanh(raw[:, -FEATURES:] / 10)).exp()


def rows_of_a_table(raw: Tensor, x: Tensor) -> Tensor:
    p = torch.sigmoid(raw[:, 2])
    category = torch.log_softmax(raw[:, 3:], 1)
    numbers = Normal(raw[:, :2], 0.7).log_prob(x[:, :2]).sum(1)
    return numbers + (x[:, 2] * p.log() + (1 - x[:, 2]) * (1 - p).log()) + (category * x[:, 3:]).sum(1)


ONE = torch.ones(FEATURES, dtype=torch.float64)
REFERENCES: dict[str, tuple[dict[str, Any], Callable[[Tensor, Tensor], Tensor]]] = {
    "continuous_bernoulli": ({}, lambda raw, x: ContinuousBernoulli(logits=raw, lims=(0.4999, 0.5001)).log_prob(x).sum(1)),
    "sigmoid_gaussian": ({"scale": 0.3}, lambda raw, x: Normal(torch.sigmoid(raw), 0.3).log_prob(x).sum(1)),
    "gaussian_per_value": (
        {},
        lambda raw, x: Normal(raw[:, :FEATURES], (5 * torch.tanh(raw[:, FEATURES:] / 10)).exp()).log_prob(x).sum(1),
    ),
    "categorical": ({}, lambda raw, x: torch.log_softmax(raw, 1)[torch.arange(3), x.argmax(1)]),
    "mixed": ({"columns": COLUMNS, "scale": 0.7}, rows_of_a_table),
    "poisson": ({}, lambda raw, x: Poisson(of_counts(raw, x)).log_prob(x).sum(1)),
    "nb": ({}, lambda raw, x: nb(of_counts(raw, x), ONE, x).sum(1)),
    "zinb": ({}, lambda raw, x: zinb(raw, x, ONE).sum(1)),
    "multinomial": (
        {},
        lambda raw, x: torch.stack([Multinomial(int(r.sum()), logits=w).log_prob(r) for w, r in zip(raw, x, strict=True)]),
    ),
}


@pytest.mark.parametrize("name", REFERENCES)
def test_a_likelihood_is_its_reference(name: str) -> None:
    changes, reference = REFERENCES[name]
    likelihood, x = made(name, **changes), DATA[TRAITS[name].support]
    raw = normal(3, *likelihood.raw_shape)
    if name == "multinomial":
        x = x[:2]  # torch has none of no trials
        raw = raw[:2]
    torch.testing.assert_close(likelihood(raw, x), -reference(raw, x), rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(likelihood.per_value(raw, x).sum(1), likelihood(raw, x), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", ["nb", "zinb"])
def test_a_dispersion_per_cell_is_the_last_output(name: str) -> None:
    likelihood = made(name, dispersion="cell")
    assert not list(likelihood.parameters())
    raw = normal(3, *likelihood.raw_shape)
    theta = theta_of(raw)
    expected = nb(of_counts(raw[:, :FEATURES], COUNTS), theta, COUNTS) if name == "nb" else zinb(raw, COUNTS, theta)
    torch.testing.assert_close(likelihood(raw, COUNTS), -expected.sum(1), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", ["poisson", "nb", "zinb"])
@pytest.mark.parametrize("rate", ["softmax", "exp"])
def test_counts_of_one_value_sum_to_one_and_have_that_mean(name: str, rate: str) -> None:
    """Over 0 to 400, the total being fixed by a second value that is not looked at."""
    likelihood = made(name, (2,), count_rate=rate, total=7.0)
    raw = normal(1, *likelihood.raw_shape).expand(401, -1)
    counts = torch.arange(401, dtype=torch.float64)
    total = 7.0
    likelihood.log_rate = lambda raw, x: likelihood.log_shares(raw) + (math.log(total) if rate == "softmax" else 0.0)  # type: ignore
    p = torch.exp(-likelihood.per_value(raw, torch.stack([counts, total - counts], 1))[:, 0])
    assert p.sum().item() == pytest.approx(1, abs=1e-9)
    assert (p * counts).sum().item() == pytest.approx(likelihood.mean(raw)[0, 0].item(), rel=1e-9)


LEVELS = torch.arange(256, dtype=torch.float64) / 255


def test_a_mixture_of_logistics_is_a_distribution_over_256_levels() -> None:
    likelihood = made("logistic_mixture", (1, 1, 1), mixtures=3)
    raw = normal(1, 9, 1, 1) * 0.2
    raw[:, 6:] -= 3.0
    p = torch.exp(-likelihood(raw.expand(256, -1, -1, -1), LEVELS.view(-1, 1, 1, 1)))
    assert p.sum().item() == pytest.approx(1, abs=1e-12)
    assert (p * LEVELS).sum().item() == pytest.approx(likelihood.mean(raw).item(), abs=2e-3)  # the tails end at 0 and 1
    mean, scale = raw[0, 3:6, 0, 0], raw[0, 6:9, 0, 0]
    scale = 7 * torch.tanh(scale / 7)
    edges = torch.sigmoid(((2 * LEVELS[100] - 1) + torch.tensor([[1.0], [-1.0]], dtype=torch.float64) / 255 - mean) / scale.exp())
    expected = (torch.softmax(raw[0, :3, 0, 0], 0) * (edges[0] - edges[1])).sum()
    assert p[100].item() == pytest.approx(expected.item(), rel=1e-9)


def test_colours_are_a_distribution_given_those_before() -> None:
    """p(red) is the sum of p(red, green, blue) over all green and blue; the coefficients of the three have a part in it."""
    likelihood, alone = (made("logistic_mixture", (channels, 1, 1), mixtures=3) for channels in (3, 1))
    raw = normal(1, 30, 1, 1) * 0.2
    raw[:, 12:21] -= 2.0
    whole = torch.stack(torch.meshgrid(LEVELS[100:101], LEVELS, LEVELS, indexing="ij"), -1).view(-1, 3, 1, 1)
    p = torch.exp(-likelihood(raw.expand(len(whole), -1, -1, -1), whole))
    of_red = torch.cat([raw[:, :3], raw[:, 3:12:3], raw[:, 12:21:3]], 1)
    assert p.sum().item() == pytest.approx(torch.exp(-alone(of_red, whole[:1, :1])).item(), rel=1e-9)
    other = raw.clone()
    other[:, 21] += 1
    assert not torch.allclose(likelihood(other, whole[:1]), likelihood(raw, whole[:1]))


EXTREMES = torch.tensor([-1e4, -30.0, -1e-3, 0.0, 1e-3, 30.0, 1e4])


@pytest.mark.parametrize("name", TRAITS)
def test_values_and_gradients_are_finite_at_extremes(name: str) -> None:
    shape = (1, 1, FEATURES) if name == "logistic_mixture" else (FEATURES,)
    likelihood = build_likelihood(AEConfig(likelihood=name, columns=COLUMNS, dispersion="cell"), shape)
    raw = EXTREMES[:, None].expand(-1, likelihood.raw_shape[0]).clone()
    if len(shape) == 3:
        raw = raw[:, :, None, None].expand(-1, -1, 1, FEATURES).clone()
    raw.requires_grad_()
    x = DATA[TRAITS[name].support].float().repeat(3, 1)[:7].view(7, *shape)
    nll = likelihood(raw, x)
    nll.sum().backward()
    assert nll.shape == (7,)
    assert nll.isfinite().all()
    assert raw.grad is not None
    assert raw.grad.isfinite().all()
    assert likelihood.mean(raw).isfinite().all()


def test_a_mean_of_counts_has_the_total_that_is_asked_for() -> None:
    for name in ("poisson", "nb", "multinomial"):
        likelihood = made(name, total=100.0)
        mean = likelihood.mean(normal(3, *likelihood.raw_shape))
        torch.testing.assert_close(mean.sum(1), torch.full((3,), 100.0, dtype=torch.float64))
        torch.testing.assert_close(likelihood.matched(mean, COUNTS).sum(1), COUNTS.sum(1))


@pytest.mark.parametrize("name", sorted(set(TRAITS) - {"logistic_mixture"}))
def test_missing_values_have_no_part(name: str) -> None:
    """The likelihood is the sum over the others; the gradient of a missing value's output is 0 where values are independent."""
    x, hole = DATA[TRAITS[name].support].clone(), torch.zeros(3, FEATURES, dtype=torch.bool)
    hole[0, 1], hole[2] = True, True
    filled = x.masked_fill(hole, 0.0)
    whole, observed = made(name, columns=COLUMNS), made(name, columns=COLUMNS, missing=True)
    raw = normal(3, *whole.raw_shape).requires_grad_()
    nll = observed(raw, x.masked_fill(hole, math.nan))
    torch.testing.assert_close(nll, (whole.per_value(raw, filled) * ~hole).sum(1))
    assert nll[2] == 0
    nll.sum().backward()
    assert raw.grad is not None
    assert raw.grad.isfinite().all()
    if TRAITS[name].plain:
        assert (raw.grad[hole] == 0).all()


NET = MLPConfig(hidden=(12,))


def model_of(variant: str, likelihood: str, shape: tuple[int, ...]) -> ModelConfig:
    """Settings of a small variant with that likelihood, checked for samples of `shape`."""
    columns = ("numeric:40", "binary:20", "categorical:4") if likelihood == "mixed" else ()
    small = settings(model={"name": variant} | SMALL_MODEL.get(variant, {})).model
    model = dataclasses.replace(small, likelihood=likelihood, columns=columns)
    model.check_likelihood(shape)
    model.check(shape, NET)
    return model


def sample_of(likelihood: str, shape: tuple[int, ...]) -> Tensor:
    rng = torch.Generator().manual_seed(0)
    if TRAITS[likelihood].support == "onehot":
        return torch.eye(math.prod(shape))[:6].view(6, *shape)
    x = torch.randint(0, 5, (6, *shape), generator=rng).float()
    return x if TRAITS[likelihood].support == "counts" else (x > 2).float()


QUICK = ("ae", "vae", "masked_ae", "vaegan")


@pytest.mark.parametrize("variant", [v if v in QUICK else pytest.param(v, marks=pytest.mark.slow) for v in SHIPPED])
def test_every_variant_takes_every_likelihood_or_says_why_not(variant: str) -> None:
    taken = 0
    for likelihood in TRAITS:
        shape = (64,) if likelihood == "mixed" and variant != "masked_ae" else (1, 8, 8)
        try:
            model = model_of(variant, likelihood, shape)
        except UserError as error:
            assert "likelihood" in str(error) or "shape" in str(error)  # noqa: PT017
            continue
        autoencoder = build(model, NET, shape)
        x, label = sample_of(likelihood, shape), torch.arange(6) % 10
        for phase in autoencoder.phases():
            out = autoencoder(Batch(x, label, 0, None, 60), phase.name, Noise(0, ("t", phase.name), Rows(6), CPU))
            out.loss.backward()
            assert out.loss.isfinite(), (likelihood, phase.name)
            assert all(p.grad.isfinite().all() for p in autoencoder.parameters() if p.grad is not None), (likelihood, phase.name)
        assert autoencoder.reconstruct(x, label).shape == x.shape
        if model.generative:
            assert autoencoder.sample(3, Noise(0, ("s",), Rows(3), CPU)).shape == (3, *shape)
        taken += 1
    of_means = variant.endswith("_sae")  # a bias in the data's units is shared by both ends
    assert taken >= (1 if variant == "msssim_vae" else 2 if of_means else 5)


@pytest.mark.parametrize(("form", "expected"), [("log1p", COUNTS.log1p()), ("l2", torch.nn.functional.normalize(COUNTS))])
def test_the_encoder_sees_another_form_of_x(form: Any, expected: Tensor) -> None:
    cfg = AEConfig(likelihood="poisson", latent_dim=3)
    plain = build(cfg, NET, (FEATURES,), dtype=torch.float64)
    other = build(dataclasses.replace(cfg, input=form), NET, (FEATURES,), dtype=torch.float64)
    other.encoder.encoder.load_state_dict(plain.encoder.state_dict())  # type: ignore[union-attr, operator]
    torch.testing.assert_close(other.encode(COUNTS).z, plain.encode(expected).z)


def test_the_error_leaves_out_missing_values() -> None:
    cfg = AEConfig(likelihood="gaussian", latent_dim=3, missing=True)
    model = build(cfg, NET, (FEATURES,), dtype=torch.float64)
    x = ROWS.clone()
    x[0, 1], x[2] = math.nan, math.nan
    out = model(Batch(x, None, 0, None, 3), "autoencoder", Noise(0, ("t",), Rows(3), CPU))
    error = squared_error(model, Batch(x), out)
    seen = [0, 2, 3, 4]
    torch.testing.assert_close(error[0], (x[0, seen] - out.recon[0, seen]).square().mean())
    assert error[2] == 0


@pytest.mark.parametrize(
    ("likelihood", "x", "message"),
    [
        ("poisson", [[0.5, 1.0]], "needs counts"),
        ("nb", [[-1.0, 1.0]], "needs counts"),
        ("categorical", [[0.0, 0.0]], "one-hot"),
        ("categorical", [[1.0, 1.0]], "one-hot"),
        ("continuous_bernoulli", [[0.0, 2.0]], r"needs data in \[0, 1\]"),
    ],
)
def test_data_that_a_likelihood_cannot_have(likelihood: str, x: list[list[float]], message: str) -> None:
    cfg = settings(model={"likelihood": likelihood}, global_batch_size=1)
    split = Split.of(torch.tensor(x))
    with pytest.raises(UserError, match=message):
        check_data(cfg, {"train": split})
