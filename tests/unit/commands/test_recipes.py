"""Every recipe runs as it is: the settings are valid, the layers are those in its first lines, and it trains."""

import gzip
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import scipy.sparse
from helpers import ROOT, shared_data
from PIL import Image
from torch import nn

from distae.commands import train
from distae.config import TrainConfig, check, parse
from distae.models import build
from distae.runtime.environment import Environment

SIZES = {
    "ae_mnist_64": [784, 128, 64],
    "ae_mnist_20": [784, 256, 64, 20],
    "ae_fashion_mnist_3": [784, 128, 64, 12, 3],
    "ae_mnist_32_one_hidden": [784, 256, 32],
    "ae_mnist_32_deep": [784, 256, 128, 64, 32],
    "ae_mnist_32_single_layer": [784, 32],
    "vae_mnist": [784, 200, 200, 50],
    "vae_mnist_10": [784, 256, 64, 10],
}
BATCHES = {"ae_mnist_64": 64, "ae_mnist_20": 32, "vae_mnist_10": 32, "ae_mnist_32_one_hidden": 128, "ae_mnist_32_deep": 256}


def counts(folder: Path) -> Path:
    x = np.random.default_rng(0).poisson(0.3, (700, 30))
    scipy.sparse.save_npz(folder / "x.npz", scipy.sparse.csr_matrix(x))
    return folder / "x.npz"


def ratings(folder: Path) -> Path:
    pairs = np.argwhere(np.random.default_rng(0).random((900, 40)) < 0.4)
    lines = [f"{user},{item},{(user + item) % 3 + 3}" for user, item in pairs]
    (folder / "x.csv").write_text("\n".join(["user,item,rating", *lines]))
    return folder / "x.csv"


def rows(folder: Path) -> Path:
    sizes = np.random.default_rng(0).normal(5, 3, 700)
    lines = [f"{a:.3f},{'ab'[i % 2]},{'xyz'[i % 3]}" for i, a in enumerate(sizes)]
    (folder / "x.csv").write_text("\n".join(["size,kind,colour", *lines]))
    return folder / "x.csv"


def pictures(folder: Path) -> Path:
    (folder / "faces").mkdir()
    for number, x in enumerate(np.random.default_rng(0).integers(0, 256, (150, 20, 24, 3), dtype=np.uint8)):
        Image.fromarray(x).save(folder / "faces" / f"{number}.png")
    return folder / "faces"


OF_YOUR_DATA: dict[str, tuple[Callable[[Path], Path], list[int], str]] = {
    "count_vae": (counts, [30, 128, 10], "zinb"),
    "mult_vae": (ratings, [40, 600, 200], "multinomial"),
    "table_vae": (rows, [5, 128, 128, 128], "mixed"),
    "vae_faces": (pictures, [], "gaussian"),
}
"""Recipes for which a user names the file: how such a file is made, the widths of the encoder, and the likelihood."""


def recipe(name: str, *more: str) -> TrainConfig:
    return check(parse(TrainConfig, ["--config", str(ROOT / f"recipes/{name}.toml"), *more], {}, "test").settings, 1)


def widths(module: nn.Module) -> list[int]:
    layers = [m for m in module.modules() if isinstance(m, nn.Linear)]
    return [layers[0].in_features, *(m.out_features for m in layers)]


def test_every_recipe_is_listed_here_and_says_what_it_is() -> None:
    files = sorted((ROOT / "recipes").glob("*.toml"))
    assert [f.stem for f in files] == sorted(SIZES | OF_YOUR_DATA)
    for file in files:
        named = "-".join(map(str, SIZES[file.stem])) if file.stem in SIZES else "--data.path"
        first = file.read_text().partition("\n\n")[0]
        assert first.startswith("# ")
        assert named in first


@pytest.mark.parametrize("name", SIZES)
def test_layers_are_the_published_ones(name: str) -> None:
    cfg = recipe(name)
    model = build(cfg.model, cfg.net, cfg.data.shape())
    *hidden, code = SIZES[name]
    assert widths(model.encoder) == [*hidden, model.latent_factor * code]
    assert widths(model.decoder) == [code, *reversed(hidden)]
    assert cfg.global_batch_size == BATCHES.get(name, cfg.global_batch_size)
    assert (cfg.optim.name, cfg.optim.lr) == ("adam", 1e-3)
    assert cfg.optim.weight_decay == (1e-5 if name == "ae_fashion_mnist_3" else 0)


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


@pytest.mark.parametrize("name", SIZES)
def test_trains(name: str, root: Path, tmp_path: Path) -> None:
    cfg = recipe(name, "--data.root", str(root), "--data.limit", "300", "--steps", "2", "--tracking", "none", "--device", "cpu")
    outcome = train.run(replace(cfg, threads=1, eval_batch_size=100, run_dir=str(tmp_path / "run")), Environment())
    assert (outcome.outcome, outcome.step) == ("done", 2)
    assert list((tmp_path / "run" / "images").glob("test_reconstructions_*.png"))


@pytest.mark.parametrize("name", OF_YOUR_DATA)
def test_trains_on_data_of_ones_own(name: str, tmp_path: Path) -> None:
    make, layers, likelihood = OF_YOUR_DATA[name]
    more = "--steps", "2", "--tracking", "none", "--device", "cpu", "--data.path", str(make(tmp_path))
    narrow = ("--net.channels", "4", "8", "8", "8") if name == "vae_faces" else ()  # a minute, else
    cfg = recipe(name, *more, *narrow)
    model = build(cfg.model, cfg.net, cfg.data.shape())
    assert cfg.model.likelihood == likelihood
    assert not layers or widths(model.encoder) == [*layers[:-1], 2 * layers[-1]]
    outcome = train.run(replace(cfg, threads=1, eval_batch_size=100, run_dir=str(tmp_path / "run")), Environment())
    assert (outcome.outcome, outcome.step) == ("done", 2)
