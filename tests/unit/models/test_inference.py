"""`distae.Model`: any kind of input, the data's own units, the same numbers in any batches."""

import re
from math import log
from typing import Any

import numpy as np
import pytest
import torch
from helpers import SHIPPED
from variants import IMAGES_ONLY, SMALL, data, make

import distae
from distae.data import Transform
from distae.errors import UserError
from distae.models import Batch
from distae.noise import Noise, Rows

BYTES = (data(150, 2, 4, 3).clamp(0, 1) * 255).round().to(torch.uint8).permute(0, 2, 3, 1).contiguous().numpy()
"""`[N, H, W, C]`."""


def images(name: str = "vae", **changes) -> distae.Model:
    """A model of bytes with the channels last, in float64."""
    return distae.Model(make(name, shape=(2, 4, 3), **changes), Transform(255.0, "channels_last"))


def test_values_are_in_the_datas_own_units_both_ways():
    model = images()
    x = torch.from_numpy(BYTES).permute(0, 3, 1, 2).double() / 255
    with torch.no_grad():
        codes, recon = model.module.encode(x), model.module.reconstruct(x)
    np.testing.assert_allclose(model.encode(BYTES), codes.z, rtol=1e-12)
    logvar: Any = model.codes(BYTES).logvar
    np.testing.assert_allclose(logvar, np.asarray(codes.logvar), rtol=1e-12)
    assert model.codes(BYTES).indices is None
    expected = (recon * 255).permute(0, 2, 3, 1)
    for made in (model(BYTES), model.reconstruct(BYTES), model.decode(model.encode(BYTES))):
        assert made.shape == BYTES.shape
        np.testing.assert_allclose(made, expected, rtol=1e-12)
    np.testing.assert_allclose(model.score(BYTES), (recon - x).square().flatten(1).mean(1), rtol=1e-12)
    assert model.sample(3).shape == (3, 4, 3, 2)


@pytest.mark.parametrize("kind", ["float64", "float32", "uint8", "int64", "strided", "big_endian", "read_only", "list", "frame"])
def test_arrays_of_any_kind(kind):
    x: Any = (data(20) * 200).round().numpy()
    model = distae.Model(make("ae"), Transform(200.0))
    given = {
        "strided": lambda: np.repeat(x, 2, 0)[::2][::-1][::-1], "big_endian": lambda: x.astype(">f8"), "list": x.tolist,
        "read_only": lambda: np.broadcast_to(x, x.shape), "frame": lambda: pytest.importorskip("pandas").DataFrame(x),
    }.get(kind, lambda: x.astype(kind))()  # fmt: skip
    made = model.encode(given)
    assert isinstance(made, np.ndarray)
    np.testing.assert_allclose(made, model.encode(x), rtol=1e-6)


def test_tensors_give_tensors_in_the_models_type():
    x, model = data(20).float(), distae.Model(make("vae")).to(torch.float32)
    for made in (model.encode(x), model(x), model.score(x), model.log_prob(x), model.codes(x).mu):
        assert isinstance(made, torch.Tensor)
        assert made.dtype == torch.float32
        assert not made.requires_grad
    assert model.encode(x.numpy()).dtype == np.float32
    torch.testing.assert_close(model.encode(x), torch.from_numpy(model.encode(x.tolist())))


@pytest.mark.parametrize("method", ["encode", "reconstruct", "score", "log_prob"])
def test_batches_change_nothing(method):
    model = images()
    whole = getattr(model, method)(BYTES)
    for size in (1, 7, 64, 1000):
        np.testing.assert_allclose(getattr(model, method)(BYTES, batch_size=size), whole, rtol=1e-10)
    z = model.encode(BYTES)
    np.testing.assert_allclose(model.decode(z, batch_size=9), model.decode(z), rtol=1e-10)


def test_no_batch_is_larger_than_asked_for():
    seen, model = list[int](), images()
    encoder: Any = model.module.encoder
    encoder.register_forward_hook(lambda module, given, made: seen.append(len(given[0])))
    model.encode(BYTES, batch_size=64)
    assert seen == [64, 64, 22]


def test_samples_are_keyed_by_the_seed_alone():
    model = images()
    first = model.sample(100, seed=1)
    assert np.array_equal(first, model.sample(100, seed=1))
    assert np.array_equal(first[:64], model.sample(70, seed=1)[:64])
    assert not np.array_equal(first[64:], first[: 100 - 64])
    assert not np.array_equal(first, model.sample(100, seed=2))
    assert len(np.unique(first.reshape(100, -1), axis=0)) == 100


@pytest.mark.parametrize("name", SHIPPED)
def test_every_variant_has_a_bound_or_says_so(name):
    """Of the terms that it reports: `variants.md` and the tests of each variant say what they are."""
    small: dict[str, Any] = {**_image(name), **SMALL.get(name, {})}
    model = distae.Model(make(name, **small))
    x, label = data(12, *model.shape), np.arange(12) % 10 if model.module.cfg.conditional else None
    if "kl" not in model.module.cfg.terms:
        with pytest.raises(UserError, match=f"{name} gives no probability of x"):
            model.log_prob(x, label)
        return
    made, phase = model.log_prob(x, label, seed=3, batch_size=5), model.module.phases()[0].name
    labels = None if label is None else torch.from_numpy(label)
    noise = Noise(3, ("log_prob",), Rows(12), torch.device("cpu"))
    with torch.no_grad():
        terms = model.module(Batch(x, labels, dataset_size=12), phase, noise).per_sample
    elbo = -(terms["recon"] + terms["kl"])
    expected = elbo if "iwae" not in name else -terms["loss"]
    torch.testing.assert_close(made, expected.detach(), rtol=1e-9, atol=1e-9)


def _image(name: str) -> dict[str, tuple[int, ...]]:
    return {"shape": (1, 8, 8)} if name in IMAGES_ONLY else {}


def test_the_bound_is_below_the_likelihood():
    """A linear decoder with gaussian noise has a likelihood in closed form."""
    model = make("vae", latent_dim=2, layers=(), scale=0.5)
    layer = next(m for m in model.decoder.modules() if isinstance(m, torch.nn.Linear))
    x = data(2000)
    cov = layer.weight @ layer.weight.T + 0.25 * torch.eye(6).double()
    exact = torch.distributions.MultivariateNormal(layer.bias, cov).log_prob(x)
    bound = torch.stack([distae.Model(model).log_prob(x, seed=s) for s in range(20)]).mean()
    assert bound < exact.mean() < bound + 10


def test_conditional_variants_take_labels():
    model, x = distae.Model(make("cvae", classes=3)), data(10).numpy()
    label = np.arange(10) % 3
    assert not np.array_equal(model.encode(x, label), model.encode(x, (label + 1) % 3))
    np.testing.assert_allclose(model.encode(x, label.tolist(), batch_size=4), model.encode(x, label), rtol=1e-10)
    assert model.sample(5, label=[0] * 5).shape == (5, 6)
    for wrong in (None, label[:5], label + 1.0, label + 1):
        with pytest.raises(UserError, match=r"needs label, \[N\] integers|expected \[10\] integers|expected 0 to 2"):
            model.encode(x, wrong)


SAMPLE = np.zeros((4, 3, 2))
WRONG = [
    (BYTES[0], "x is one sample of shape [4, 3, 2]; expected [N, 4, 3, 2], N from 1 on: give x[None]"),
    (BYTES[..., 0], "x has shape [150, 4, 3]; expected [N, 4, 3, 2], N from 1 on"),
    (BYTES.transpose(0, 3, 1, 2), "x has shape [150, 2, 4, 3]; expected [N, 4, 3, 2]"),
    (BYTES[:0], "x has shape [0, 4, 3, 2]; expected"),
    (np.full((3, 4, 3, 2), np.nan), "x contains NaN or infinite values, first in sample 0"),
    (np.full((1, 4, 3, 2), np.inf), "x contains NaN or infinite values"),
    (BYTES.astype(str), "x is of type <U3; expected integers or floating point numbers"),
    (BYTES.astype(complex), "x is of type complex128; expected"),
    ([[1.0], [2.0, 3.0]], "x is not an array of numbers: "),
    (torch.zeros(2, 4, 3, 2, dtype=torch.complex64), "x is a tensor of complex64"),
    (None, "x has shape []; expected [N, 4, 3, 2]"),
    (BYTES / 255, "x contains fractions up to 1; this model takes bytes up to 255, as its training data: give x * 255"),
]


@pytest.mark.parametrize(("x", "message"), WRONG, ids=range(len(WRONG)))
def test_wrong_input_is_named(x, message):
    with pytest.raises(UserError, match="^" + re.escape(message)) as caught:
        images().encode(x)
    assert "\n" not in str(caught.value)


def test_wrong_codes_and_numbers_are_named():
    model = images("ae")
    with pytest.raises(UserError, match=r"^z has shape \[5, 4\]; expected \[N, 3\]"):
        model.decode(np.zeros((5, 4)))
    with pytest.raises(UserError, match="ae has no prior to sample from"):
        model.sample(3)
    wrong: list[Any] = [0, -1, 2.5, True]
    for n in wrong:
        with pytest.raises(UserError, match=r"n is .*; expected a whole number from 1 on"):
            images().sample(n)
    with pytest.raises(UserError, match="batch_size is 0; expected a whole number"):
        model.encode(BYTES, batch_size=0)
    with pytest.raises(UserError, match=r"x contains integers up to 255; this model takes values in \[0, 1\]: give x / 255"):
        distae.Model(make("vae", shape=(4, 3, 2), likelihood="bernoulli")).encode(BYTES)


def test_bits_per_value_of_a_decoder_that_knows_nothing():
    """-log 2 per binary value is the bound of a decoder that always says one half, with a posterior equal to the prior."""
    model = make("vae", likelihood="bernoulli")
    for p in model.parameters():
        torch.nn.init.zeros_(p)
    x = (data(9) > 0.5).double().numpy()
    np.testing.assert_allclose(distae.Model(model).log_prob(x), -6 * log(2), rtol=1e-12)
