"""Arrays in files: every format, several as one set, mapped where they lie, and what can be wrong with them."""

import json
import os
import time
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import rows_of, settings, source_of
from safetensors.torch import save_file

from distae.config import TrainConfig, parse
from distae.config.check import fingerprint
from distae.config.data import ArrayConfig
from distae.data import BadRowsError, load
from distae.data import source as data_source
from distae.data.datasets import array as array_source
from distae.data.mapped import SEEN_FOR, Mapped
from distae.data.source import Source
from distae.errors import UserError

X = np.random.default_rng(0).integers(0, 256, (50, 3, 6, 5)).astype(np.float32) / 255


def whole(path: object, **changes: Any) -> tuple[torch.Tensor, torch.Tensor | None]:
    """All samples of a set in their order, and the labels."""
    train = load(ArrayConfig(path=str(path), val_fraction=0, test_fraction=0, **changes))["train"]
    return train.x, train.label


def write(path: Path, x: np.ndarray, y: np.ndarray | None = None, dtype: torch.dtype = torch.float32) -> Path:
    tensors = {"x": torch.from_numpy(x).to(dtype)} | ({} if y is None else {"y": torch.from_numpy(y)})
    match path.suffix:
        case ".npy":
            np.save(path, x)
        case ".npz":
            arrays: dict[str, Any] = {k: v.numpy() for k, v in tensors.items()}
            np.savez(path, **arrays)
        case _:
            save_file(tensors, path)
    return path


@pytest.mark.parametrize("suffix", [".npy", ".npz", ".safetensors"])
def test_shards_are_one_set_in_order(suffix, tmp_path):
    """By folder, glob and list; samples and labels as if they were in one file."""
    y = np.arange(50)
    for i, (start, end) in enumerate([(0, 20), (20, 21), (21, 50)]):
        write(tmp_path / f"part{i}{suffix}", X[start:end], None if suffix == ".npy" else y[start:end])
    if suffix == ".npy":
        np.save(tmp_path.parent / "labels.npy", y)
    key = str(tmp_path.parent / "labels.npy") if suffix == ".npy" else "y"
    listed = ",".join(str(tmp_path / f"part{i}{suffix}") for i in range(3))
    for path in (tmp_path, tmp_path / f"part*{suffix}", listed):
        x, label = whole(path, label_key=key)
        assert np.array_equal(x.numpy(), X)
        assert label is not None
        assert label.tolist() == y.tolist()
    split = load(ArrayConfig(path=str(tmp_path), label_key=key))["train"]
    rows = torch.tensor([30, 2, 30, 0, 17])
    assert np.array_equal(split.read(rows)[0].numpy(), X[rows_of(split)[rows]])
    assert split.source.name_of(20) == f"{tmp_path}/part1{suffix} row 0"
    assert split.source.units is None
    assert (
        f"50 samples of float32 [3, 6, 5], taken as [C, H, W], 3 files memory-mapped, from {X.min():.4g} to {X.max():.4g}"
        in split.notes[-1]
    )


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64, torch.uint8])
def test_safetensors_of_every_type_are_mapped(dtype, tmp_path):
    """Also where values are not aligned: an odd number of bytes lies in front of them."""
    x = torch.from_numpy(X * 200).to(dtype)
    for name, tensors in {"plain": {"x": x}, "odd": {"a": torch.zeros(3, dtype=torch.uint8), "x": x}}.items():
        save_file(tensors, tmp_path / f"{name}.safetensors")
        split = load(ArrayConfig(path=str(tmp_path / f"{name}.safetensors"), key="x", test_fraction=0, val_fraction=0))["train"]
        assert split.source.dtype == dtype
        assert torch.equal(split.x, x)
        assert source_of(split).parts[0].stamp


def unaligned(path: Path, x: np.ndarray) -> Path:
    """A .safetensors file whose values begin at an odd byte."""
    header = json.dumps({"x": {"dtype": "F32", "shape": list(x.shape), "data_offsets": [0, x.nbytes]}}).encode()
    header += b" " * (1 + len(header) % 2)
    path.write_bytes(len(header).to_bytes(8, "little") + header + x.tobytes())
    return path


def test_values_that_are_not_aligned_are_read_as_they_are(tmp_path):
    assert np.array_equal(whole(unaligned(tmp_path / "x.safetensors", X))[0].numpy(), X)


def test_an_uncompressed_npz_is_mapped_and_a_compressed_one_is_read(tmp_path):
    np.savez(tmp_path / "stored.npz", x=X, y=np.arange(50))
    np.savez_compressed(tmp_path / "packed.npz", x=X, y=np.arange(50))
    np.save(tmp_path / "fortran.npy", np.asfortranarray(X))
    for name, mapped in (("stored.npz", True), ("packed.npz", False), ("fortran.npy", False)):
        split = load(ArrayConfig(path=str(tmp_path / name), label_key="y" if "z" in name else None, test_fraction=0))["train"]
        assert np.array_equal(split.x.numpy(), X[rows_of(split)])
        assert bool(source_of(split).parts[0].stamp) == mapped
        assert ("memory-mapped" if mapped else "read into memory") in split.notes[-1]


def test_one_set_has_one_identity_however_it_is_cut(tmp_path):
    """The same values in one file, in three, and elsewhere; another value is another identity."""
    np.save(tmp_path / "one.npy", X)
    (tmp_path / "three").mkdir()
    for i, part in enumerate(np.split(X, [10, 33])):
        np.save(tmp_path / f"three/{i}.npy", part)
    one, three = (load(ArrayConfig(path=str(tmp_path / name)))["train"].identity for name in ("one.npy", "three"))
    assert one == three
    part = np.load(tmp_path / "three/0.npy")
    part[:, 0, 0, 0] += 0.25
    np.save(tmp_path / "three/0.npy", part)
    assert load(ArrayConfig(path=str(tmp_path / "three")))["train"].identity["values"] != one["values"]


def test_a_test_set_of_its_own(tmp_path):
    np.save(tmp_path / "x.npy", X[:40])
    np.save(tmp_path / "t.npy", X[40:])
    sets = load(ArrayConfig(path=str(tmp_path / "x.npy"), test=str(tmp_path / "t.npy"), val_fraction=0.25))
    assert [len(s) for s in sets.values()] == [30, 10, 10]
    assert np.array_equal(sets["test"].x.numpy(), X[40:])
    np.save(tmp_path / "t.npy", X[40:, :, :4])
    with pytest.raises(
        UserError, match=r"--data.test: .*t.npy contains float32 \[3, 4, 5\] per sample, --data.path .* \[3, 6, 5\]"
    ):
        load(ArrayConfig(path=str(tmp_path / "x.npy"), test=str(tmp_path / "t.npy")))
    np.save(tmp_path / "t.npy", np.full_like(X, np.nan))
    with pytest.raises(UserError, match=r"--data.test: .*t.npy contains NaN or infinite values: .*t.npy row 0 is the first"):
        load(ArrayConfig(path=str(tmp_path / "x.npy"), test=str(tmp_path / "t.npy")))


def test_shards_that_differ_are_both_named(tmp_path):
    np.save(tmp_path / "a.npy", X)
    np.save(tmp_path / "b.npy", X.astype(np.float64))
    with pytest.raises(UserError, match=r"b.npy contains float64 \[50, 3, 6, 5\], and .*a.npy contains float32 \[50, 3, 6, 5\]"):
        load(ArrayConfig(path=str(tmp_path)))
    np.save(tmp_path / "b.npy", X[:, :2])
    with pytest.raises(UserError, match=r"b.npy contains float32 \[50, 2, 6, 5\], and .*a.npy contains float32 \[50, 3, 6, 5\]"):
        load(ArrayConfig(path=str(tmp_path)))


@pytest.mark.parametrize("suffix", [".npy", ".npz", ".safetensors"])
def test_a_truncated_shard_is_named_before_training(suffix, tmp_path):
    for i in range(3):
        write(tmp_path / f"{i}{suffix}", X)
    os.truncate(tmp_path / f"1{suffix}", 2000)
    with pytest.raises(UserError, match=rf"--data.path: {tmp_path}/1{suffix} "):
        load(ArrayConfig(path=str(tmp_path)))


def test_a_shard_that_changes_or_vanishes_during_the_run_is_named(tmp_path):
    """Reading a map behind the end of its file would kill the process with SIGBUS."""
    for i in range(3):
        np.save(tmp_path / f"{i}.npy", X)
    source = load(ArrayConfig(path=str(tmp_path)))["train"].source
    os.truncate(tmp_path / "1.npy", 200)
    (tmp_path / "2.npy").unlink()
    with pytest.raises(BadRowsError) as caught:
        source.read(torch.tensor([3, 60, 120, 70]))
    assert caught.value.reasons == {
        60: f"{tmp_path}/1.npy was changed during the run: it has 200 bytes, and had {X.nbytes + 128}",
        70: f"{tmp_path}/1.npy was changed during the run: it has 200 bytes, and had {X.nbytes + 128}",
        120: f"{tmp_path}/2.npy cannot be read any more (No such file or directory)",
    }
    assert np.array_equal(source.read(torch.tensor([3, 4])).numpy(), X[3:5])


def test_a_file_that_was_just_read_is_looked_at_again(tmp_path):
    """Its size at once, for the process would be killed; its date, which tells of other values, soon."""
    for i in range(2):
        np.save(tmp_path / f"{i}.npy", X)
    source, rows = load(ArrayConfig(path=str(tmp_path)))["train"].source, torch.tensor([3, 60])
    source.read(rows)
    os.utime(tmp_path / "1.npy", ns=(0, 0))
    time.sleep(2 * SEEN_FOR)
    with pytest.raises(BadRowsError, match=r"1.npy was changed during the run"):
        source.read(rows)
    source.read(rows[:1])
    os.truncate(tmp_path / "0.npy", 200)
    with pytest.raises(BadRowsError, match=r"0.npy was changed during the run: it has 200 bytes"):
        source.read(rows[:1])


@pytest.mark.parametrize("aligned", [True, False])
def test_a_scan_takes_blocks_across_shards_without_copies(aligned, tmp_path, monkeypatch):
    monkeypatch.setattr("distae.data.source.BLOCK_BYTES", 7 * X[0].nbytes)
    for i in range(3):
        np.save(tmp_path / f"{i}.npy", X + i) if aligned else unaligned(tmp_path / f"{i}.safetensors", X + i)
    source = load(ArrayConfig(path=str(tmp_path)))["train"].source
    assert isinstance(source, Mapped)
    everything = torch.from_numpy(np.concatenate([X, X + 1, X + 2]))
    assert (source.parts[0].rows.dtype == torch.float32) == aligned
    for every in (1, 3):
        expected = torch.cat([everything[start : start + 7] for start in range(0, len(everything), 7 * every)])
        assert torch.equal(torch.cat([*source.blocks(None, every)]), expected)
        assert torch.equal(torch.cat([*Source.blocks(source, None, every)]), expected)
    if aligned:
        first = next(source.blocks(None))
        assert first.data_ptr() == source.parts[0].rows.data_ptr()


HEADERS = {
    "long": ((1 << 40).to_bytes(8, "little"), "its header would have 1099511627776 bytes"),
    "short": ((1000).to_bytes(8, "little") + b"{}", "it is truncated: its header has 1000 bytes, and it has 10"),
    "text": ((2).to_bytes(8, "little") + b"[]", "Expected `object`"),
    "deep": ((9000).to_bytes(8, "little") + b'{"a":' * 1800, "nested too deeply|truncated"),
    "empty": (b"", "is not a .npy, .npz or .safetensors file"),
}


@pytest.mark.parametrize("name", HEADERS)
def test_a_forged_safetensors_header_is_rejected(name, tmp_path):
    (tmp_path / "x.safetensors").write_bytes(HEADERS[name][0])
    with pytest.raises(UserError, match=HEADERS[name][1]):
        ArrayConfig(path=str(tmp_path / "x.safetensors")).shape()


@pytest.mark.parametrize(
    "entry",
    [
        {"dtype": "F32", "shape": [4, 5], "data_offsets": [0, 8]}, {"dtype": "F32", "shape": [-4, -5], "data_offsets": [0, 80]},
        {"dtype": "X9", "shape": [4], "data_offsets": [0, 4]}, {"shape": 3}, [],
        {"dtype": "F32", "shape": "4", "data_offsets": [0]},
    ],
)  # fmt: skip
def test_a_forged_safetensors_entry_is_rejected(entry, tmp_path):
    header = json.dumps({"x": entry}).encode()
    (tmp_path / "x.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + b"\0" * 80)
    with pytest.raises(UserError, match=r"its header says of 'x': "):
        ArrayConfig(path=str(tmp_path / "x.safetensors")).shape()


def test_two_arrays_of_one_name_or_of_no_label(tmp_path):
    np.save(tmp_path / "x.npy", X)
    with zipfile.ZipFile(tmp_path / "x.npz", "w") as archive:
        archive.write(tmp_path / "x.npy", "x.npy")
        with pytest.warns(UserWarning, match="Duplicate"):
            archive.write(tmp_path / "x.npy", "x.npy")
    with pytest.raises(UserError, match=r"x.npz .*two arrays of the name 'x'"):
        ArrayConfig(path=str(tmp_path / "x.npz")).shape()
    write(tmp_path / "x.safetensors", X, np.arange(50))
    with pytest.raises(UserError, match=r"--data.label-key: 'z' is not in .*x.safetensors; it contains x, y"):
        ArrayConfig(path=str(tmp_path / "x.safetensors"), label_key="z").shape()
    np.save(tmp_path / "y.npy", np.arange(49))
    with pytest.raises(UserError, match=r"--data.label-key: '.*y.npy' has 49 labels for 50 samples"):
        load(ArrayConfig(path=str(write(tmp_path / "x.npy", X)), label_key=str(tmp_path / "y.npy")))


def test_a_set_beyond_the_limit_is_looked_at_in_blocks(tmp_path, monkeypatch):
    """And the note says so."""
    monkeypatch.setattr(data_source, "BLOCK_BYTES", 360)
    monkeypatch.setattr(array_source, "WHOLE_BYTES", X.nbytes // 5)
    np.save(tmp_path / "x.npy", X)
    assert "in the sampled blocks" in load(ArrayConfig(path=str(tmp_path / "x.npy")))["train"].notes[-1]


def test_several_words_are_one_set(tmp_path):
    """What a shell makes of an unquoted glob, and the option given twice."""

    def path(*words: str) -> str:
        cfg = parse(TrainConfig, ["--data", "array", *words], {}, "").settings.data
        assert isinstance(cfg, ArrayConfig)
        return cfg.path

    assert path("--data.path", "a.npy", "b.npy") == path("--data.path", "a.npy", "--data.path", "b.npy") == "a.npy,b.npy"
    assert path("--data.path=a.npy") == "a.npy"
    with pytest.raises(UserError, match=r"--data.path: no file matches .*/no\*.npy"):
        ArrayConfig(path=f"{tmp_path}/no*.npy").shape()


def test_the_hash_of_a_run_on_one_file_is_what_it_was(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    np.save("x.npy", X)
    cfg = settings(data={"name": "array", "path": "x.npy"})
    assert fingerprint(cfg) == "77a1d349"


@pytest.mark.parametrize(
    ("name", "kind"), [("a.csv", "table"), ("a.h5ad", "sparse"), ("a.png", "image_folder"), ("a.parquet", "parquet")]
)
def test_a_file_of_another_kind_names_what_reads_it(name, kind, tmp_path):
    from distae.config.data import DataConfig

    if kind not in DataConfig.choices():
        pytest.skip(f"--data {kind} is not there yet")
    (tmp_path / name).write_text("x,y\n1,2\n")
    with pytest.raises(
        UserError, match=rf"{name} is not a .npy, .npz or .safetensors file; read it with --data {kind} --data.path .*{name}"
    ):
        ArrayConfig(path=str(tmp_path / name)).shape()
