"""Preprocessed input of the encoder: logarithms, unit vectors, missing values; and variants that use x itself."""

import math
from typing import Any

import pytest
import torch
from helpers import settings
from torch import Tensor
from variants import make, run

from distae.config.names import TRAITS
from distae.config.registry import REGISTRIES
from distae.data.checks import check_data
from distae.data.splits import Split
from distae.errors import UserError
from distae.losses import Likelihood, register_likelihood

COUNTS = torch.tensor([[0, 3, 1, 0, 9, 2], [2, 0, 0, 4, 0, 0], [1, 1, 7, 0, 0, 1]], dtype=torch.float64)


@pytest.mark.parametrize("form", ["log1p", "l2"])
def test_a_contraction_is_of_the_code_by_x_and_not_by_what_the_encoder_sees(form: str) -> None:
    model = make("contractive_ae", layers=(), likelihood="poisson", input=form, code_activation="tanh")
    jacobians = [torch.autograd.functional.jacobian(lambda v: model.encode(v[None]).z[0], row) for row in COUNTS]
    exact = torch.stack([j.square().sum() for j in jacobians])
    estimates = run(model, COUNTS.repeat(4000, 1)).per_sample["contraction"].view(4000, 3)
    torch.testing.assert_close(estimates.mean(0), exact, rtol=0.1, atol=0)


def test_a_corrupted_count_below_minus_one_has_a_logarithm() -> None:
    assert run(make("denoising_ae", likelihood="poisson", input="log1p", std=3.0), COUNTS).loss.isfinite()


def test_labels_are_seen_as_they_are() -> None:
    model, label = make("cvae", likelihood="poisson", input="l2", classes=3), torch.tensor([0, 1, 2])
    seen: list[Tensor] = []
    model.encoder.encoder.register_forward_pre_hook(lambda _, args: seen.append(args[0]))  # type: ignore[union-attr, operator]
    model.encode(COUNTS, label)
    torch.testing.assert_close(seen[0], torch.cat([torch.nn.functional.normalize(COUNTS), torch.eye(3).double()], 1))


def test_a_plugins_likelihood_of_one_output_per_value_is_plain() -> None:
    """masked_ae takes it, as it did before likelihoods had traits."""
    registry = REGISTRIES["likelihood"]
    try:
        for name, outputs in (("of_one_output", 1), ("of_two_outputs", 2)):
            register_likelihood(name)(type("Made", (Likelihood,), {"factor": outputs}))
        settings(model={"name": "masked_ae", "latent_dim": 8, "patch": 4, "likelihood": "of_one_output"})
        with pytest.raises(UserError, match=r"masked_ae: valid with --model\.likelihood"):
            settings(model={"name": "masked_ae", "latent_dim": 8, "patch": 4, "likelihood": "of_two_outputs"})
    finally:
        for name in ("of_one_output", "of_two_outputs"):
            registry.pop(name)
            TRAITS.pop(name)


@pytest.mark.parametrize("likelihood", ["poisson", "nb", "zinb", "multinomial", "categorical"])
def test_where_a_sample_is_needed_whole_no_value_may_be_missing(likelihood: str) -> None:
    """Otherwise shares of all values would be multiplied by the total of some."""
    with pytest.raises(UserError, match=f"--model.missing: the {likelihood} likelihood does not support missing values"):
        settings(model={"likelihood": likelihood, "missing": True})
    if likelihood not in ("multinomial", "categorical"):
        settings(model={"likelihood": likelihood, "missing": True, "count_rate": "exp"})


def test_missing_values_are_not_binarized() -> None:
    with pytest.raises(UserError, match=r"--data.binarize threshold cannot be used with missing values"):
        settings(model={"missing": True}, data={"binarize": "threshold"})


def checked(x: list[list[float]], **model: object) -> None:
    rows = torch.tensor(x)
    cfg = settings(model=model, global_batch_size=1)
    check_data(cfg, {"train": Split.of(rows)})


TABLE = {"likelihood": "mixed", "columns": ("numeric:1", "binary:1", "categorical:62")}
PAD = [0.0] * 61


@pytest.mark.parametrize(
    ("x", "model", "message"),
    [
        ([[0.2, math.nan]], {}, r"missing values \(NaN\): set --model.missing true"),
        ([[math.nan, 2.0]], {"missing": True}, r"needs data in \[0, 1\].*\[0, 2\]"),
        ([[math.nan, 2.0]], {"likelihood": "poisson"}, "needs counts"),
        ([[-0.5, 2.0]], {"likelihood": "gaussian", "input": "log1p"}, "input log1p needs values from 0 on.* down to -0.5"),
    ],
)
def test_values_that_cannot_be_trained_on_are_found_before_training(
    x: list[list[float]], model: dict[str, object], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        checked(x, **model)


@pytest.mark.parametrize(
    ("row", "missing", "message"),
    [
        ([5.0, 0.5, 1.0, *PAD], False, None),
        ([5.0, 2.0, 1.0, *PAD], False, r"needs values in \[0, 1\]"),
        ([5.0, 1.0, 0.0, *PAD], False, "needs one-hot values"),
        ([math.nan, 1.0, 1.0, *PAD], False, "needs finite numbers"),
        ([math.nan, math.nan, *[math.nan] * 62], True, None),
        ([0.0, 0.0, math.nan, *PAD], True, "needs one-hot values"),
    ],
)
def test_each_column_of_a_table_has_its_values(row: list[float], missing: bool, message: str | None, monkeypatch) -> None:
    monkeypatch.setattr("distae.config.data.digits.DigitsConfig.shape", lambda self: (64,))
    if message is None:
        checked([row], missing=missing, **TABLE)
    else:
        with pytest.raises(UserError, match=message):
            checked([row], missing=missing, **TABLE)


def test_an_autoencoder_of_a_table_with_missing_values_is_finite() -> None:
    x = COUNTS.clone()
    x[0, 1], x[2] = math.nan, math.nan
    for name in ("ae", "denoising_ae", "contractive_ae", "vae", "wae_gan", "hvae"):
        further: dict[str, Any] = {"hidden": 8} if name == "hvae" else {}
        out = run(make(name, missing=True, **further), x)
        assert out.loss.isfinite(), name


def test_values_are_hidden_from_the_encoder_in_training_alone() -> None:
    model, x = make("ae", likelihood="multinomial", input="l2", input_dropout=0.5), COUNTS.repeat(500, 1)
    seen: list[Tensor] = []
    model.encoder.encoder.register_forward_pre_hook(lambda _, args: seen.append(args[0]))  # type: ignore[union-attr, operator]
    run(model, x)
    run(model.eval(), x)
    in_training, whole = seen
    torch.testing.assert_close(whole, torch.nn.functional.normalize(x))
    assert ((in_training == 0) | torch.isclose(in_training, 2 * whole)).all()
    assert (in_training[x > 0] == 0).double().mean() == pytest.approx(0.5, abs=0.03)


def test_one_dispersion_for_all_values() -> None:
    model = make("ae", likelihood="nb", dispersion="constant")
    assert model.likelihood.log_theta.shape == ()
    run(model, COUNTS).loss.backward()
    assert model.likelihood.log_theta.grad.isfinite()
