"""Encoders of masked autoencoders as models of timm: tensors by its names, and its features where it is installed."""

import json
from typing import Any

import pytest
import torch
from helpers import fitted, settings
from safetensors.torch import load_file
from variants import make

import distae
from distae.commands import export
from distae.data import Transform
from distae.errors import UserError
from distae.models import timm as format_of_timm
from distae.models.serialization import About, SavedModel, write_timm

CASES: dict[str, dict[str, Any]] = {
    "mean": {},
    "class token": {"class_token": True, "pool": "token"},
    "mean beside a class token": {"class_token": True},
    "one channel, no square": {"shape": (1, 8, 12), "class_token": True, "pool": "token"},
}
SETTINGS: dict[str, Any] = {"shape": (3, 8, 8), "latent_dim": 16, "decoder_dim": 8, "patch": 2, "heads": 2, "depth": 3}


def written(folder, transform=Transform(255.0), **changes):  # noqa: B008
    """A model in float32 whose weights are all random, and its folder."""
    model = make("masked_ae", **SETTINGS | changes).float().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(len(parameter))))
    folder.mkdir(exist_ok=True)
    write_timm(SavedModel(model, transform, About({}, {}, list(model.shape)), ""), folder)
    return model


@pytest.mark.parametrize("case", CASES)
@pytest.mark.filterwarnings("ignore")
def test_timm_computes_the_same_features(case, tmp_path):
    timm = pytest.importorskip("timm")
    model = written(tmp_path / "a", **CASES[case])
    theirs = timm.create_model(f"local-dir:{tmp_path / 'a'}", pretrained=True).eval()
    about = json.loads((tmp_path / "a" / "config.json").read_text())
    by_name = timm.create_model(about["architecture"], **about["model_args"]).eval()
    by_name.load_state_dict(load_file(tmp_path / "a" / "model.safetensors"), strict=True)
    x = torch.rand(5, *model.shape)
    with torch.no_grad():
        expected = model.features(model.encode(x).z)
        for found in (theirs(x), by_name(x)):
            assert found.shape == expected.shape == (5, 16)
            torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)
    config = timm.data.resolve_model_data_config(theirs)
    assert (config["input_size"], set(config["mean"]), set(config["std"])) == (model.shape, {0.0}, {1.0})


def test_tensors_have_the_names_of_timm(tmp_path):
    model = written(tmp_path / "a", class_token=True)
    found = load_file(tmp_path / "a" / "model.safetensors")
    block = {
        f"{layer}.{kind}"
        for layer in ("norm1", "attn.qkv", "attn.proj", "norm2", "mlp.fc1", "mlp.fc2")
        for kind in ("weight", "bias")
    }
    outside = {"cls_token", "pos_embed", "patch_embed.proj.weight", "patch_embed.proj.bias", "norm.weight", "norm.bias"}
    assert found.keys() == outside | {f"blocks.{i}.{name}" for i in range(3) for name in block}
    assert [tuple(found[k].shape) for k in ("cls_token", "pos_embed", "patch_embed.proj.weight")] == [
        (1, 1, 16),
        (1, 17, 16),
        (16, 3, 2, 2),
    ]
    x = torch.rand(2, 3, 8, 8)
    embedded = torch.nn.functional.conv2d(x, found["patch_embed.proj.weight"], found["patch_embed.proj.bias"], 2).flatten(2).mT
    tokens = torch.cat([found["cls_token"].expand(2, -1, -1), embedded], 1) + found["pos_embed"]
    torch.testing.assert_close(model.encoder.blocks(tokens).flatten(1), model.encode(x).z, rtol=1e-5, atol=1e-5)


def test_published_sizes_have_their_names():
    for (width, depth, heads), name in format_of_timm.SIZES.items():
        with torch.device("meta"):
            model = make("masked_ae", **SETTINGS | {"latent_dim": width, "depth": depth, "heads": heads, "decoder_heads": 2})
        config, _ = format_of_timm.exported(model, Transform(255.0))
        assert config["architecture"] == f"vit_{name}_patch16_224"


def test_what_timm_cannot_express_is_an_error(tmp_path):
    for given, transform, message in [
        (make("vae"), Transform(), "--format timm is for the encoder of masked_ae, not vae"),
        (make("masked_ae", **SETTINGS), Transform(7.0), "of bytes, or of values in [0, 1]; these are divided by 7"),
    ]:
        with pytest.raises(UserError) as error:
            format_of_timm.exported(given, transform)
        assert message in str(error.value)


@pytest.mark.filterwarnings("ignore")
def test_a_run_is_exported(tmp_path, capsys):
    run = tmp_path / "run"
    fitted(
        settings(model={"name": "masked_ae", "latent_dim": 8, "decoder_dim": 8, "patch": 4, "heads": 2, "depth": 1}, steps=2), run
    )
    assert export.main([str(run), "--format", "timm", "--out", str(tmp_path / "out")], "distae export") == 0
    assert {p.name for p in (tmp_path / "out").iterdir()} == {"config.json", "model.safetensors"}
    said = capsys.readouterr().out
    assert "features differ on random input by up to" in said or "not checked, as timm is not installed" in said
    with pytest.raises(UserError):
        distae.load(tmp_path / "out")
