"""`distae generate`: what each sampler, way and option writes, in the units of the data; wrong input; ranks."""

import csv
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers import ROOT
from PIL import Image

import distae
from distae.commands import generate, train

OPTIONS = (
    "--steps 30 --global-batch-size 32 --eval-every 30 --data.limit 200 --tracking none --progress none --device cpu --threads 1 "
    "--net.hidden 32"
)
SMALL = OPTIONS.split()
FIT = ["--fit-steps", "20", "--components", "4"]
VARIANTS = {
    "vae": ["--model.latent-dim", "3"],
    "ae": ["--model.latent-dim", "3"],
    "cvae": ["--model.latent-dim", "2"],
    "vamp_vae": ["--model.latent-dim", "2", "--model.components", "5"],
    "vq_vae": ["--model.latent-dim", "12", "--model.dim", "4", "--model.codebook-size", "16"],
}


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Runs of some variants on digits, and of a vae on a table of numbers and categories."""
    folder = tmp_path_factory.mktemp("home")
    for name, options in VARIANTS.items():
        assert train.main(["--model", name, *options, *SMALL, "--run-dir", str(folder / name)]) == 0
    rng = np.random.default_rng(0)
    with (folder / "t.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("u", "v", "kind"), *((rng.normal(), rng.normal() * 9 + 40, "abc"[i % 3]) for i in range(120))])
    table = ["--data", "table", "--data.path", str(folder / "t.csv"), "--model.likelihood", "mixed", "--model.latent-dim", "2"]
    assert train.main([*SMALL, *table, "--run-dir", str(folder / "table")]) == 0
    return folder


def files_of(folder: Path) -> set[str]:
    return {p.name for p in folder.iterdir()}


def run(*argv: object) -> int:
    return generate.main([*map(str, argv), "--threads", "1"])


def test_the_own_prior_is_that_of_the_python_model(home, tmp_path, capsys):
    assert run(home / "vae", "--num", 70, "--seed", 3, "--out", tmp_path / "out") == 0
    assert (
        "70 samples by normal, the prior of the model\nwrote samples.npy, samples.png, generate.json to " in capsys.readouterr().out
    )
    x = np.load(tmp_path / "out" / "samples.npy")
    assert x.shape == (70, 1, 8, 8)
    np.testing.assert_array_equal(x, distae.load(home / "vae").sample(70, seed=3))
    with Image.open(tmp_path / "out" / "samples.png") as image:
        assert image.size[0] == 16 * 34 + 2
    about = json.loads((tmp_path / "out" / "generate.json").read_text())
    assert (about["sampler"], about["num"], about["seed"], about["step"]) == ("normal", 70, 3, 30)


@pytest.mark.parametrize(("name", "sampler"), [
    ("vae", "gmm"), ("vae", "flow"), ("ae", "two_stage"), ("cvae", "gmm"), ("vamp_vae", "vamp"), ("vq_vae", "pixel")
])  # fmt: skip
def test_every_sampler_writes_samples(name, sampler, home, tmp_path):
    out = tmp_path / "out"
    assert run(home / name, "--sampler", sampler, *FIT, "--num", 20, "--out", out) == 0
    assert files_of(out) == {"samples.npy", "samples.png", "generate.json"}
    x = np.load(out / "samples.npy")
    assert x.shape == (20, 1, 8, 8)
    assert np.isfinite(x).all()
    assert len(np.unique(x, axis=0)) > 1
    about = json.loads((out / "generate.json").read_text())
    assert about["sampler"] == sampler
    assert ("fit" in about) == (sampler != "vamp")
    if "fit" in about:
        assert about["fit"]["codes"] == len(_training(home / name))


def _training(run_dir: Path) -> Any:
    from distae.data import load
    from distae.runtime.run_dir import read_settings

    return load(read_settings(run_dir).data)["train"]


def test_samples_of_a_mixture_are_near_the_training_codes(home, tmp_path):
    """A mixture of one gaussian has the mean and the spread of the codes; decoded, samples are in the data's units."""
    model, split = distae.load(home / "ae"), _training(home / "ae")
    assert run(home / "ae", "--sampler", "gmm", "--components", 1, "--num", 2000, "--out", tmp_path / "out") == 0
    again = model.encode(np.load(tmp_path / "out" / "samples.npy"))
    codes = model.encode(split.x.numpy())
    np.testing.assert_allclose(again.mean(0), codes.mean(0), atol=0.5 * codes.std())


def test_a_label_is_that_of_all_samples(home, tmp_path):
    for label in (0, 7):
        assert run(home / "cvae", "--num", 5, "--label", label, "--seed", 2, "--out", tmp_path / f"{label}") == 0
        x = np.load(tmp_path / f"{label}" / "samples.npy")
        np.testing.assert_array_equal(x, distae.load(home / "cvae").sample(5, seed=2, label=[label] * 5))


def test_an_interpolation_begins_and_ends_at_the_reconstructions(home, tmp_path, capsys):
    assert run(home / "vae", "--interpolate", 3, 7, "--animate", "--out", tmp_path / "out") == 0
    assert "from test sample 3 to 7, spherical" in capsys.readouterr().out
    assert files_of(tmp_path / "out") == {"interpolation.npy", "interpolation.png", "interpolation.gif", "generate.json"}
    x = np.load(tmp_path / "out" / "interpolation.npy")
    from distae.data import load
    from distae.runtime.run_dir import read_settings

    ends = load(read_settings(home / "vae").data)["test"].x[[3, 7]].numpy()
    np.testing.assert_allclose(x[[0, -1]], distae.load(home / "vae").reconstruct(ends), atol=1e-4)
    with Image.open(tmp_path / "out" / "interpolation.gif") as image:
        assert 10 < getattr(image, "n_frames", 1) <= 2 * generate.FRAMES - 2  # equal ones are merged


def test_a_way_of_an_autoencoder_needs_no_prior_and_is_linear(home, tmp_path, capsys):
    assert run(home / "ae", "--interpolate", 0, 1, "--traverse", "--out", tmp_path / "out") == 0
    out = capsys.readouterr().out
    assert "from test sample 0 to 1, linear" in out
    assert "3 dimensions by their variance" in out


def test_a_traversal_has_a_row_for_each_dimension(home, tmp_path):
    out = tmp_path / "out"
    assert run(home / "vae", "--traverse", "--animate", "--num", 4, "--out", out) == 0
    assert {"samples.npy", "traversal.npy", "traversal.png", "traversal.gif", "dimensions.csv"} <= files_of(out)
    assert np.load(out / "traversal.npy").shape == (3 * 16, 1, 8, 8)
    with (out / "dimensions.csv").open() as file:
        rows = [*csv.DictReader(file)]
    kl = [float(row["kl"]) for row in rows]
    assert kl == sorted(kl, reverse=True)
    assert {row["dimension"] for row in rows} == {"0", "1", "2"}


def test_tables_have_their_columns_units_and_categories(home, tmp_path):
    out = tmp_path / "out"
    assert run(home / "table", "--num", 50, "--traverse", "--interpolate", 0, 1, "--out", out) == 0
    expected = {"samples.csv", "traversal.csv", "interpolation.csv", "dimensions.csv", "generate.json"}
    assert files_of(out) == expected
    with (out / "samples.csv").open() as file:
        rows = [*csv.DictReader(file)]
    assert [*rows[0]] == ["u", "v", "kind"]
    assert len(rows) == 50
    assert {row["kind"] for row in rows} <= {"a", "b", "c"}
    assert 20 < np.mean([float(row["v"]) for row in rows]) < 60
    with (out / "traversal.csv").open() as file:
        first = next(csv.DictReader(file))
    assert [*first] == ["dimension", "sigma", "u", "v", "kind"]
    assert first["sigma"] == "-3.0"


@pytest.mark.parametrize(
    ("name", "argv", "words"),
    [
        ("ae", [], "ae has no prior of its own: give --sampler; valid: gmm, two_stage, flow"),
        ("ae", ["--sampler", "normal"], "--sampler normal does not fit ae; valid: gmm, two_stage, flow"),
        ("vae", ["--sampler", "vamp"], "--sampler vamp does not fit vae; valid: normal, gmm, two_stage, flow"),
        ("vq_vae", ["--sampler", "gmm"], "--sampler gmm does not fit vq_vae; valid: pixel"),
        ("vq_vae", ["--traverse"], "--traverse: the codes of vq_vae are discrete"),
        ("vae", ["--sampler", "gmm", "--components", "500"], "--components 500: more than the "),
        ("vae", ["--num", "0"], "--num 0: expected 1 or more"),
        ("vae", ["--interpolate", "0", "999"], "--interpolate 999: the test samples are 0 to "),
        ("vae", ["--animate"], "--animate needs --interpolate or --traverse"),
        ("vae", ["--mp4"], "--mp4 needs --interpolate or --traverse"),
        ("vae", ["--label", "1"], "--label: vae is not conditioned on labels"),
        ("cvae", ["--label", "10"], "--label 10: valid: 0 to 9"),
        ("nope", [], "no finished run in "),
    ],
)
def test_wrong_input_is_reported_and_leaves_nothing(name, argv, words, home, tmp_path, capsys):
    assert run(home / name, *argv, "--out", tmp_path / "out") == 2
    out, err = capsys.readouterr()
    assert words in err
    assert err.count("\n") <= 2
    assert "wrote" not in out
    assert not (tmp_path / "out").exists()


def test_what_is_there_is_not_overwritten(home, tmp_path, capsys):
    (tmp_path / "out").mkdir()
    assert run(home / "vae", "--out", tmp_path / "out") == 2
    assert "out exists: give --force to overwrite it" in capsys.readouterr().err
    assert run(home / "vae", "--out", tmp_path / "out", "--force") == 0


RANKS = """
import sys
from distae.commands import generate
for name, sampler in (("vae", "flow"), ("vq_vae", "pixel"), ("vae", "gmm")):
    options = f"--sampler {sampler} --fit-steps 20 --components 3 --num 150 --threads 1".split()
    assert generate.main([f"{sys.argv[1]}/{name}", *options, "--out", f"{sys.argv[2]}/{name}-{sampler}"]) == 0
"""


@pytest.mark.spawn
def test_two_ranks_draw_the_samples_of_one(home, tmp_path):
    """Bit for bit: rank 0 fits alone, and blocks of samples are computed whole."""
    (tmp_path / "program.py").write_text(RANKS)
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    for nproc in (1, 2):
        torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={nproc}"]
        command = [*torchrun, str(tmp_path / "program.py"), str(home), str(tmp_path / str(nproc))]
        done = subprocess.run(command, env=env, capture_output=True, text=True, check=False, timeout=280)
        assert done.returncode == 0, done.stderr
        assert done.stdout.count("wrote samples.npy") == 3
    for name in ("vae-flow", "vq_vae-pixel", "vae-gmm"):
        one, two = (np.load(tmp_path / nproc / name / "samples.npy") for nproc in "12")
        assert one.shape == (150, 1, 8, 8)
        np.testing.assert_array_equal(one, two)
