"""Metrics of compression: real bytes and pictures, against files that are made by hand."""

import io
from typing import Any

import numpy as np
import pytest
import torch
from evaluations import evaluation
from helpers import images, splits
from PIL import Image

from distae.compression.archive import Archive, Kind
from distae.config.names import METRICS
from distae.data import Split
from distae.evaluation.compression import codes_of, fit, lossy, numbers_of, psnr
from distae.evaluation.metrics import Skip

DISCRETE = {"latent_dim": 6, "dim": 2, "codebook_size": 8}


def of(name: str, **changes):
    """An evaluation on 230 test images: two whole sheets."""
    return evaluation(name, splits(test=230), **changes)


def value(name, e):
    return METRICS[name].compute(e)


def by_hand(e, step=0.5):
    """The bytes and the decoded images `[200, 8, 8]` of two files of 100 samples."""
    tables = fit(e.model, e.codes("train"), step)
    symbols = tables.symbols(numbers_of(e.codes()))[0][:200]
    sizes = [len(Archive(0, 0, 100, Kind.BYTES, tables.encode(part)).to_bytes()) for part in (symbols[:100], symbols[100:])]
    with torch.no_grad():
        made = e.model.decode(codes_of(e.model, tables, symbols))[:, 0]
    return sum(sizes), (made * 255).round().clamp(0, 255).numpy()


@pytest.mark.parametrize(("name", "changes", "key"), [("ae", {}, "0.5"), ("vq_vae", DISCRETE, None)])
def test_bits_and_psnr_are_of_the_real_files(name, changes, key):
    e = of(name, **changes)
    size, made = by_hand(e)
    bits, quality = (found if key is None else found[key] for found in (value("bits_per_pixel", e), value("compression_psnr", e)))
    assert bits.value == pytest.approx(8 * size / (200 * 64))
    true = e.values()[:200, 0].numpy() * 255
    assert quality.value == pytest.approx(10 * np.log10(255**2 / np.square(made - true).mean()))
    assert set(bits.baselines) == {"png", "webp"}
    assert {k.partition(",")[0] for k in quality.baselines} == {"jpeg", "webp"}
    assert quality.protocol["samples_per_file"] == 100


def test_a_sheet_has_its_images_in_rows():
    """The PNG of the baseline is that of the images side by side."""
    e = of("ae")
    x = (e.values()[:200, 0] * 255).round().byte().numpy()
    sizes = []
    for part in (x[:100], x[100:]):
        file = io.BytesIO()
        Image.fromarray(np.block([[part[10 * r + c] for c in range(10)] for r in range(10)])).save(file, "PNG", optimize=True)
        sizes.append(len(file.getvalue()))
    assert value("bits_per_pixel", e)["0.5"].baselines["png"] == pytest.approx(8 * sum(sizes) / (200 * 64))


def test_finer_steps_take_more_bits_and_give_a_better_picture():
    e = of("ae")
    bits, quality = value("bits_per_pixel", e), value("compression_psnr", e)
    assert [*bits] == [*quality] == ["0.25", "0.5", "1", "2"]
    assert [f.value for f in bits.values()] == sorted((f.value for f in bits.values()), reverse=True)
    assert quality["0.25"].value > quality["2"].value


def test_the_other_formats_get_as_many_bytes_and_no_more():
    sheet = np.asarray(images(1, 5).source.x[0, 0].repeat(8, 8))  # type: ignore[attr-defined]
    for kind in ("JPEG", "WEBP"):
        sizes = []
        for quality in range(1, 96):
            file = io.BytesIO()
            Image.fromarray(sheet).save(file, kind, quality=quality, **({"optimize": True} if kind == "JPEG" else {}))
            sizes.append(len(file.getvalue()))
        for most in (sizes[20], sizes[60], sizes[60] + 1):
            assert len(lossy(sheet, kind, most)) <= most
            assert len(lossy(sheet, kind, most)) >= sizes[20]
        assert len(lossy(sheet, kind, 1)) == sizes[0], "at its lowest quality where none is small enough"


def test_psnr_is_of_all_pixels_together_and_finite():
    black, white = np.zeros((4, 4), np.uint8), np.full((4, 4), 255, np.uint8)
    assert psnr([black], [white]) == 0
    assert psnr([black, white], [white, white]) == pytest.approx(10 * np.log10(2))
    assert psnr([black], [black]) == 100


@pytest.mark.slow
def test_the_coder_costs_less_than_2_percent():
    """Of enough codes: the header and the state take 40 to 60 bytes of any file."""
    variants: dict[str, dict[str, Any]] = {"vae": {}, "fsq_vae": {"latent_dim": 8, "levels": [31, 31]}}
    for name, changes in variants.items():
        e = evaluation(name, splits(test=8000), **changes)
        found = value("coding_overhead", e)
        for figure in found.values() if isinstance(found, dict) else [found]:
            assert 0 < figure.value < 0.02, figure


def test_where_it_does_not_apply():
    x = torch.randn(150, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    table = {name: Split.of(x) for name in ("train", "val", "test")}
    e = evaluation("ae", table, likelihood="gaussian")
    with pytest.raises(Skip, match="not images"):
        value("compression_psnr", e)
    assert value("bits_per_pixel", e)["1"].baselines == {}
    with pytest.raises(Skip, match="labels"):
        value("bits_per_pixel", evaluation("cvae"))
