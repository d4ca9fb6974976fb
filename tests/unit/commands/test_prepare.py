"""`distae prepare` and `distae data`: any source as shards, resumed where it was killed, with what could not be read."""

import importlib
import json
import os
import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import labels_of, source_of
from PIL import Image

from distae.commands import data as look
from distae.commands import prepare
from distae.config.data import ArrayConfig, DataConfig, ImageFolderConfig, TableConfig
from distae.config.data.manifest import manifest_in
from distae.data import load, place, preparing
from distae.data.storage import streams
from distae.errors import UserError
from distae.runtime.files import write_atomically

PIXELS = np.random.default_rng(0).integers(0, 256, (40, 8, 8, 3), dtype=np.uint8)
KINDS = ["cat", "dog"]


@pytest.fixture
def photos(tmp_path: Path, monkeypatch) -> Path:
    """40 images of 2 classes."""
    monkeypatch.setenv("DISTAE_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    for i, pixels in enumerate(PIXELS):
        path = tmp_path / "photos" / KINDS[i % 2] / f"{i:02}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(path)
    return tmp_path / "photos"


def ran(*argv: object) -> int:
    return prepare.main([str(a) for a in argv], "distae prepare")


def rows_per_shard(monkeypatch, n: int, row_bytes: int = 8 * 8 * 3) -> None:
    """Small shards and blocks: --shard-mb counts megabytes."""
    monkeypatch.setattr(preparing, "BLOCK", 3 * row_bytes)
    made = preparing.Preparation.__init__

    def small(self, splits, folder, shard_bytes, workers, *share):
        made(self, splits, folder, n * row_bytes, workers, *share)

    monkeypatch.setattr(preparing.Preparation, "__init__", small)


def same(prepared: dict, source: dict) -> None:
    for name, split in source.items():
        assert torch.equal(prepared[name].x, split.x)
        assert torch.equal(prepared[name].label, split.label)
        assert prepared[name].transform == split.transform
    assert prepared["train"].source.classes == source["train"].source.classes


def test_images_become_shards_and_come_back(photos, tmp_path, monkeypatch, capsys):
    """The same samples in the same splits, labels, classes; mapped."""
    rows_per_shard(monkeypatch, 10)
    assert ran(photos, tmp_path / "out", "--data.size", 8, "--workers", 3) == 0
    out = capsys.readouterr().out
    assert "out: 32 train, 4 val, 4 test samples in 6 shards" in out
    assert "distae train --data array --data.path" in out
    cfg = ArrayConfig(path=str(tmp_path / "out"))
    sets = load(cfg)
    same(sets, load(ImageFolderConfig(path=str(photos), size=8)))
    assert cfg.shape() == (3, 8, 8)
    assert all(part.stamp and part.rows.dtype == torch.uint8 for part in source_of(sets["train"]).parts)
    assert "made by distae prepare: 32 train, 4 val, 4 test samples" in sets["train"].notes[0]
    with pytest.raises(UserError, match=r"--data.scale: .*out was made by distae prepare, which decided that: leave it out"):
        ArrayConfig(path=str(tmp_path / "out"), scale=2.0).shape()


def test_a_killed_preparation_is_resumed(photos, tmp_path, monkeypatch, capsys):
    """Whole shards stay, no half one has a name that counts, and the result is that of one go."""
    rows_per_shard(monkeypatch, 10)
    written = write_atomically

    def killed(path: Path, parts: Any) -> None:
        if path.name == "train-00002.safetensors":
            path.with_name(f".{path.name}.writing").write_bytes(b"half")
            raise KeyboardInterrupt
        written(path, parts)

    monkeypatch.setattr(preparing, "write_atomically", killed)
    assert ran(photos, tmp_path / "out", "--data.size", 8) == 130
    assert capsys.readouterr().err.endswith("distae: interrupted by Ctrl-C: rerun to resume\n")
    names = sorted(p.name for p in (tmp_path / "out").glob("[!.]*"))
    assert names == ["manifest.json", "train-00000.safetensors", "train-00001.safetensors"]
    with pytest.raises(UserError, match=r"distae prepare did not finish .*out: rerun it to resume"):
        load(ArrayConfig(path=str(tmp_path / "out")))
    before = {p.name: p.stat().st_mtime_ns for p in (tmp_path / "out").glob("train*")}
    monkeypatch.setattr(preparing, "write_atomically", written)
    assert ran(photos, tmp_path / "out", "--data.size", 8) == 0
    assert {name: (tmp_path / "out" / name).stat().st_mtime_ns for name in before} == before
    assert not list((tmp_path / "out").glob(".*"))
    assert ran(photos, tmp_path / "again", "--data.size", 8) == 0
    for path in (tmp_path / "again").glob("*.safetensors"):
        assert path.read_bytes() == (tmp_path / "out" / path.name).read_bytes()
    capsys.readouterr()
    assert ran(photos, tmp_path / "out", "--data.size", 8) == 0
    assert "is complete: nothing to do" in capsys.readouterr().out


def test_what_cannot_be_read_is_left_out_and_reported(photos, tmp_path, monkeypatch, capsys):
    """Seen by the scan, or only when it is decoded."""
    (photos / "cat/00.png").write_bytes(b"")
    whole = (photos / "dog/01.png").read_bytes()
    (photos / "dog/01.png").write_bytes(whole[: len(whole) // 2])
    assert ran(photos, tmp_path / "out", "--data.size", 8, "--data.on-error", "skip") == 0
    out = capsys.readouterr().out
    assert "2 could not be read and are left out" in out
    assert out.count("01.png") == out.count("00.png") == 1
    manifest = manifest_in(tmp_path / "out")
    assert manifest
    assert {Path(u.file).name for u in manifest.unread} == {"00.png", "01.png"}
    assert all(u.reason for u in manifest.unread)
    assert sum(s.rows for split in manifest.splits.values() for s in split) == 38
    sets = load(ArrayConfig(path=str(tmp_path / "out")))
    assert sum(map(len, sets.values())) == 38
    assert "2 samples of the source could not be read" in sets["train"].notes[0]


def test_a_folder_of_something_else_is_not_touched(photos, tmp_path, capsys):
    (tmp_path / "out").mkdir()
    (tmp_path / "out/mine.txt").write_text("x")
    for more in ((), ("--force",)):
        assert ran(photos, tmp_path / "out", "--data.size", 8, *more) == 2
        assert "mine.txt" in capsys.readouterr().err
    (tmp_path / "out/mine.txt").unlink()
    assert ran(photos, tmp_path / "out", "--data.size", 8) == 0
    assert ran(photos, tmp_path / "out", "--data.size", 4) == 2
    assert "which is of other data or settings: give another folder, or --force" in capsys.readouterr().err
    assert ran(photos, tmp_path / "out", "--data.size", 4, "--force") == 0
    assert ArrayConfig(path=str(tmp_path / "out")).shape() == (3, 4, 4)


@pytest.mark.parametrize("damage", ["truncated", "vanished", "manifest", "newer"])
def test_a_prepared_folder_that_is_damaged(damage, photos, tmp_path):
    assert ran(photos, tmp_path / "out", "--data.size", 8) == 0
    shard, manifest = tmp_path / "out/val-00000.safetensors", tmp_path / "out/manifest.json"
    match damage:
        case "truncated":
            os.truncate(shard, 300)
        case "vanished":
            shard.unlink()
        case "manifest":
            manifest.write_text('{"shape": [-1]}')
        case "newer":
            manifest.write_text(json.dumps(json.loads(manifest.read_text()) | {"version": 99}))
    name = {"manifest": "manifest.json is damaged", "newer": "manifest.json has version 99"}.get(
        damage, "val-00000.safetensors is missing"
    )
    with pytest.raises(UserError, match=name):
        load(ArrayConfig(path=str(tmp_path / "out")))


def test_other_sources(tmp_path, monkeypatch):
    """By the name of a data set, arrays of odd sizes, tables with their columns."""
    monkeypatch.chdir(tmp_path)
    assert ran("digits", "digits_out") == 0
    same(load(ArrayConfig(path="digits_out")), load(DataConfig.choices()["digits"]()))
    np.savez("x.npz", x=np.random.default_rng(0).random((50, 3), np.float32), y=np.arange(50) % 4)
    assert ran("x.npz", "x_out", "--data.label-key", "y") == 0
    same(load(ArrayConfig(path="x_out")), load(ArrayConfig(path="x.npz", label_key="y")))
    Path("t.csv").write_text("a,b,kind\n" + "".join(f"{i},{i / 7},{'xyz'[i % 3]}\n" for i in range(60)))
    assert ran("t.csv", "t_out", "--data.label", "kind") == 0
    table = TableConfig(path="t.csv", label="kind")
    prepared = ArrayConfig(path="t_out")
    assert (prepared.shape(), prepared.for_model()) == (table.shape(), table.for_model())
    split, source = load(prepared)["train"], load(table)["train"]
    at = torch.arange(len(source))
    seen = [s.transform.apply(s.read(at)[0], torch.float64) for s in (split, source)]
    assert torch.equal(*seen)
    assert torch.equal(labels_of(split), labels_of(source))


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        (["nowhere", "out"], "no file, folder or data set nowhere; valid names: digits"),
        (["x.txt", "out"], "x.txt is of an unknown kind of data; give --data, one of digits"),
        (["digits"], "distae prepare needs a source and a folder to write to"),
        (["digits", "out", "more"], "unexpected argument 'more'"),
        (["digits", "out", "--workers", "0"], "'0' is not valid; expected an integer >= 1"),
        (["digits", "out", "--nope", "0"], "unknown option '--nope'"),
    ],
)  # fmt: skip
def test_wrong_command_lines(argv, says, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("x.txt").write_text("x")
    assert ran(*argv) == 2
    assert says in capsys.readouterr().err


def looked(*argv: object) -> int:
    return look.main([str(a) for a in argv], "distae data")


def test_looking_at_data(photos, tmp_path, capsys):
    """Shape, range, counts, classes, what is unreadable, a contact sheet, and what would be done."""
    (photos / "cat/00.png").write_bytes(b"")
    assert looked(photos, "--data.size", 8, "--data.on-error", "skip") == 0
    out = capsys.readouterr().out
    for line in (
        "--data image_folder", r"stored      [3, 8, 8] uint8", "train       31 samples, [3, 8, 8] from 0 to 1 in 31 of them",
        "classes     2: cat ", "unreadable  1 of the samples inspected", "the model   sees [3, 8, 8]: divided by 255",
        "storage     streamed", "order       full shuffle", "pictures    contact_sheet.png: 31 training samples",
    ):  # fmt: skip
        assert line in out, line
    with Image.open("contact_sheet.png") as sheet:
        assert sheet.width > 8 * 8
    assert looked(photos, "--data.size", 8, "--data.on-error", "skip") == 2
    assert "--sheet: contact_sheet.png already exists; give a different file, or --force to replace it" in capsys.readouterr().err


@pytest.mark.parametrize(("storage", "where"), [("auto", "decoded once into this node's cache"), ("streamed", "streamed")])
def test_where_images_would_be_is_what_a_run_does(storage: Any, where, photos, tmp_path, capsys):
    assert looked(photos, "--data.size", 8, "--data.storage", storage, "--sheet", tmp_path / "sheet.png") == 0
    assert f"storage     {where}" in capsys.readouterr().out
    cfg = ImageFolderConfig(path=str(photos), size=8, storage=storage)
    assert streams(place(cfg, load(cfg), 1)["train"].source) == (where == "streamed")


def test_looking_at_arrays_and_tables(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    np.save("x.npy", np.arange(60, dtype=np.float32).reshape(20, 3))
    Path("contact_sheet.png").touch()  # of other data; none is drawn of these
    assert looked("x.npy") == 0
    assert "train       16 samples, [3] from 0 to 59" in capsys.readouterr().out
    Path("t.csv").write_text("a,b\n" + "".join(f"{i},{'' if i % 2 else i}\n" for i in range(60)))
    assert looked("t.csv", "--data.missing", "mask") == 0
    assert "% of the values missing" in capsys.readouterr().out
    Path("r.inter").write_text("user\titem\n" + "".join(f"u{i // 3}\ti{i % 7}\n" for i in range(60)))
    assert looked("r.inter") == 0
    assert "sparse: r.inter, 60 of 60 rows kept: 20 users, 7 items" in capsys.readouterr().out
    assert looked("--data", "digits", "--force") == 0
    assert "sees [1, 8, 8]: divided by 16" in capsys.readouterr().out


FUNCTIONS = """
import torch
calls = []
def features(x):
    calls.append(len(x))
    return (x.flatten(1)[:, :5] * 2 - 1).bfloat16()
def whole(x):
    return x.long()
def mean(x):
    return x.mean()
"""


def as_rank(monkeypatch, rank: int, count: int) -> None:
    for name, value in {"RANK": rank, "WORLD_SIZE": count, "LOCAL_RANK": rank, "LOCAL_WORLD_SIZE": count}.items():
        monkeypatch.setenv(name, str(value))
    monkeypatch.setenv("MASTER_ADDR", "localhost")
    monkeypatch.setenv("MASTER_PORT", "1")


def test_activations_of_a_network_are_written(photos: Path, tmp_path: Path, monkeypatch, capsys) -> None:
    (tmp_path / "mine_net.py").write_text(FUNCTIONS)
    rows_per_shard(monkeypatch, 9, row_bytes=10)
    argv = (photos, tmp_path / "out", "--from-model", tmp_path / "mine_net.py:features")
    assert ran(*argv) == 0, capsys.readouterr().err
    found, source = (load(cfg) for cfg in (ArrayConfig(path=str(tmp_path / "out")), ImageFolderConfig(path=str(photos))))
    for name, split in source.items():
        x = split.transform.apply(split.read(torch.arange(len(split)))[0], torch.float32)
        assert torch.equal(found[name].x, (x.flatten(1)[:, :5] * 2 - 1).bfloat16())
        assert [*found[name].label] == [*split.label]  # type: ignore[misc]
    assert len(list((tmp_path / "out").glob("*.safetensors"))) > 4
    calls = sys.modules["mine_net"].calls
    del calls[:]
    assert ran(*argv) == 0
    assert calls == [1], "complete: the network sees one sample, for its shape"
    for rank in (1, 0):  # the other process first: rank 0 waits for its shards
        as_rank(monkeypatch, rank, 2)
        assert ran(photos, tmp_path / "two", *argv[2:]) == 0, capsys.readouterr().err
    for file in (tmp_path / "out").glob("*.safetensors"):
        assert (tmp_path / "two" / file.name).read_bytes() == file.read_bytes()
    assert ran(photos, tmp_path / "two", "--force") == 2
    assert "--force requires one process" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("odd_net.py", "--from-model odd_net.py: expected FILE.py:FUNCTION"),
        ("odd_net.py:none", "has no function 'none'"),
        ("odd_net.py:whole", r"gives torch.int64 \[1, 3, 64, 64\] for 1 samples; expected floats \[1, ...\]"),
        ("odd_net.py:mean", "expected floats"),
        ("none.py:f", "--from-model: none.py is not a Python file"),
    ],
)
def test_functions_that_give_no_activations_are_named(
    text: str, why: str, photos: Path, tmp_path: Path, capsys, monkeypatch
) -> None:
    (tmp_path / "odd_net.py").write_text(FUNCTIONS)
    monkeypatch.delitem(sys.modules, "odd_net", raising=False)
    monkeypatch.setattr(sys, "path", [p for p in sys.path if "test_functions_without" not in p])
    importlib.invalidate_caches()
    assert ran(photos, tmp_path / "out", "--from-model", text) == 2
    assert re.search(why, capsys.readouterr().err)
