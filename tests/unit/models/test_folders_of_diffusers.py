"""Folders of diffusers: what is written and read computes what diffusers does, where it is installed; export, start, errors."""

import contextlib
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import finished_run, fresh_trainer, settings
from safetensors.torch import load_file, save_file

import distae
from distae.commands import export
from distae.data import Split, Transform, load
from distae.errors import UserError
from distae.evaluation.evaluation import Evaluation
from distae.evaluation.latent_space import scaling_factor
from distae.models import build, diffusers
from distae.models.serialization import About, SavedModel, load_saved, write_diffusers

SHAPE = (3, 16, 16)
X = torch.rand(2, *SHAPE, generator=torch.Generator().manual_seed(0))
KINDS = [(b, attends) for b in ("kl", "vq") for attends in (False, True)]
NET: dict[str, Any] = {"name": "image", "channels": 16, "multipliers": [1, 2], "blocks": 1, "groups": 8}
FEW: dict[str, Any] = {"name": "tokenizer", "latent_dim": 3, "codebook_size": 16, "discriminator_channels": 4}


def tokenizer(bottleneck: str = "kl", attends: bool = False, net: dict[str, Any] | None = None, **model: Any) -> Any:
    """In float32; its weights are random, biases and norms too."""
    of = NET | {"middle_attention": attends, "attention": [2] if attends else []} | (net or {})
    of |= {"inner_channels": 5} if bottleneck == "vq" else {}
    cfg = settings(model=FEW | {"bottleneck": bottleneck} | model, net=of)
    made: Any = build(cfg.model, cfg.net, SHAPE, seed=1).eval()
    noise = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for p in made.codec.parameters():
            p.add_(0.1 * torch.randn(p.shape, generator=noise))
        if bottleneck == "vq":
            made.codec.codebook.codes.copy_(torch.randn(16, 3, generator=noise))
    return made


def written(model: Any, folder: Path) -> Path:
    folder.mkdir()
    write_diffusers(SavedModel(model, Transform(255.0), About({}, {}, [*SHAPE]), ""), folder, 0.5, None)
    return folder


@contextlib.contextmanager
def fresh(cfg: Any, run_dir: Path) -> Iterator[Any]:
    """The model at the start of a run."""
    trainer = fresh_trainer(cfg, run_dir, load(cfg.data))
    try:
        yield trainer.train_step.model.eval()
    finally:
        trainer.tracker.close()


def to_map(codes: torch.Tensor) -> torch.Tensor:
    return codes.view(2, 8, 8, 3).permute(0, 3, 1, 2)


def check_equal(model: Any, theirs: Any) -> None:
    """Codes and images of a model here and of one of diffusers, to 1e-4."""
    near: dict[str, Any] = {"atol": 1e-4, "rtol": 1e-4}
    with torch.no_grad():
        codes = model.encode(X)
        if codes.mu is None:
            latents = theirs.encode(2 * X - 1).latents
            torch.testing.assert_close(to_map(model.codec.encoder(X, None)), latents, **near)
            torch.testing.assert_close(to_map(codes.z), theirs.quantize(latents)[0], **near)
        else:
            posterior = theirs.encode(2 * X - 1).latent_dist
            torch.testing.assert_close(to_map(codes.mu), posterior.mean, **near)
            torch.testing.assert_close(to_map(codes.logvar), posterior.logvar, **near)
            latents = posterior.mean
        torch.testing.assert_close(2 * model.decode(codes.z) - 1, theirs.decode(latents).sample, **near)


@pytest.mark.slow
@pytest.mark.parametrize(("bottleneck", "attends"), KINDS)
def test_diffusers_and_the_model_compute_the_same_from_either_folder(bottleneck, attends, tmp_path):
    peer = pytest.importorskip("diffusers")
    cls = {"kl": peer.AutoencoderKL, "vq": peer.VQModel}[bottleneck]
    model = tokenizer(bottleneck, attends)
    theirs = cls.from_pretrained(written(model, tmp_path / "ours"), low_cpu_mem_usage=False)
    assert theirs.config.scaling_factor == 0.5
    check_equal(model, theirs)
    theirs.save_pretrained(tmp_path / "theirs")
    check_equal(load_saved(tmp_path / "theirs").model, theirs)


@pytest.mark.parametrize(("bottleneck", "attends"), [("kl", True), ("vq", False)])
def test_a_folder_is_read_back_as_it_was_written(bottleneck, attends, tmp_path):
    model = tokenizer(bottleneck, attends)
    folder = written(model, tmp_path / "a")
    back = distae.load(folder)
    assert torch.equal(back.module.encode(X).z, model.encode(X).z)
    torch.testing.assert_close(back.reconstruct(X * 255), 255 * model.reconstruct(X), atol=1e-3, rtol=1e-5)
    first, second = (load_file(f / diffusers.WEIGHTS) for f in (folder, written(back.module, tmp_path / "b")))
    for name, t in first.items():
        torch.testing.assert_close(second[name], t, atol=1e-6, rtol=1e-6)
    assert second.keys() == first.keys()


def test_older_names_half_precision_and_a_model_without_quant_conv_are_read(tmp_path):
    model = tokenizer("kl", attends=True)
    with torch.no_grad():
        for name, part in (("encoder", model.codec.encoder.layers[0]), ("decoder", model.codec.decoder.layers[1])):
            layer = part.layers[-1 if name == "encoder" else 0]
            layer.weight.copy_(torch.eye(len(layer.weight))[:, :, None, None])
            layer.bias.zero_()
    folder = written(model, tmp_path / "a")
    tensors = load_file(folder / diffusers.WEIGHTS)
    older = {new: old for old, new in diffusers.OLDER.items()}
    old_names = {name: t.half() for name, t in tensors.items() if "quant_conv" not in name}
    for new, old in older.items():
        old_names = {k.replace(f".{new}.", f".{old}.") if ".attentions." in k else k: t for k, t in old_names.items()}
    save_file(old_names, folder / diffusers.WEIGHTS)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"use_quant_conv": False, "use_post_quant_conv": False}))
    torch.testing.assert_close(load_saved(folder).model.encode(X).z, model.encode(X).z, atol=0.02, rtol=0.02)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"_class_name": "AutoencoderDC"}, "'AutoencoderDC' of diffusers cannot be read; valid: AutoencoderKL, VQModel"),
        ({"_class_name": [1]}, r"'\[1\]' of diffusers cannot be read"),
        ({"block_out_channels": []}, r"block_out_channels \[\] of diffusers' AutoencoderKL cannot be read"),
        ({"act_fn": "relu"}, "act_fn relu of diffusers' AutoencoderKL cannot be read"),
        ({"down_block_types": ["DownEncoderBlock2D", "KDownBlock2D"]}, "down_block_types"),
        ({"up_block_types": ["AttnUpDecoderBlock2D", "UpDecoderBlock2D"]}, "up_block_types"),
        ({"norm_num_groups": 16}, "norm_num_groups 16"),
        ({"sample_size": 15}, "sample_size 15"),
        ({"layers_per_block": "two"}, r"config\.json is missing or damaged"),
        ({"layers_per_block": 2}, r"encoder.down_blocks.0.resnets.1.norm1.weight is missing"),
        ({"mid_block_add_attention": True}, r"encoder.mid_block.attentions.0.group_norm.weight is missing"),
        ({"latent_channels": 4}, "the weights do not match the model's settings"),
        ({"layers_per_block": 10**9}, "not the weights of the model that config.json describes"),
    ],
)
def test_other_models_and_damage_are_errors(change, words, tmp_path):
    folder = written(tokenizer(), tmp_path / "a")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | change))
    with pytest.raises(UserError, match=words):
        load_saved(folder)


@pytest.mark.parametrize(
    ("of", "words"),
    [
        ({"bottleneck": "fsq", "levels": [4, 4, 4]}, "--model.bottleneck fsq; valid: kl, vq"),
        ({"likelihood": "bernoulli"}, "--model.likelihood bernoulli; valid: laplace, gaussian"),
        ({"net": {"activation": "gelu"}}, "--net.activation gelu; valid: silu"),
        ({"net": {"multipliers": [2, 4]}}, "--net.multipliers .*the first is 1"),
        ({"net": {"norm": "batch"}}, "--net.norm batch; valid: group"),
        ({"net": {"groups": 16}}, "--net.groups 16; valid: the same number at every width, such as 8"),
        ({"net": {"inner_channels": 8}}, "--net.inner-channels 8 with kl"),
    ],
)
def test_a_setting_that_diffusers_cannot_express_is_an_error(of, words):
    with pytest.raises(UserError, match=words):
        diffusers.exported(tokenizer(**of), 1.0, None)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A run on bytes, its settings, and the folder of diffusers that `distae export` writes of it."""
    parent = tmp_path_factory.mktemp("run")
    rng = np.random.default_rng(0)
    np.save(parent / "x.npy", rng.integers(0, 256, (60, 1, 8, 8), dtype=np.uint8))
    model = FEW | {"bottleneck": "vq", "latent_dim": 2, "discriminator_start": 1}
    net, data = (
        NET | {"channels": 4, "groups": 2, "middle_attention": False},
        {"name": "array", "path": str(parent / "x.npy"), "scale": 255.0},
    )
    of: dict[str, Any] = {"model": model, "net": net, "data": data, "steps": 2}
    first = finished_run(settings(**of), parent)
    assert export.main([str(first), "--format", "diffusers", "--out", str(parent / "folder")], "distae export") == 0
    return first, of, parent / "folder"


def factor(folder: Path) -> float:
    return float(json.loads((folder / "config.json").read_text())["scaling_factor"])


@pytest.mark.slow
def test_the_scaling_factor_is_that_of_training_samples_and_kept(folders, tmp_path, capsys):
    first, of, folder = folders
    train = load(settings(**of).data)["train"]
    x = train.read(torch.arange(len(train)))[0]
    assert factor(folder) == pytest.approx(1 / distae.load(first).encode(x).double().std(correction=0).item(), rel=1e-5)
    for number, more in enumerate([[], ["--data", of["data"]["path"], "--data.scale", "255", "--data.limit", "20"]]):
        words = [str(folder), "--format", "diffusers", "--out", str(tmp_path / str(number)), *more]
        assert export.main(words, "distae export") == 0, capsys.readouterr().err
    assert factor(tmp_path / "0") == factor(folder) != factor(tmp_path / "1")


def test_a_posterior_adds_its_variance_to_the_scaling_factor():
    """A second computation: the standard deviation of many samples of the posterior, as latent diffusion takes it."""
    model = tokenizer("kl").double()
    codes = model.encode(X.double())
    assert codes.mu is not None
    assert codes.logvar is not None
    noise = torch.randn(4000, *codes.mu.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    drawn = codes.mu + noise * (codes.logvar / 2).exp()
    cfg = settings(model=FEW, net=NET)
    evaluation = Evaluation(model, cfg, {"test": Split.of(X.double(), None, Transform())})
    assert scaling_factor(evaluation).value == pytest.approx(1 / drawn.std().item(), rel=2e-3)


@pytest.mark.slow
@pytest.mark.parametrize("learning", ["ema", "gradient"])
def test_training_starts_from_a_folder_with_a_new_discriminator(learning, folders, tmp_path):
    first, of, folder = folders
    cfg = settings(**of | {"model": of["model"] | {"learning": learning}, "init_from": str(folder), "seed": 5})
    with fresh(cfg, tmp_path / "second") as model:
        old: Any = distae.load(first).module
        assert torch.equal(model.encode(X[:, :1, :8, :8]).indices, old.encode(X[:, :1, :8, :8]).indices)
        torch.testing.assert_close(model.reconstruct(X[:, :1, :8, :8]), old.reconstruct(X[:, :1, :8, :8]))
        weights = [next(m.discriminator.parameters()) for m in (model, old)]
        assert not torch.equal(*weights)
        model.after_step(0)  # averages that do not match the codes would move them


@pytest.mark.slow
def test_settings_of_another_model_are_an_error_that_lists_what_to_give(folders):
    _, of, folder = folders
    more = of | {"init_from": str(folder)}
    words = "needs --model.bottleneck vq --net.channels 4 --no-net.middle-attention --net.attention (without --net.inner-channels)"
    with pytest.raises(UserError, match=re.escape(words)):
        settings(
            **more
            | {
                "model": FEW | {"latent_dim": 2},
                "net": NET | {"groups": 2, "attention": [2], "middle_attention": True, "inner_channels": 2},
            }
        )
    with pytest.raises(UserError, match=r"--model tokenizer --model\.bottleneck vq .* --net image"):
        settings(**more | {"model": {"name": "ae"}, "net": {"name": "mlp"}})
