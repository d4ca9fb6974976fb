"""distae export: what is written is the model, in the data's own units, for any batch size, or the reason is known."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import IS_OLDEST, SHIPPED
from variants import SMALL, make

import distae
from distae.commands import export
from distae.config import TrainConfig, build
from distae.data import Transform
from distae.errors import UserError
from distae.models import export as graphs
from distae.models import serialization
from distae.models.inference import Model

SHAPES = {"masked_ae": (1, 4, 4), "msssim_vae": (1, 4, 4), "tokenizer": (1, 8, 8)}
CHANGES: dict[str, dict[str, Any]] = {name: {"latent_dim": 4} for name in ("fsq_vae", "vq_vae", "rq_vae")} | SMALL


def of_images(name: str = "vae", **changes: Any) -> Model:
    """A model of bytes with the channels last, in float32."""
    module = make(name, shape=(2, 4, 3), **{"likelihood": "bernoulli", **changes}).eval().float()
    return Model(module, Transform(255.0, "channels_last"))


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    """The run folder of a model of `[8, 8]` bytes."""
    folder = tmp_path_factory.mktemp("runs") / "a"
    data = {"name": "array", "path": "x.npy"}
    model = {"name": "vae", "latent_dim": 3}
    cfg = build(TrainConfig, {"model": model, "net": {"name": "mlp", "hidden": [16]}, "data": data})
    made = distae.models.build(cfg.model, cfg.net, (1, 8, 8), 3)
    serialization.export(made, cfg, folder / "model", 12, Transform(255.0, "no_channel"), None)
    return folder


def called(*words: object) -> int:
    return export.main([*map(str, words)], "distae export")


BYTES = np.random.default_rng(0).integers(0, 256, (5, 8, 8)).astype(np.uint8)


@pytest.mark.slow
@pytest.mark.parametrize("name", SHIPPED)
def test_every_variant_is_exported_as_onnx_and_torch_export(name, tmp_path):
    """Write checks both against the model to 1e-5 on another batch size than the traced one."""
    if IS_OLDEST and name == "masked_ae":
        pytest.skip("torch 2.11 cannot write its reconstruct as ONNX: the command ends with that message")
    model = Model(make(name, shape=SHAPES.get(name, (6,)), **CHANGES.get(name, {})).eval().float())
    found = graphs.write(model, tmp_path, "onnx", "torch_export")
    assert set(found) == {"encode", "decode", *(["reconstruct"] if name == "masked_ae" else [])}
    assert max(found.values()) <= 1e-5
    assert {p.name for p in tmp_path.iterdir()} == {f"{graph}.{kind}" for graph in found for kind in ("onnx", "pt2")}


@pytest.mark.slow
@pytest.mark.parametrize(
    "likelihood", ["bernoulli", "gaussian_per_value", "laplace", "logistic_mixture", "poisson", "zinb", "multinomial"]
)
def test_every_kind_of_likelihood_is_exported(likelihood, tmp_path):
    shape = (1, 4, 4) if likelihood == "logistic_mixture" else (6,)
    model = Model(make("vae", shape=shape, likelihood=likelihood).eval().float())
    found = graphs.write(model, tmp_path, "onnx")
    assert max(found.values()) <= 1e-5
    assert ("reconstruct" in found) == (likelihood in ("poisson", "zinb", "multinomial")), "counts have the totals of x"


@pytest.mark.slow
@pytest.mark.parametrize("net", [{"name": "conv", "channels": [4]}, {"name": "resnet", "channels": [4, 8], "norm": "batch"}])
def test_networks_of_images_are_exported(net, tmp_path):
    cfg = build(TrainConfig, {"model": {"name": "vq_vae", "latent_dim": 16, "dim": 4}, "net": net})
    model = Model(distae.models.build(cfg.model, cfg.net, (1, 8, 8), 1), Transform(255.0, "no_channel"))
    assert max(graphs.write(model, tmp_path, "onnx", "torch_export").values()) <= 1e-5


def of_table(normalize: str) -> Model:
    """A table of two numbers and a category of three texts."""
    from distae.data.columns import Scaled

    quantiles = (0.0, 1.0, 5.0) if normalize == "quantile" else ()
    numbers = [Scaled(name=name, kind="numeric", offset=2.0, scale=3.0, quantiles=quantiles, fill=1.0) for name in "ab"]
    columns = (*numbers, Scaled(name="c", kind="categorical", categories=("x", "y", "z"), fill=0.0))
    module = make("vae", shape=(5,), likelihood="mixed", columns=("numeric:2", "categorical:3")).eval().float()
    return Model(module, Transform(columns=columns))


@pytest.mark.slow
def test_tables_take_their_columns(tmp_path):
    if IS_OLDEST:
        pytest.skip("torch 2.11 cannot write categories as ONNX: the command ends with that message")
    onnxruntime = pytest.importorskip("onnxruntime")
    model = of_table("standard")
    graphs.write(model, tmp_path, "onnx")
    x = np.array([[2.0, 5, 0], [np.nan, 1, 2], [0, np.nan, 1]])
    (z, *_) = onnxruntime.InferenceSession(tmp_path / "encode.onnx").run(None, {"x": x})
    np.testing.assert_allclose(z, model.encode(x), atol=1e-5)
    (y,) = onnxruntime.InferenceSession(tmp_path / "decode.onnx").run(None, {"z": z})
    np.testing.assert_allclose(y, model.decode(z), rtol=1e-5)
    graphs.write(of_table("quantile"), tmp_path, "torch_export")
    with pytest.raises(UserError, match=r"encode of vae cannot be exported as onnx: .*searchsorted"):
        graphs.write(of_table("quantile"), tmp_path, "onnx")


def test_torch_export_takes_the_datas_own_units(tmp_path):
    model = of_images()
    graphs.write(model, tmp_path, "torch_export")
    x = np.random.default_rng(0).integers(0, 256, (6, 4, 3, 2)).astype(np.float32)
    encode, decode = (torch.export.load(tmp_path / f"{name}.pt2").module() for name in ("encode", "decode"))
    z, mu, _ = encode(torch.from_numpy(x))
    np.testing.assert_allclose(z.detach(), model.encode(x), atol=1e-5)
    assert torch.equal(z, mu)
    np.testing.assert_allclose(decode(z).detach(), model.reconstruct(x), rtol=1e-5, atol=1e-3)


@pytest.mark.slow
def test_onnx_takes_the_datas_own_units_by_name(run, tmp_path):
    onnxruntime = pytest.importorskip("onnxruntime")
    assert called(run, "--format", "onnx", "--out", tmp_path / "onnx") == 0
    files = {p.stem: onnxruntime.InferenceSession(p) for p in (tmp_path / "onnx").iterdir()}
    model, x = distae.load(run), BYTES.astype(np.float32)
    assert [o.name for o in files["encode"].get_outputs()] == ["z", "mu", "logvar"]
    for rows in (1, 5):
        (z, *_) = files["encode"].run(None, {"x": x[:rows]})
        np.testing.assert_allclose(z, model.encode(x[:rows]), atol=1e-5)
        (y,) = files["decode"].run(None, {"z": z})
        np.testing.assert_allclose(y, model.reconstruct(x[:rows]), atol=1e-3)


def test_a_graph_that_differs_is_an_error(tmp_path, monkeypatch):
    monkeypatch.setattr(graphs, "TOLERANCE", -1.0)
    with pytest.raises(UserError, match="encode of vae as torch_export differs from the model by"):
        graphs.write(of_images(), tmp_path, "torch_export")


def test_a_variant_that_cannot_be_exported_says_why(tmp_path, monkeypatch):
    model = of_images("ae")
    decode = model.module.decode
    monkeypatch.setattr(model.module, "decode", lambda z, label: decode(z, label) * (1 if float(z.sum()) > 0 else 2))
    with pytest.raises(UserError, match=r"decode of ae cannot be exported as torch_export: .*data-dependent"):
        graphs.write(model, tmp_path, "torch_export")


def test_without_the_extra_it_is_named(monkeypatch, run, tmp_path, capsys):
    monkeypatch.setitem(__import__("sys").modules, "onnxruntime", None)
    assert called(run, "--format", "onnx", "--out", tmp_path / "o") == 2
    assert "pip install 'distae[export]'" in capsys.readouterr().err
    assert not list(tmp_path.iterdir()), "nothing is left of it"


@pytest.mark.parametrize("kind", ["safetensors", "hf"])
def test_a_model_folder_is_the_same_model(run, tmp_path, kind):
    assert called(run, "--format", kind, "--out", tmp_path / kind) == 0
    names = {"model.safetensors", "config.json"} | ({"README.md"} if kind == "hf" else set())
    assert {p.name for p in (tmp_path / kind).iterdir()} == names
    again, model = distae.load(tmp_path / kind), distae.load(run)
    assert np.array_equal(again.reconstruct(BYTES), model.reconstruct(BYTES))
    first, second = serialization.load_saved(run), serialization.load_saved(tmp_path / kind)
    assert (first.checksum, first.about) == (second.checksum, second.about)


def test_the_model_card_says_what_it_is_and_its_own_figures(run, tmp_path):
    assert called(run, "--format", "hf", "--out", tmp_path / "a") == 0
    card = (tmp_path / "a" / "README.md").read_text()
    for text in (
        "library_name: distae",
        "- vae",
        "# vae on array",
        "[N, 8, 8]",
        "| step | 12 |",
        "distae.load",
        "None were computed",
    ):
        assert text in card, text
    weights = serialization.load_saved(run).checksum
    figure = {"metric": "psnr", "value": 20.5, "unit": "dB", "baselines": {"pca": 19.25}, "protocol": {"split": "test"}}
    for checksum, there in ((weights, True), ("another", False)):
        figure["protocol"] = {"split": "test", "weights": checksum}
        (run / "evaluation").mkdir(exist_ok=True)
        (run / "evaluation" / "metrics.json").write_text(json.dumps({"figures": [figure]}))
        assert called(run, "--format", "hf", "--out", tmp_path / "a", "--force") == 0
        assert ("| psnr | 20.5 dB | pca 19.25 | test |" in (tmp_path / "a" / "README.md").read_text()) == there


def test_what_exists_is_kept_unless_forced(run, tmp_path, capsys):
    assert called(run, "--format", "hf", "--out", tmp_path / "a") == 0
    (tmp_path / "a" / "mine").touch()
    assert called(run, "--format", "hf", "--out", tmp_path / "a") == 2
    assert "exists: give --force" in capsys.readouterr().err
    assert (tmp_path / "a" / "mine").exists()
    assert called(run, "--format", "hf", "--out", tmp_path / "a", "--force") == 0
    with pytest.raises(SystemExit, match="2"):
        called(run, "--format", "pickle", "--out", tmp_path / "b")
