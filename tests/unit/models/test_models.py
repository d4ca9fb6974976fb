"""The contract that every variant keeps."""

import json
from math import prod
from typing import Any, ClassVar
from unittest import mock

import pytest
import torch
from helpers import EVERY, fitted, settings, spy
from variants import SMALL

import distae
from distae.config.models import ModelConfig
from distae.errors import UserError
from distae.losses import kl_standard_normal
from distae.models import Autoencoder, Batch, NetAutoencoder, build, register, registry
from distae.noise import Noise, Rows

CPU = torch.device("cpu")
LABELS = torch.arange(6)
VARIANTS = sorted(ModelConfig.choices())


def made(name: str, shape: tuple[int, ...] = (1, 8, 8), **model: object) -> Any:
    """A variant in float64, whose class is known by name only."""
    cfg = settings(model={"name": name} | SMALL.get(name, {}) | model)
    return build(cfg.model, cfg.net, shape, seed=1, dtype=torch.float64)


def reconstructs_its_codes(model: Autoencoder) -> bool:
    """Whether `reconstruct` is `decode(encode(x).z)`, as it is unless the variant says otherwise (masked_ae hides patches)."""
    return type(model).reconstruct is Autoencoder.reconstruct


def noise_for(n: int) -> Noise:
    return Noise(0, ("test",), Rows(n), CPU)


def test_the_contract_is_abstract_and_every_variant_implements_it():
    assert Autoencoder.__abstractmethods__ == {"forward", "encode", "decode", "code_shape"}
    assert NetAutoencoder.__abstractmethods__ == {"forward", "encode"}
    assert {cls for cls in registry().values() if cls.__abstractmethods__} == set()


def test_a_variant_that_lacks_a_method_is_not_registered():
    class Config(ModelConfig):
        name: ClassVar[str] = "no_forward"

    with pytest.raises(TypeError, match="NoForward, registered for --model no_forward, does not define forward"):

        @register(Config)
        class NoForward(NetAutoencoder):
            def encode(self, x, label=None): ...


@pytest.mark.parametrize("name", VARIANTS)
def test_no_network_is_built_twice(name):
    modules, init = [], torch.nn.Module.__init__

    def recording(self, *args, **kwargs):
        modules.append(self)
        init(self, *args, **kwargs)

    with mock.patch.object(torch.nn.Module, "__init__", recording):
        model = made(name)
    assert {id(m) for m in modules} == {id(m) for m in model.modules()}


@pytest.mark.parametrize("name", [n for n in VARIANTS if issubclass(registry()[ModelConfig.choices()[n]], NetAutoencoder)])
def test_codes_may_keep_their_place(name):
    """`latent_dim` channels at each of 2x2 positions; a `linear_ae` has no network to choose."""
    cfg = settings(model={"name": name} | SMALL.get(name, {}), net={"name": "conv", "spatial": True})
    model: Any = build(cfg.model, cfg.net, (1, 8, 8), seed=1, dtype=torch.float64)
    assert model.code_shape == ((cfg.model.latent_dim,) if name == "linear_ae" else (2, 2, cfg.model.latent_dim))
    x = torch.rand(6, 1, 8, 8, dtype=torch.float64)
    assert all(model(Batch(x, LABELS, dataset_size=100), phase.name, noise_for(6)).loss.isfinite() for phase in model.phases())
    codes = model.encode(x, LABELS)
    assert codes.z.shape == (6, prod(model.code_shape))
    assert model.decode(codes.z, LABELS).shape == x.shape
    if codes.indices is not None:
        assert torch.equal(model.from_indices(codes.indices), codes.z)
    if cfg.model.generative:
        assert model.sample(3, noise_for(3)).shape == (3, 1, 8, 8)


@pytest.mark.parametrize("name", VARIANTS)
def test_each_builder_is_called_once(name):
    cls, calls = registry()[ModelConfig.choices()[name]], []
    if not issubclass(cls, NetAutoencoder):
        pytest.skip("it brings its own networks")

    def counting(builder):
        return spy(builder, lambda self: calls.append(builder.__name__))

    with (
        mock.patch.object(cls, "build_encoder", counting(cls.build_encoder)),
        mock.patch.object(cls, "build_decoder", counting(cls.build_decoder)),
    ):
        made(name)
    assert calls == ["build_encoder", "build_decoder"]


@pytest.mark.parametrize("name", VARIANTS)
def test_a_variant_reports_the_terms_it_declares(name):
    model, x = made(name), torch.rand(6, 1, 8, 8, dtype=torch.float64)
    outs = [model(Batch(x, LABELS, dataset_size=100), phase.name, noise_for(6)) for phase in model.phases()]
    for out in outs:
        assert out.loss.shape == ()
        assert out.recon.shape == x.shape
        assert all(v.shape == (6,) for v in out.per_sample.values())
        assert all(v.shape == () for v in out.per_batch.values())
    assert "loss" in outs[0].per_sample
    assert {k for out in outs for k in (*out.per_sample, *out.per_batch)} == {"loss", *model.cfg.terms}


@pytest.mark.parametrize("shape", [(1, 8, 8), (5,), (3, 4, 6)])
@pytest.mark.parametrize("name", VARIANTS)
def test_codes_and_reconstructions(name, shape):
    cfg = settings(model={"name": name} | SMALL.get(name, {}))
    try:
        cfg.model.check(shape, cfg.net)
    except UserError as refusal:
        pytest.skip(str(refusal))
    model = made(name, shape).eval()
    x, label = torch.rand(3, *shape, dtype=torch.float64), LABELS[:3]
    codes = model.encode(x, label)
    assert codes.z.shape == (3, prod(model.code_shape))
    assert model.decode(codes.z, label).shape == model.reconstruct(x, label).shape == x.shape
    if reconstructs_its_codes(model):
        assert torch.equal(model.decode(codes.z, label), model.reconstruct(x, label))


@pytest.mark.parametrize("name", VARIANTS)
def test_a_bernoulli_mean_is_a_probability(name):
    try:
        model = made(name, likelihood="bernoulli").eval()
    except UserError:
        return  # it says that it has no such likelihood
    recon = model.reconstruct(torch.rand(3, 1, 8, 8, dtype=torch.float64), LABELS[:3])
    assert 0 <= recon.min() <= recon.max() <= 1


@pytest.mark.parametrize("name", VARIANTS)
def test_those_with_a_prior_sample_and_the_others_say_so(name):
    model = made(name).eval()
    if model.cfg.generative:
        assert model.sample(7, noise_for(7)).shape == (7, 1, 8, 8)
        assert torch.equal(model.sample(7, noise_for(7)), model.sample(7, noise_for(7)))
    else:
        with pytest.raises(NotImplementedError, match=f"{name} has no prior to sample from"):
            model.sample(7, noise_for(7))


@pytest.mark.parametrize("name", VARIANTS)
def test_every_parameter_has_its_phase(name):
    model = made(name)
    assert {p for phase in model.phases() for p in phase.parameters} == set(model.parameters())


@pytest.mark.parametrize("name", VARIANTS)
def test_initial_weights_depend_on_the_seed_alone(name):
    torch.manual_seed(0)
    first = made(name).state_dict()
    torch.manual_seed(1)
    assert all(torch.equal(first[k], v) for k, v in made(name).state_dict().items())
    cfg = settings(model={"name": name} | SMALL.get(name, {}))
    single = build(cfg.model, cfg.net, (1, 8, 8), seed=1)
    assert all(torch.equal(first[k], v.to(first[k].dtype)) for k, v in single.state_dict().items())
    other = build(cfg.model, cfg.net, (1, 8, 8), seed=2)
    assert not torch.equal(next(single.parameters()), next(other.parameters()))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("name", VARIANTS)
def test_initial_weights_do_not_depend_on_the_device(name):
    cfg = settings(model={"name": name} | SMALL.get(name, {}))
    there = build(cfg.model, cfg.net, (1, 8, 8), seed=1, device=torch.device("cuda")).state_dict()
    assert all(torch.equal(there[k].cpu(), v) for k, v in build(cfg.model, cfg.net, (1, 8, 8), seed=1).state_dict().items())


def test_an_elbo_is_reconstruction_plus_beta_times_kl():
    model, x = made("vae", beta=4.0), torch.rand(6, 1, 8, 8, dtype=torch.float64)
    out, codes = model(Batch(x), "autoencoder", noise_for(6)), model.encode(x)
    torch.testing.assert_close(out.per_sample["kl"], kl_standard_normal(codes.mu, codes.logvar))
    torch.testing.assert_close(out.loss, (out.per_sample["recon"] + 4 * out.per_sample["kl"]).mean())
    z = codes.mu + noise_for(6).normal(codes.mu) * (0.5 * codes.logvar).exp()
    torch.testing.assert_close(model.likelihood(model.decoder(z, None), x), out.per_sample["recon"])


def test_a_code_activation_bounds_the_code():
    x = torch.rand(50, 1, 8, 8, dtype=torch.float64)
    plain = made("ae").encode(x).z
    assert torch.equal(made("ae", code_activation="relu").encode(x).z, plain.relu())
    assert plain.min() < 0


@pytest.mark.parametrize("name", VARIANTS)
def test_an_outlier_stays_finite(name):
    model = made(name).float()
    out = model(Batch(torch.full((2, 1, 8, 8), 1e8), LABELS[:2], dataset_size=100), model.phases()[0].name, noise_for(2))
    assert out.loss.isfinite()


@pytest.mark.parametrize(
    "net",
    [
        {"name": "mlp"},
        pytest.param({"name": "conv", "norm": "layer"}, marks=pytest.mark.slow),
        pytest.param({"name": "resnet"}, marks=pytest.mark.slow),
    ],
)
@pytest.mark.parametrize("name", EVERY)
def test_a_finished_run_is_loaded_in_one_line(name, net, tmp_path):
    trainer = fitted(settings(model={"name": name} | SMALL.get(name, {}), net=net, steps=3), tmp_path)
    model, trained = distae.load(tmp_path).module, trainer.train_step.model.eval()
    assert not model.training
    x, label = trainer.loaders["test"].batch(torch.arange(5), noise_for(5))
    with torch.no_grad():
        assert torch.equal(model.encode(x, label).z, trained.encode(x, label).z)
        assert torch.equal(model.reconstruct(x, label), trained.reconstruct(x, label))
        if reconstructs_its_codes(model):
            assert torch.equal(model.decode(model.encode(x, label).z, label), trained.reconstruct(x, label))
        if model.cfg.generative:
            assert torch.equal(model.sample(4, noise_for(4)), trained.sample(4, noise_for(4)))


@pytest.mark.parametrize("net", ["mlp", "conv", "resnet"])
def test_the_statistics_of_a_batch_norm_are_loaded_too(net, tmp_path):
    trainer = fitted(settings(net={"name": net, "norm": "batch"}, steps=3), tmp_path)
    x, _ = trainer.loaders["test"].batch(torch.arange(5), noise_for(5))
    with torch.no_grad():
        assert torch.equal(distae.load(tmp_path).module.reconstruct(x), trainer.train_step.model.eval().reconstruct(x))


def test_no_finished_run_is_the_users_mistake(tmp_path):
    with pytest.raises(UserError, match=r"no finished run in .*: model/ is missing"):
        distae.load(tmp_path)


@pytest.mark.parametrize("damage", ["{", "{}", '{"model": {"name": "no"}, "net": {}, "shape": [1]}'])
def test_a_damaged_description_is_reported(damage, tmp_path):
    fitted(settings(steps=1), tmp_path)
    (tmp_path / "model" / "config.json").write_text(damage)
    with pytest.raises(UserError, match=r"config.json is missing or damaged|--model: unknown 'no'"):
        distae.load(tmp_path)


def test_weights_of_another_size_are_reported(tmp_path):
    fitted(settings(steps=1), tmp_path)
    config = tmp_path / "model" / "config.json"
    about = json.loads(config.read_text())
    about["model"]["latent_dim"] = 5
    config.write_text(json.dumps({k: v for k, v in about.items() if k != "xxh3"}))
    with pytest.raises(UserError, match="the weights do not match the model's settings"):
        distae.load(tmp_path)


def test_weights_are_taken_over_from_a_finished_run(tmp_path):
    first = fitted(settings(steps=5), tmp_path / "first")
    second = fitted(settings(steps=1, optim={"lr": 1e-30}, seed=9, init_from=str(tmp_path / "first")), tmp_path / "second")
    pairs = zip(first.train_step.model.parameters(), second.train_step.model.parameters(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)
    assert second.state.step == 1
