"""Every recipe runs as it is: the settings are valid, the layers are those in its first lines, and it trains."""

import gzip
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import ROOT, shared_data
from PIL import Image
from torch import nn

from distae.commands import train
from distae.config import TrainConfig, check, parse
from distae.data import Transform, load
from distae.models import build, timm
from distae.runtime.environment import Environment

SIZES = {
    "ae_mnist_64": [784, 128, 64],
    "ae_mnist_20": [784, 256, 64, 20],
    "ae_fashion_mnist_3": [784, 128, 64, 12, 3],
    "ae_mnist_32_one_hidden": [784, 256, 32],
    "ae_mnist_32_deep": [784, 256, 128, 64, 32],
    "ae_mnist_32_single_layer": [784, 32],
    "ae_mnist_2": [784, 512, 256, 128, 2],
    "ae_mnist_8": [784, 512, 256, 128, 8],
    "ae_mnist_32": [784, 512, 32],
    "denoising_ae_mnist": [784, 512, 256, 64],
    "vae_mnist_static": [784, 200, 200, 50],
    "iwae_mnist_static": [784, 200, 200, 50],
    "vae_fashion_mnist_compression": [784, 512, 64],
    "vae_mnist": [784, 200, 200, 50],
    "vae_mnist_10": [784, 256, 64, 10],
    "vae_mnist_20": [784, 400, 20],
    "rae_fashion_mnist_64": [784, 400, 64],
    "ae_mnist_one_class": [784, 128, 64, 16],
}
BATCHES = {"ae_mnist_64": 64, "ae_mnist_20": 32, "vae_mnist_10": 32, "ae_mnist_32_one_hidden": 128, "ae_mnist_32_deep": 256}


def pictures(folder: Path) -> Path:
    """150 made-up images in a folder."""
    (folder / "faces").mkdir()
    for number, x in enumerate(np.random.default_rng(0).integers(0, 256, (150, 20, 24, 3), dtype=np.uint8)):
        Image.fromarray(x).save(folder / "faces" / f"{number}.png")
    return folder / "faces"


def recipe(name: str, *more: str) -> TrainConfig:
    return check(parse(TrainConfig, ["--config", str(ROOT / f"recipes/{name}.toml"), *more], {}, "test").settings, 1)


def widths(module: nn.Module) -> list[int]:
    layers = [m for m in module.modules() if isinstance(m, nn.Linear)]
    return [layers[0].in_features, *(m.out_features for m in layers)]


def test_every_recipe_is_listed_here_and_says_what_it_is() -> None:
    files = sorted((ROOT / "recipes").glob("*.toml"))
    assert [f.stem for f in files] == sorted([*SIZES, "vae_faces"])
    for file in files:
        named = "-".join(map(str, SIZES[file.stem])) if file.stem in SIZES else "--data.path"
        first = file.read_text().partition("\n\n")[0]
        assert first.startswith("# ")
        assert named in first


@pytest.mark.parametrize("name", SIZES)
def test_layers_are_the_published_ones(name: str) -> None:
    cfg = recipe(name)
    model: Any = build(cfg.model, cfg.net, cfg.data.shape())
    *hidden, code = SIZES[name]
    assert widths(model.encoder) == [*hidden, model.latent_factor * code]
    assert widths(model.decoder) == [code, *reversed(hidden)]
    assert cfg.global_batch_size == BATCHES.get(name, cfg.global_batch_size)
    assert (cfg.optim.name, cfg.optim.lr) == ("adam", 1e-3)
    assert cfg.optim.weight_decay == (1e-5 if name == "ae_fashion_mnist_3" else 0)


TOKENIZERS = {
    "kl_f8": ((32, 32, 4), 83_653_863),
    "vq_f8": ((32, 32, 4), 67_651_759 + 16384 * 4),
    "vq_f16": ((16, 16, 8), 69_462_299 + 16384 * 8),
}
"""Codes of an image of 256x256, and parameters with the codebook, without the discriminator."""


def test_every_tokenizer_recipe_is_listed_here() -> None:
    assert {file.stem for file in (ROOT / "recipes/tokenizers").glob("*.toml")} == TOKENIZERS.keys()


@pytest.mark.parametrize("name", TOKENIZERS)
def test_tokenizers_have_the_published_size(name: str, tmp_path: Path) -> None:
    cfg = recipe(f"tokenizers/{name}", "--data.path", str(pictures(tmp_path)), "--model.perceptual", "none")
    with torch.device("meta"):
        model: Any = build(cfg.model, cfg.net, cfg.data.shape())
    assert (model.code_shape, sum(p.numel() for p in model.codec.parameters())) == TOKENIZERS[name]
    published = recipe_text(name)
    assert 'perceptual = "lpips"' in published
    assert published.startswith("# ")


def test_the_benchmark_of_dictionaries_is_as_published() -> None:
    """34 active features of a sample on average, and 25 among the first 4,096 (SAELens, docs/synth_sae_bench.md)."""
    assert [file.stem for file in (ROOT / "recipes/sae").glob("*.toml")] == ["synth_sae_bench_16k"]
    cfg = recipe("sae/synth_sae_bench_16k", "--data.orthogonal-steps", "0")
    splits = load(cfg.data)
    assert sum(map(len, splits.values())) == 201_000_000
    assert cfg.steps is not None
    assert 200_000_000 <= cfg.steps * cfg.global_batch_size <= len(splits["train"]) * 1.01
    features = splits["train"].source.features
    assert features is not None
    active = features.activations(torch.arange(256)) > 0
    assert float(active.sum(1).float().mean()) == pytest.approx(34, abs=1)
    assert float(active[:, :4096].sum(1).float().mean()) == pytest.approx(25, abs=1)


MASKED = {"vit_t16": 5_524_416, "vit_s16": 21_665_664, "vit_b16": 85_798_656, "vit_l16": 303_301_632}
"""Parameters of timm's vit_{tiny,small,base,large}_patch16_224 without a head, 197 positions included."""


def test_every_masked_recipe_is_listed_here() -> None:
    assert {file.stem for file in (ROOT / "recipes/masked").glob("*.toml")} == MASKED.keys()


@pytest.mark.parametrize("name", MASKED)
def test_masked_autoencoders_have_the_size_of_timms(name: str, tmp_path: Path) -> None:
    cfg = recipe(f"masked/{name}", "--data.path", str(pictures(tmp_path)))
    with torch.device("meta"):
        model: Any = build(cfg.model, cfg.net, cfg.data.shape())
    _, tensors = timm.exported(model, Transform(255.0))
    assert sum(t.numel() for t in tensors.values()) == MASKED[name]
    assert model.code_shape[0] == 197
    assert cfg.peak_lr == pytest.approx(2.4e-3)
    assert f"{MASKED[name]:,}" in (ROOT / f"recipes/masked/{name}.toml").read_text().partition("\n\n")[0]


def recipe_text(name: str) -> str:
    return (ROOT / f"recipes/tokenizers/{name}.toml").read_text()


@pytest.fixture(scope="session")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """MNIST and Fashion-MNIST, unpacked into a folder that torchvision takes as it is."""
    root = tmp_path_factory.mktemp("root")
    for name in ("MNIST", "FashionMNIST"):
        (root / name / "raw").mkdir(parents=True)
        for packed in (shared_data(name) / "raw").glob("*.gz"):
            with gzip.open(packed) as source, (root / name / "raw" / packed.stem).open("wb") as target:
                shutil.copyfileobj(source, target)
    return root


@pytest.mark.parametrize(
    "name", [n if n in ("ae_mnist_64", "vae_mnist") else pytest.param(n, marks=pytest.mark.slow) for n in SIZES]
)
def test_trains(name: str, root: Path, tmp_path: Path) -> None:
    cfg = recipe(name, "--data.root", str(root), "--data.limit", "300", "--steps", "2", "--tracking", "none", "--device", "cpu")
    outcome = train.run(replace(cfg, threads=1, eval_batch_size=100, run_dir=str(tmp_path / "run")), Environment())
    assert (outcome.outcome, outcome.step) == ("done", 2)
    assert list((tmp_path / "run" / "images").glob("test_reconstructions_*.png"))


@pytest.mark.slow
def test_faces_train(tmp_path: Path) -> None:
    more = "--steps", "2", "--tracking", "none", "--device", "cpu", "--data.path", str(pictures(tmp_path))
    cfg = recipe("vae_faces", *more, "--net.channels", "4", "8", "8", "8")  # a minute, else
    assert cfg.data.shape() == (3, 64, 64)
    outcome = train.run(replace(cfg, threads=1, eval_batch_size=100, run_dir=str(tmp_path / "run")), Environment())
    assert (outcome.outcome, outcome.step) == ("done", 2)
    assert list((tmp_path / "run" / "images").glob("test_reconstructions_*.png"))
