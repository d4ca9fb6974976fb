"""Folders of images, which the tests draw: scanning, decoding, splits, classes, augmentation."""

import io
import os
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from distae.config import TrainConfig, build
from distae.data import Loader, place
from distae.data import image_index as indexing
from distae.data import load as load_splits
from distae.data.decode import decode
from distae.data.image_index import ImageIndex, image_index, kept_index
from distae.data.source import BadRowsError
from distae.errors import UserError
from distae.noise import Noise, Rows


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("DISTAE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "images"


def draw(path: Path, mode: str = "RGB", size: tuple[int, int] = (24, 16), seed: int = 0, **how) -> Path:
    """A smooth made-up image in the format of its suffix."""
    path.parent.mkdir(parents=True, exist_ok=True)
    coarse = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    Image.fromarray(coarse).resize(size, Image.Resampling.BILINEAR).convert(mode).save(path, **how)
    return path


def folder_of(root: Path, names: list[str]) -> Path:
    for i, name in enumerate(names):
        draw(root / name, seed=i)
    return root


def settings(root: Path, **changes):
    return build(TrainConfig, {"data": {"name": "image_folder", "path": str(root), "size": 8, **changes}}).data


def load(cfg) -> dict[str, Any]:
    return {**load_splits(cfg)}


def names_of(splits) -> dict[str, list[str]]:
    index = splits["train"].source.index
    return {k: [index.name(row) for row in split.rows.tolist()] for k, split in splits.items()}


def whole(path: Path, side: int) -> np.ndarray:
    """As torchvision's Resize, which is Pillow's, and CenterCrop: of the whole image, in colour."""
    image = Image.open(path).convert("RGB")
    width, height = (round(n * side / min(image.size)) for n in image.size)
    x = np.asarray(image.resize((width, height), Image.Resampling.BILINEAR))
    top, left = round((height - side) / 2), round((width - side) / 2)
    return x[top : top + side, left : left + side].transpose(2, 0, 1).astype(int)


@pytest.mark.parametrize("name", ["a.png", "a.jpg"])
@pytest.mark.parametrize("size", [(60, 40), (400, 600)])
def test_decoding_is_that_of_the_whole_image(tmp_path, name, size):
    path = draw(tmp_path / name, size=size, quality=95)
    assert np.abs(decode(path, "RGB", 8) - whole(path, 8)).max() <= 4
    assert np.abs(decode(path, "RGB", 8, 0.5) - whole(path, 16)[:, 4:12, 4:12]).max() <= 4


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "LA", "CMYK", "1"])
def test_other_modes_become_colour(tmp_path, mode):
    path = draw(tmp_path / ("a.tif" if mode in ("CMYK", "1") else "a.png"), mode)
    assert decode(path, "RGB", 8).shape == (3, 8, 8)
    assert np.array_equal(
        decode(path, "RGB", 16), np.asarray(Image.open(path).convert("RGB").crop((4, 0, 20, 16))).transpose(2, 0, 1)
    )


def test_transparent_pixels_are_white_and_photos_upright(tmp_path):
    Image.new("RGBA", (8, 8), (255, 0, 0, 0)).save(tmp_path / "clear.png")
    assert (decode(tmp_path / "clear.png", "RGB", 8) == 255).all()
    exif = Image.Exif()
    exif[0x0112] = 3  # upside down
    upright = draw(tmp_path / "up.png", size=(8, 8))
    draw(tmp_path / "down.png", size=(8, 8), exif=exif)
    assert np.array_equal(decode(tmp_path / "down.png", "RGB", 8), decode(upright, "RGB", 8)[:, ::-1, ::-1])


def test_sixteen_bits_become_eight_or_floating_point(tmp_path):
    values = np.linspace(0, 65535, 64).reshape(8, 8).astype(np.uint16)
    for name in ("a.png", "a.tif"):
        Image.fromarray(values).save(tmp_path / name)
        assert np.array_equal(decode(tmp_path / name, "L", 8)[0], np.round(values / 257).astype(np.uint8))
        assert np.allclose(decode(tmp_path / name, "F", 8)[0], values / 65535, atol=1e-7)
    Image.fromarray(values.astype(np.float32)).save(tmp_path / "float.tif")
    with pytest.raises(ValueError, match=r"data.mode F"):
        decode(tmp_path / "float.tif", "L", 8)
    assert np.array_equal(decode(tmp_path / "float.tif", "F", 8)[0], values.astype(np.float32))


def test_classes_are_the_top_folders_and_notes_say_what_was_found(tmp_path):
    root = folder_of(tmp_path / "x", [f"{c}/deep/{i}.png" for c in ("cat", "ant") for i in range(10)])
    draw(root / "ant" / "grey.png", "L")
    (root / "ant" / "notes.txt").write_text("no image")
    (root / ".hidden").mkdir()
    (root / ".hidden" / "a.png").write_text("")
    splits = load(settings(root))
    source = splits["train"].source
    assert source.classes == ("ant", "cat")
    assert [source.index.name(r).split("/")[0] for r in range(21)] == [source.classes[i] for i in source.label.tolist()]
    assert {k: len(v) for k, v in splits.items()} == {"train": 17, "val": 2, "test": 2}
    assert sorted(r for s in splits.values() for r in s.rows.tolist()) == list(range(21))
    text = "\n".join(splits["train"].notes)
    assert "21 images of 2 classes: ant, cat" in text
    assert "1 of them converted to RGB (--data.mode): 1 L" in text
    assert "1 files of other kinds are ignored" in text
    assert load(settings(root, labels="none"))["train"].label is None


def test_flat_images_have_no_class(tmp_path):
    splits = load(settings(folder_of(tmp_path / "x", [f"{i}.png" for i in range(10)])))
    assert splits["train"].label is None
    assert splits["train"].shape == (3, 8, 8)


def test_split_folders(tmp_path):
    root = folder_of(tmp_path / "x", [f"{s}/{c}/{i}.png" for s in ("Train", "valid", "test") for c in "ab" for i in range(4)])
    found = names_of(splits := load(settings(root)))
    assert {k: {n.split("/")[0] for n in v} for k, v in found.items()} == {"train": {"Train"}, "val": {"valid"}, "test": {"test"}}
    assert splits["train"].source.classes == ("a", "b")
    assert len(found["train"]) == 8
    folder_of(root, ["extra/a/1.png"])
    with pytest.raises(UserError, match="besides them extra"):
        load(settings(root))


def test_a_missing_split_folder_is_held_out_of_training(tmp_path):
    root = folder_of(tmp_path / "x", [f"{s}/a/{i}.png" for s in ("train", "test") for i in range(10)])
    found = names_of(load(settings(root, val_fraction=0.2)))
    assert [len(found[k]) for k in ("train", "val", "test")] == [8, 2, 10]
    assert all(n.startswith("train/") for n in found["train"] + found["val"])


def test_a_split_list(tmp_path):
    root = folder_of(tmp_path / "x", [f"a/{i}.png" for i in range(4)])
    listed = tmp_path / "s.csv"
    listed.write_text("path,split\na/2.png,train\na/0.png,val\n./a/1.png,Test\n")
    assert names_of(load(settings(root, split_list=str(listed)))) == {"train": ["a/2.png"], "val": ["a/0.png"], "test": ["a/1.png"]}
    for line, problem in (
        ("a/9.png,train", "not an image below"),
        ("a/3.png,dev2", "one of train, val, test"),
        ("a/2.png,val", "twice"),
    ):
        listed.write_text(f"a/2.png,train\n{line}\n")
        with pytest.raises(UserError, match=f"line 2 .*{problem}"):
            load(settings(root, split_list=str(listed)))


def test_splits_by_group_and_time(tmp_path):
    root = folder_of(tmp_path / "x", [f"p{p}_{t}.png" for p in range(8) for t in range(3)])
    found = names_of(load(settings(root, split_by=r"group:p(\d+)", test_fraction=0.25)))
    groups = {k: {n.split("_")[0] for n in v} for k, v in found.items()}
    assert not groups["train"] & groups["test"]
    assert not groups["train"] & groups["val"]
    assert groups["test"]
    assert groups["val"]
    found = names_of(load(settings(root, split_by=r"time:_(\d+)", test_fraction=0.34, val_fraction=0.5)))
    assert {n[-5] for n in found["test"]} == {"2"}
    assert {n[-5] for n in found["train"]} == {"0"}
    with pytest.raises(UserError, match=r"does not match 'p0_0.png'"):
        load(settings(root, split_by="time:z"))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"path": ""}, "needs the folder"),
        ({"path": "{root}/0.png"}, "is a file, not a folder"),
        ({"path": "{root}/none"}, "is not there"),
        ({"split_by": "patient"}, "valid: group:REGEX and time:REGEX"),
        ({"split_by": "group:("}, "not a regular expression"),
        ({"split_by": "group:(.)", "split_list": "{root}/0.png"}, "exclude each other"),
        ({"split_list": "none.csv"}, "no file none.csv"),
    ],
)
def test_settings_are_checked_without_a_scan(tmp_path, changes, message):
    root = folder_of(tmp_path / "x", ["0.png"])
    with pytest.raises(UserError, match=message):
        settings(root, **{k: v.format(root=root) if "{root}" in v else v for k, v in changes.items()}).shape()


def test_an_empty_folder_says_what_is_read(tmp_path):
    (tmp_path / "x").mkdir()
    (tmp_path / "x" / "a.txt").write_text("")
    with pytest.raises(UserError, match=r"contains no images, only 1 other files; Pillow reads .jpg"):
        load(settings(tmp_path / "x"))


def test_bad_files_are_named_by_the_scan(tmp_path, monkeypatch):
    root = folder_of(tmp_path / "x", [f"{c}/{i}.png" for c in "ab" for i in range(10)])
    (root / "a" / "empty.jpg").touch()
    (root / "b" / "text.png").write_text("no image at all")
    draw(root / "b" / "bomb.png", size=(400, 300))
    monkeypatch.setattr("distae.data.decode.MOST_PIXELS", 100_000)
    with pytest.raises(
        UserError, match=r"3 images .*a/empty.jpg \(it is empty \(0 bytes\)\), b/bomb.png \(400x300 pixels: a decomp"
    ) as found:
        load(settings(root))
    assert "b/text.png (not an image that Pillow can read)" in str(found.value)
    splits = load(settings(root, on_error="skip"))
    assert sum(map(len, splits.values())) == 20
    assert any("3 images" in note and "left out" in note for note in splits["train"].notes)


def test_images_beside_class_folders_and_empty_classes(tmp_path):
    root = folder_of(tmp_path / "x", [f"{c}/{i}.png" for c in "ab" for i in range(5)])
    (root / "c").mkdir()
    with pytest.raises(UserError, match=r"1 class folders of .* contain no image: c"):
        load(settings(root))
    draw(root / "lost.png")
    with pytest.raises(UserError, match=r"1 images of .* are next to class folders and have no class: lost.png"):
        load(settings(root))
    splits = load(settings(root, on_error="skip"))
    assert sum(map(len, splits.values())) == 10
    assert splits["train"].source.classes == ("a", "b")
    assert sum(map(len, load(settings(root, labels="none")).values())) == 11


def test_unreadable_rows_are_named(tmp_path):
    root = folder_of(tmp_path / "x", [f"{i}.png" for i in range(4)])
    (root / "1.png").write_bytes((root / "1.png").read_bytes()[:-30])
    source = load(settings(root))["train"].source
    (root / "2.png").unlink()
    with pytest.raises(BadRowsError, match=r"x/1.png cannot be read \(.*truncated") as found:
        source.read(torch.arange(4))
    assert found.value.reasons.keys() == {1, 2}
    assert "No such file" in found.value.reasons[2]


def test_an_image_that_changes_during_the_run_is_named_and_listed_anew(tmp_path, cache):
    """Though it can be read. In a folder that has changed since a run began, which may be a copy, only the size counts."""
    root = folder_of(tmp_path / "x", [f"{i}.bmp" for i in range(4)])
    splits = load(settings(root, on_error="skip"))
    source = splits["train"].source
    source.remember(tmp_path)
    draw(root / "1.bmp", seed=9)
    with pytest.raises(BadRowsError, match=r"x/1.bmp was changed during the run$") as found:
        source.read(torch.arange(4))
    assert found.value.reasons.keys() == {1}
    assert len(load(settings(root))["train"].source.read(torch.arange(4))) == 4
    began, still_true = kept_index(root, tmp_path)
    assert began
    assert not still_true
    assert began.why_changed(1) is None
    draw(root / "1.bmp", size=(9, 9))
    assert "was changed during the run: it has " in str(began.why_changed(1))


def test_a_small_folder_is_decoded_before_training_and_names_what_is_broken(tmp_path):
    root = folder_of(tmp_path / "x", [f"{i}.png" for i in range(8)])
    (root / "1.png").write_bytes((root / "1.png").read_bytes()[:-30])
    cfg = settings(root)
    with pytest.raises(UserError, match=r"x/1.png cannot be read \(image file is truncated\);\n.*--data.on-error skip"):
        place(cfg, load(cfg), 1)
    skipping = settings(root, on_error="skip")
    assert place(skipping, load(skipping), 1)["train"].source.decodes


def test_reading_is_the_same_at_every_read_and_by_any_part(tmp_path):
    source = load(settings(folder_of(tmp_path / "x", [f"{i}.png" for i in range(6)])))["train"].source
    rows = torch.tensor([4, 0, 5, 4])
    whole = source.read(rows)
    assert whole.dtype == torch.uint8
    assert whole.shape == (4, 3, 8, 8)
    assert torch.equal(whole, torch.cat([source.read(row[None]) for row in rows]))


def scans(monkeypatch) -> list[Path]:
    """Folders that are scanned from now on."""
    seen: list[Path] = []
    scan = indexing._scan

    def noted(root: Path) -> ImageIndex:
        seen.append(root)
        return scan(root)

    monkeypatch.setattr(indexing, "_scan", noted)
    return seen


def test_the_index_is_cached_and_rescanned_where_the_folder_changed(tmp_path, cache, monkeypatch):
    root = folder_of(tmp_path / "x", [f"a/{i}.png" for i in range(6)])
    seen = scans(monkeypatch)
    first = image_index(root)
    again = image_index(root)
    assert len(seen) == 1
    assert again.names() == first.names() == sorted(f"a/{i}.png" for i in range(6))
    assert (again.sizes == first.sizes).all()
    assert again.folders == ("", "a")
    os.utime(root / "a/3.png", (1, 1))
    image_index(root)
    draw(root / "a" / "new.png")
    assert len(image_index(root)) == 7
    assert len(seen) == 3
    next(cache.glob("*.npz")).write_bytes(b"damaged")
    assert len(image_index(root)) == 7
    assert len(seen) == 4


def test_a_cache_that_cannot_be_written_is_none(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("DISTAE_CACHE", str(tmp_path / "file"))
    assert len(image_index(folder_of(tmp_path / "x", ["a.png"]))) == 1


def test_a_copy_elsewhere_is_the_same_data_and_a_change_is_not(tmp_path):
    names = [f"{i}.png" for i in range(10)]
    here, there = (load(settings(folder_of(tmp_path / x, names))) for x in ("here", "there"))
    assert here["train"].identity == there["train"].identity
    draw(tmp_path / "there" / "0.png", seed=99)
    assert load(settings(tmp_path / "there"))["train"].identity != here["train"].identity


@pytest.mark.slow
def test_a_million_files_start_within_seconds(tmp_path, cache, monkeypatch):
    """A made-up index: the files are not there, and nothing looks at each of them. CPU seconds, for the machine may be busy."""
    n = 1_000_000
    root = tmp_path / "x"
    folders = ("", *(f"class{i:03}" for i in range(1000)))
    for name in folders[1:]:
        (root / name).mkdir(parents=True)
    text = "".join(f"{folders[1 + i // 1000]}/{i:08}.jpg" for i in range(n)).encode()
    made = ImageIndex(
        root, np.frombuffer(text, np.uint8), np.arange(1, n + 1) * 21, np.full(n, 99), np.zeros(n, np.int64),
        (1 + np.arange(n) // 1000).astype(np.int32), np.zeros(n, np.uint8), np.full(n, 300, np.int32),
        folders, tuple((root / name).stat().st_mtime_ns for name in folders), ("RGB",), {}, 0, (),
    )  # fmt: skip
    kept = indexing._cache_file(root.resolve())
    assert kept
    kept.write_bytes(indexing._dump(made))
    looked: list[int] = []

    def path(self: ImageIndex, row: int) -> _Sampled:
        looked.append(row)
        return _Sampled()

    monkeypatch.setattr(ImageIndex, "path", path)
    started = time.process_time()
    splits = load(settings(root))
    _ = [split.identity for split in splits.values()]
    took = time.process_time() - started
    assert sum(map(len, splits.values())) == n
    assert len(looked) <= 256
    assert took < 5


class _Sampled:
    def stat(self):
        return os.stat_result((0, 0, 0, 0, 0, 0, 99, 0, 0, 0), {"st_mtime_ns": 0})

    def open(self, mode):
        return io.BytesIO(b"content")


def test_random_crops_and_mirror_images_are_of_training_only_and_keyed(tmp_path):
    root = folder_of(tmp_path / "x", [f"{i}.png" for i in range(40)])
    splits = load(settings(root, crop="random", flip=True, size=14))
    train, val = (Loader(splits[k], "none", torch.device("cpu"), torch.float32) for k in ("train", "val"))
    assert splits["train"].source.shape == (3, 16, 16)
    assert splits["train"].shape == (3, 14, 14)
    rows, key = torch.arange(24), (0, ("data", 0))
    whole = train.batch(rows, Noise(*key, Rows(24), torch.device("cpu")), training=True)[0]
    parts = [train.batch(rows[a : a + 8], Noise(*key, Rows(8, a), torch.device("cpu")), training=True)[0] for a in (0, 8, 16)]
    assert torch.equal(whole, torch.cat(parts))
    stored = splits["train"].read(rows)[0]
    windows = stored.unfold(2, 14, 1).unfold(3, 14, 1).flatten(2, 3).transpose(1, 2)  # [B, 9, C, 14, 14]
    candidates = torch.cat([windows, windows.flip(-1)], 1)
    match = (candidates == (whole * 255).round().to(torch.uint8)[:, None]).flatten(2).all(2)
    assert match.any(1).all()
    places = match.int().argmax(1)
    assert len(places.unique()) > 8
    assert 4 < int((places >= 9).sum()) < 20
    noise = Noise(1, ("eval", 0), Rows(3), torch.device("cpu"))
    center = splits["val"].read(torch.arange(3))[0][:, :, 1:15, 1:15] / 255
    assert torch.allclose(val.batch(torch.arange(3), noise)[0], center)
    assert torch.equal(train.batch(rows, noise)[0], splits["train"].transform.apply(stored, torch.float32))
