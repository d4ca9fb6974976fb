"""distae compress and decompress: what comes back is the model's decode of the codes, whatever the number of threads."""

import shutil
import struct
import zlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import EVERY, splits
from PIL import Image
from variants import IMAGES_ONLY, SMALL, make

import distae
from distae.commands import compress, decompress
from distae.compression import fit_discrete, fit_grid, load_tables, read_archive
from distae.config import TrainConfig, build
from distae.data import Transform
from distae.evaluation.compression import STEP, codes_of, fit, numbers_of, sensitivity
from distae.models.serialization import export

IMAGES = splits()["train"].source.x[:, 0].numpy()  # type: ignore[attr-defined]
"""`[197, 8, 8]` bytes."""
MODELS: dict[str, dict[str, Any]] = {
    "ae": {"latent_dim": 5}, "vae": {"latent_dim": 5}, "vq_vae": {"latent_dim": 12, "dim": 2, "codebook_size": 16},
    "rq_vae": {"latent_dim": 4, "dim": 2, "codebook_size": 16, "depth": 2}, "fsq_vae": {"latent_dim": 4, "levels": [5, 3]},
    "lfq_vae": {"latent_dim": 8, "bits": 4}, "bsq_vae": {"latent_dim": 12, "bits": 6},
}  # fmt: skip


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> Path:
    """Run folders, by the variant's name, of models of 8x8 images of bytes that lie in x.npy."""
    root = tmp_path_factory.mktemp("runs")
    np.save(root / "x.npy", IMAGES)
    for name, changes in MODELS.items():
        data = {"name": "array", "path": str(root / "x.npy"), "scale": 255.0}
        cfg = build(TrainConfig, {"model": {"name": name, **changes}, "net": {"name": "mlp", "hidden": [16]}, "data": data})
        made = distae.models.build(cfg.model, cfg.net, (1, 8, 8), 3)
        export(made, cfg, root / name / "model", 1, Transform(255.0, "no_channel"), None)
    return root


@pytest.fixture
def run(runs, tmp_path) -> Path:
    """The autoencoder's run folder, to be changed."""
    shutil.copytree(runs / "ae" / "model", tmp_path / "ae" / "model")
    return tmp_path / "ae"


def called(command, *words: object) -> int:
    return command.main([*map(str, words)], command.__name__)


def refused(capsys, command, *words: object) -> str:
    assert called(command, *words) == 2
    return capsys.readouterr().err


def expected(model: distae.Model, tables, x) -> np.ndarray:
    """The model's decode of the codes on the grid."""
    symbols, _ = tables.symbols(numbers_of(model.codes(torch.from_numpy(x))))
    return model.decode(codes_of(model.module, tables, symbols)).cpu().numpy()


@pytest.mark.parametrize("name", sorted(MODELS))
def test_what_comes_back_is_the_decode_of_the_codes(runs, tmp_path, name):
    x, file = IMAGES[:150], tmp_path / "x.dae"
    np.save(tmp_path / "some.npy", x)
    assert called(compress, runs / name, tmp_path / "some.npy", "--out", file) == 0
    made, threads = {}, torch.get_num_threads()
    try:
        for number in (1, 2):
            to = tmp_path / f"back{number}"
            assert called(decompress, file, "--model", runs / name, "--out", to, "--threads", number) == 0
            made[number] = np.load(to / decompress.ARRAY)
    finally:
        torch.set_num_threads(threads)
    assert made[1].dtype == np.uint8
    assert np.array_equal(made[1], made[2])
    model, (path,) = distae.load(runs / name), (runs / name / "evaluation" / "tables").glob("*")
    np.testing.assert_array_equal(made[1], expected(model, load_tables(path), x).round().clip(0, 255))
    if model.module.num_codes is not None:  # nothing is lost but by the model
        np.testing.assert_array_equal(made[1], model(x).round().clip(0, 255))


@pytest.mark.parametrize("name", ["ae", "vq_vae"])
def test_real_bytes_are_within_2_percent_of_the_entropy(runs, tmp_path, name):
    np.save(tmp_path / "many.npy", np.concatenate([IMAGES] * 20))
    assert called(compress, runs / name, tmp_path / "many.npy", "--out", tmp_path / "x.dae") == 0
    (path,), archive = (runs / name / "evaluation" / "tables").glob("*"), read_archive(tmp_path / "x.dae")
    tables = load_tables(path)
    dims = len(tables.frequencies)
    entropy = tables.bits(tables.decode(archive.codes, archive.count, dims)) / 8
    assert entropy < (tmp_path / "x.dae").stat().st_size < 1.02 * entropy


def test_finer_steps_are_nearer_and_larger(runs, tmp_path):
    model, sizes, errors = distae.load(runs / "ae"), [], []
    for step in (0.05, 0.5, 2):
        file, to = tmp_path / f"{step}.dae", tmp_path / str(step)
        assert called(compress, runs / "ae", runs / "x.npy", "--step-size", step, "--out", file) == 0
        assert called(decompress, file, "--model", runs / "ae", "--out", to) == 0
        sizes.append(file.stat().st_size)
        errors.append(np.square(np.load(to / decompress.ARRAY) - model(IMAGES)).mean())
    assert sizes == sorted(sizes, reverse=True)
    assert errors == sorted(errors)
    assert errors[0] < 0.2


def test_images_come_back_as_png_by_their_names(runs, tmp_path, capsys):
    folder = tmp_path / "pictures"
    folder.mkdir()
    for i, image in enumerate(IMAGES[:5]):
        Image.fromarray(image).save(folder / f"no {i}.{'bmp' if i % 2 else 'png'}")
    assert called(compress, runs / "ae", folder, "--out", tmp_path / "p.dae") == 0
    assert "5 samples" in capsys.readouterr().out
    assert called(decompress, tmp_path / "p.dae", "--model", runs / "ae", "--out", tmp_path / "back") == 0
    names = sorted(p.name for p in (tmp_path / "back").iterdir())
    assert names == [f"no {i}.png" for i in range(5)]
    np.save(tmp_path / "a.npy", IMAGES[:5])
    called(compress, runs / "ae", tmp_path / "a.npy", "--out", tmp_path / "a.dae")
    called(decompress, tmp_path / "a.dae", "--model", runs / "ae", "--out", tmp_path / "array")
    whole = np.load(tmp_path / "array" / decompress.ARRAY)
    for name, image in zip(names, whole, strict=True):
        assert np.array_equal(np.asarray(Image.open(tmp_path / "back" / name)), image)


def test_samples_of_the_run_and_defaults(run):
    assert called(compress, run, "--split", "test") == 0
    file = run / "evaluation" / compress.FILE
    assert read_archive(file).count == 20
    assert called(decompress, file) == 0, "the run is the folder around the file"
    assert np.load(run / "evaluation" / "compressed" / decompress.ARRAY).shape == (20, 8, 8)


def test_floats_stay_floats_and_tables_of_the_run_serve_other_data(run, tmp_path):
    np.save(tmp_path / "f.npy", IMAGES[:9].astype(np.float32))
    assert called(compress, run, "--data", tmp_path / "f.npy", "--data.scale", "255", "--out", tmp_path / "f.dae") == 0
    (path,) = (run / "evaluation" / "tables").glob("*")
    train = distae.load(run).codes(torch.from_numpy(IMAGES))
    assert load_tables(path).frequencies.shape[0] == train.z.shape[1]
    assert called(decompress, tmp_path / "f.dae", "--model", run, "--out", tmp_path / "f") == 0
    assert np.load(tmp_path / "f" / decompress.ARRAY).dtype == np.float32


def test_what_is_no_input(runs, tmp_path, capsys):
    ae = runs / "ae"
    Image.fromarray(np.zeros((9, 8), np.uint8)).save(tmp_path / "large.png")
    (tmp_path / "bad.png").write_bytes(b"no image")
    (tmp_path / "bad.npy").write_bytes(b"no array")
    np.save(tmp_path / "other.npy", np.zeros((3, 7, 7), np.uint8))
    (tmp_path / "none").mkdir()
    for words, why in {
        (tmp_path / "large.png",): "8x9 pixels; the model takes 8x8", (tmp_path / "bad.png",): "cannot be read",
        (tmp_path / "bad.npy",): "is not an array", (tmp_path / "other.npy",): "expected [N, 8, 8]",
        (tmp_path / "none",): "no images in this folder", (tmp_path / "nowhere.png",): "no such file",
        (runs / "x.npy", runs / "x.npy"): "give one array", (runs / "x.npy", "--step-size", "0"): "--step-size 0.0: above 0",
    }.items():  # fmt: skip
        assert why in refused(capsys, compress, ae, *words, "--out", tmp_path / "x.dae")
    assert "discrete; leave it out" in refused(capsys, compress, runs / "vq_vae", runs / "x.npy", "--step-size", "1", "--out", "x")
    assert "model/ is missing" in refused(capsys, compress, tmp_path / "none", runs / "x.npy")
    assert not (tmp_path / "x.dae").exists()


def test_what_exists_is_kept_unless_forced(run, tmp_path, capsys):
    np.save(tmp_path / "x.npy", IMAGES[:4])
    words = (run, tmp_path / "x.npy", "--out", tmp_path / "x.dae")
    back = (tmp_path / "x.dae", "--model", run, "--out", tmp_path / "back")
    assert called(compress, *words) == called(decompress, *back) == 0
    assert "exists: give --force" in refused(capsys, compress, *words)
    assert "exists: give --force" in refused(capsys, decompress, *back)
    assert called(compress, *words, "--force") == called(decompress, *back, "--force") == 0


def test_a_file_that_is_no_whole_one_of_this_model(runs, run, tmp_path, capsys):
    file, bad = tmp_path / "x.dae", tmp_path / "bad.dae"
    assert called(compress, run, runs / "x.npy", "--out", file) == 0
    data = file.read_bytes()
    forged = read_archive(file)
    for made, why in {
        data[:-3]: "truncated or damaged (CRC", data[:60] + b"!" + data[61:]: "(CRC", b"": "truncated",
        b"PNG" * 30: "not a .dae file",
        replace(forged, codes=forged.codes[:-4]).to_bytes(): "the codes end too early",
        replace(forged, count=2**32 - 1).to_bytes(): "claims to hold", replace(forged, tables=1).to_bytes(): "tables that it was",
    }.items():  # fmt: skip
        bad.write_bytes(made)
        assert why in refused(capsys, decompress, bad, "--model", run, "--out", tmp_path / "out")
    assert "another model" in refused(capsys, decompress, file, "--model", runs / "vae", "--out", tmp_path / "out")
    assert "is not in a run folder" in refused(capsys, decompress, file)
    assert "no such file" in refused(capsys, decompress, tmp_path / "missing.dae")
    assert not (tmp_path / "out").exists()
    with pytest.raises(struct.error):
        struct.pack("<I", 2**32)
    assert zlib.crc32(data[:-4]) == struct.unpack("<I", data[-4:])[0], "any program can check the file"


def test_steps_are_of_equal_effect():
    """Of a linear decoder, sensitivities are the norms of its columns."""
    model = make("linear_ae", likelihood="gaussian").eval()
    weight = dict(model.decoder.named_parameters())
    (matrix,) = (w for w in weight.values() if w.ndim == 2)
    z = torch.randn(1024, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    np.testing.assert_allclose(sensitivity(model, z), matrix.detach().norm(dim=0), rtol=0.1)
    made = fit(model, distae.models.Codes(z), STEP)
    assert made.step is not None
    effect = made.step * matrix.detach().norm(dim=0).numpy()
    np.testing.assert_allclose(effect, effect.mean(), rtol=0.1)
    contributed = np.sqrt(np.square(matrix.detach().norm(dim=0).numpy() * z.numpy().std(0)).mean())
    np.testing.assert_allclose(effect, STEP * contributed, rtol=0.1)


@pytest.mark.parametrize("name", EVERY)
def test_codes_of_every_variant_are_compressed_or_the_reason_is_known(name):
    """Codes on the grid are near the codes, and those of indices are the codes."""
    from distae.evaluation.compression import why_not

    shape = (1, 8, 8) if name in IMAGES_ONLY else (6,)
    changes = {name: {"latent_dim": 4} for name in ("fsq_vae", "vq_vae", "rq_vae")} | SMALL
    model = make(name, shape=shape, **changes.get(name, {})).eval()
    if model.cfg.conditional:
        assert "labels" in str(why_not(model))
        return
    x = torch.rand(300, *shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        codes = model.encode(x)
    tables = fit(model, codes, 0.01)
    symbols, outside = tables.symbols(numbers_of(codes))
    z = codes_of(model, tables, tables.decode(tables.encode(symbols), *symbols.shape))
    assert outside == 0
    assert z.shape == codes.z.shape
    with torch.no_grad():
        error = (model.decode(z) - model.decode(codes.z)).square().mean().sqrt()
        spread = model.decode(codes.z).std(0).square().mean().sqrt()
    assert error <= 0.05 * spread + 1e-9 if model.num_codes is None else torch.equal(z, codes.z)


def test_the_functions_that_are_exported():
    assert fit_discrete(np.zeros((3, 2), np.int64), 1).frequencies.tolist() == [[1 << 24], [1 << 24]]
    assert fit_grid(np.ones((3, 1)), np.ones(1)).values(np.zeros((1, 1), np.int64)).tolist() == [[1.0]]
