"""Dictionaries whose target is another array, and those of several layers, against their formulas."""

import json
from typing import Any

import numpy as np
import pytest
import torch
from helpers import fitted, settings
from torch.nn.functional import normalize
from variants import data, make, run, train

import distae
from distae.config import TrainConfig, build, check
from distae.data import Transform, load
from distae.errors import UserError
from distae.evaluation.evaluation import Evaluation
from distae.evaluation.metrics import Skip, load_all, metrics_by_task
from distae.models import build as build_model
from distae.models.inference import Model
from distae.models.serialization import About, SavedModel, write_sae_lens
from distae.nn.sparse import geometric_median

INPUTS = 7
NAMES = ("topk_sae", "batch_topk_sae", "matryoshka_sae", "jumprelu_sae", "l1_sae", "gated_sae")
GENERATOR = torch.Generator().manual_seed(0)


def transcoder(name="topk_sae", **changes):
    """Of 7 values to 5, its parameters random."""
    few: dict[str, Any] = {"prefixes": [0.25, 0.5]} if name == "matryoshka_sae" else {}
    few |= {} if name in ("l1_sae", "gated_sae") else {"k": 3}
    model = make(name, shape=(12,), **{"latent_dim": 16, "inputs": INPUTS, "skip": True} | few | changes)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=GENERATOR, dtype=torch.float64))
    return model


@pytest.mark.parametrize("name", NAMES)
def test_a_transcoder_predicts_its_target_from_its_inputs(name):
    model, x = transcoder(name).eval(), data(20, 12)
    inputs, target = x[:, :INPUTS], x[:, INPUTS:]
    z = model.encode(x).z
    assert 0 < (z > 0).double().mean() < 1
    assert torch.equal(model.encode(inputs).z, z)
    if name not in ("gated_sae", "jumprelu_sae"):
        pre = (inputs - model.input_bias) @ model.encoder.T + model.encoder_bias
        torch.testing.assert_close(z[z > 0], pre[z > 0])
    vectors = normalize(model.decoder, dim=1) if model.cfg.unit_norm else model.decoder
    made = z @ vectors + model.bias + inputs @ model.skip.T
    torch.testing.assert_close(model.reconstruct(x), made)
    torch.testing.assert_close(Model(model).reconstruct(inputs), made)
    torch.testing.assert_close(Model(model).score(x), (target - made).square().mean(1))
    out = run(model, x)
    torch.testing.assert_close(out.recon, made)
    torch.testing.assert_close(out.per_sample["recon"], model.likelihood(made, target))
    with pytest.raises(UserError, match="expected \\[N, 12\\]"):
        Model(model).score(inputs)


@pytest.mark.parametrize("name", ["topk_sae", "batch_topk_sae", "l1_sae"])
def test_gradients_are_those_of_the_formula(name):
    """Of active latents alone too, with the skip connection and the inputs' bias."""
    model, x = transcoder(name, latent_dim=64, **({"weight": 0.3} if name == "l1_sae" else {})), data(20, 12)
    run(model, x).loss.backward()
    found = {k: p.grad.clone() for k, p in model.named_parameters()}
    model.zero_grad()
    inputs, target = x[:, :INPUTS], x[:, INPUTS:]
    pre = (inputs - model.input_bias) @ model.encoder.T + model.encoder_bias
    if name == "topk_sae":
        pre = torch.where(pre >= pre.sort(1, descending=True).values[:, [2]], pre, 0.0)
    elif name == "batch_topk_sae":
        pre = torch.where(pre >= pre.flatten().sort(descending=True).values[59], pre, 0.0)
    z, vectors = pre.relu(), normalize(model.decoder, dim=1) if model.cfg.unit_norm else model.decoder
    loss = 0.5 * (target - z @ vectors - model.bias - inputs @ model.skip.T).square().sum(1).mean()
    (loss + (0.3 * (z @ model.decoder.norm(dim=1)).mean() if name == "l1_sae" else 0)).backward()
    assert found.keys() >= {"input_bias", "skip", "encoder", "bias"}
    for key, p in model.named_parameters():
        torch.testing.assert_close(found[key], p.grad, rtol=1e-9, atol=1e-12, msg=key)


def test_auxk_is_of_the_targets_residual():
    model, x = transcoder(dead_after=100, aux_k=2), data(20, 12)
    model.silent[:5] = 100
    out = run(model, x)
    pre = ((x[:, :INPUTS] - model.input_bias) @ model.encoder.T + model.encoder_bias)[:, :5].topk(2, dim=1)
    revived = torch.zeros(20, 5, dtype=torch.float64).scatter(1, pre.indices, pre.values.relu())
    error = x[:, INPUTS:] - out.recon
    expected = 0.5 * (error - revived @ normalize(model.decoder, dim=1)[:5]).square().sum(1)
    torch.testing.assert_close(out.per_sample["auxiliary"], expected)


def test_a_transcoder_starts_at_both_medians_and_learns():
    model, x = make("topk_sae", shape=(12,), latent_dim=16, k=3, inputs=INPUTS, skip=True), data(300, 12)
    assert not model.skip.any()
    torch.testing.assert_close(model.encoder.norm(dim=1), torch.ones(16, dtype=torch.float64), atol=1e-6, rtol=0)
    model.start(x)
    assert torch.equal(model.input_bias, geometric_median(x[:, :INPUTS]))
    assert torch.equal(model.bias, geometric_median(x[:, INPUTS:]))
    before = (x[:, INPUTS:] - x[:, INPUTS:].mean(0)).square().sum()
    train(model, x, 200)
    assert (x[:, INPUTS:] - model.reconstruct(x)).square().sum() < 0.7 * before


def test_norms_of_a_crosscoder_are_sums_over_its_layers():
    cfg = settings(model={"name": "l1_sae", "latent_dim": 16, "layers": 4})
    model: Any = build_model(cfg.model, cfg.net, (4, 3), dtype=torch.float64)
    x = data(20, 4, 3)
    z = model.encode(x).z
    norms = sum(model.decoder[:, i * 3 : i * 3 + 3].norm(dim=1) for i in range(4))
    torch.testing.assert_close(run(model, x).per_sample["sparsity"], z @ norms)
    assert (norms > 1.2 * model.decoder.norm(dim=1)).all()
    assert model.reconstruct(x).shape == x.shape


@pytest.fixture
def arrays(tmp_path):
    """200 inputs [2, 4] and targets [5], which follow from them."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((200, 2, 4)).astype(np.float32)
    np.save(tmp_path / "in.npy", x)
    np.save(tmp_path / "out.npy", (np.maximum(x.reshape(200, 8) @ rng.standard_normal((8, 5)), 0) + 3).astype(np.float64))
    return {"name": "array", "path": str(tmp_path / "in.npy"), "target": str(tmp_path / "out.npy")}


def test_inputs_and_targets_are_two_files(arrays):
    splits = load(check(build(TrainConfig, {"model": {"name": "topk_sae"}, "data": arrays}), 1).data)
    x, y = np.load(arrays["path"]).reshape(200, 8), np.load(arrays["target"])
    rows = splits["val"].rows_at(torch.arange(len(splits["val"])))
    assert torch.equal(splits["val"].x, torch.from_numpy(np.concatenate([x.astype(np.float64), y], 1))[rows])


def test_metrics_are_of_the_target(arrays, tmp_path):
    model = {"name": "topk_sae", "latent_dim": 24, "k": 4, "skip": True}
    cfg = settings(model=model, data=arrays, steps=20, precision="fp64")
    assert getattr(cfg.model, "inputs", None) == 8
    splits = load(cfg.data)
    fitted(cfg, tmp_path / "run", splits)
    loaded, test = distae.load(tmp_path / "run"), splits["test"].x
    x, y = test[:, :8], test[:, 8:]
    made = loaded.reconstruct(x)
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert next(r["test/mse"] for r in rows if "test/mse" in r) == pytest.approx(float((y - made).square().mean()))
    load_all()
    e = Evaluation(loaded.module, cfg, splits, "test")
    found = {name: metrics_by_task()["sparse_codes"][name].compute(e).value for name in ("fvu", "shrinkage", "l0")}
    assert found["fvu"] == pytest.approx(float((y - made).square().sum() / (y - y.mean(0)).square().sum()))
    centred = made - y.mean(0)
    assert found["shrinkage"] == pytest.approx(float(centred.square().sum() / (centred * (y - y.mean(0))).sum()))
    assert found["l0"] == pytest.approx(float((loaded.encode(x) > 0).double().sum(1).mean()))
    error = metrics_by_task()["reconstruction"]["reconstruction_mse"].compute(e)
    assert error.value == pytest.approx(float((y - made).square().mean()))
    assert not error.baselines
    for task, name in (("denoising", "denoising_mse"), ("reconstruction", "pca_relative_error")):
        with pytest.raises(Skip):
            metrics_by_task()[task][name].compute(e)


@pytest.mark.parametrize(
    ("model", "data_", "named"),
    [
        ({"name": "ae"}, {}, r"--model ae: these data are for a model with 'inputs'; valid: .*topk_sae"),
        ({"name": "topk_sae", "inputs": 13}, {}, r"--model\.inputs 13: a sample has 13 values"),
        ({"name": "topk_sae", "layers": 2}, {}, r"--model\.layers 2: 5 values"),
        ({"name": "topk_sae"}, {"test": "in.npy"}, r"--data\.target: --data\.test and --data\.layout cannot be given"),
        ({"name": "topk_sae"}, {"target": "nowhere.npy"}, r"--data\.target.*nowhere\.npy"),
    ],
)
def test_what_does_not_fit_is_named(model, data_, named, arrays):
    with pytest.raises(UserError, match=named):
        check(build(TrainConfig, {"model": model, "data": arrays | data_}), 1)


def test_targets_that_are_too_few_or_not_finite_are_named(arrays, tmp_path):
    y = np.load(arrays["target"])
    np.save(tmp_path / "few.npy", y[:150])
    y[7, 2] = np.nan
    np.save(tmp_path / "nan.npy", y)
    cfg = {"model": {"name": "topk_sae"}, "data": arrays}
    for file, named in (("few", "--data.target has 150 samples, --data.path 200"), ("nan", "--data.target: .*nan.npy row 7")):
        cfg["data"]["target"] = str(tmp_path / f"{file}.npy")
        with pytest.raises(UserError, match=named):
            load(check(build(TrainConfig, cfg), 1).data)
    with pytest.raises(UserError, match=r"--model\.skip is for transcoders"):
        settings(model={"name": "topk_sae", "skip": True})
    with pytest.raises(UserError, match=r"--model\.inputs: samples of transcoders are vectors"):
        settings(model={"name": "topk_sae", "inputs": 9})


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("skip", [False, True])
@pytest.mark.parametrize("name", ["l1_sae", "batch_topk_sae", "jumprelu_sae"])
def test_transcoders_of_sae_lens(name, skip, tmp_path):
    """Read back here, and by SAELens where it is installed."""
    model, scale, x = transcoder(name, skip=skip).float().eval(), 8.0, 8 * data(50, 12).float()
    if name != "l1_sae":
        model.threshold.data.fill_(0.3)
    mine = Model(model, Transform(scale))
    write_sae_lens(SavedModel(model, mine.transform, About({}, {}, [12], step=7), ""), tmp_path)
    again, z, made = distae.load(tmp_path), mine.encode(x), mine.reconstruct(x)
    assert 0 < (z > 0).float().mean() < 1
    torch.testing.assert_close(again.encode(x), z, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(again.reconstruct(x), made, atol=1e-4, rtol=1e-5)
    theirs = pytest.importorskip("sae_lens").SAE.load_from_disk(tmp_path)
    with torch.no_grad():
        torch.testing.assert_close(theirs.encode(x[:, :INPUTS]), z, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(theirs(x[:, :INPUTS]), made, atol=1e-4, rtol=1e-5)


def test_sae_lens_has_no_transcoder_of_the_top_k(tmp_path):
    with pytest.raises(UserError, match="SAELens has no transcoder like topk_sae"):
        write_sae_lens(SavedModel(transcoder(), Transform(), About({}, {}, [12]), ""), tmp_path)
