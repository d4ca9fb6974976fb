"""A user's own arrays: what is taken, what is rejected, by its header where that is enough."""

import io
import json
import math
import os
import re
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import ROOT, as_the_model_sees, fitted, labels_of, metrics, settings

from distae.commands.checkpoint import main
from distae.config.cli import write_toml
from distae.config.data import ArrayConfig
from distae.data import Split, Transform, load
from distae.data.checks import check_data
from distae.errors import UserError

CPU = torch.device("cpu")


ARRAYS: dict[str, tuple[Any, tuple[int, ...]]] = {
    "rows.npy": (np.zeros((40, 5), np.float32), (5,)), "grey.npy": (np.zeros((40, 6, 4), np.uint8), (1, 6, 4)),
    "colour.npy": (np.zeros((40, 3, 6, 4), np.float64), (3, 6, 4)), "big_endian.npy": (np.zeros((40, 5), ">f4"), (5,)),
    "half.npy": (np.zeros((40, 5), np.float16), (5,)),
}  # fmt: skip


@pytest.mark.parametrize("name", ARRAYS)
def test_an_array_of_the_users(name, tmp_path):
    array, shape = ARRAYS[name]
    array.reshape(40, -1)[:, 0] = np.arange(40) / 40 if array.dtype != np.uint8 else np.arange(40)
    np.save(tmp_path / name, array)
    cfg = ArrayConfig(path=str(tmp_path / name))
    sets = load(cfg)
    assert cfg.shape() == shape
    assert [len(s) for s in sets.values()] == [32, 4, 4]
    assert all(tuple(s.x.shape[1:]) == shape for s in sets.values())
    first = torch.cat([s.x.flatten(1)[:, 0] for s in sets.values()]).double().sort().values
    torch.testing.assert_close(first, torch.from_numpy(array.astype(np.float64)).flatten(1)[:, 0], atol=1e-3, rtol=0)


def test_an_npz_of_one_array_needs_no_key(tmp_path):
    np.savez(tmp_path / "one.npz", anything=np.zeros((10, 5), np.float32))
    np.savez_compressed(tmp_path / "two.npz", a=np.zeros((10, 5), np.float32), b=np.ones((10, 6), np.float32))
    assert ArrayConfig(path=str(tmp_path / "one.npz")).shape() == (5,)
    assert float(load(ArrayConfig(path=str(tmp_path / "two.npz"), key="b"))["train"].x.min()) == 1
    with pytest.raises(UserError, match=r"--data.key: .*two.npz contains several arrays, a, b: give one, and --data.label-key for"):
        ArrayConfig(path=str(tmp_path / "two.npz")).shape()
    with pytest.raises(UserError, match=r"--data.path: .*one.npz contains no array besides the labels"):
        ArrayConfig(path=str(tmp_path / "one.npz"), label_key="anything").shape()


BAD = {
    "int.npy": (np.zeros((9, 5), np.int32), r"int.npy contains int32; valid are uint8, float16, bfloat16, float32 and float64"),
    "flat.npy": (np.zeros(9, np.float32), r"flat.npy has shape \[9\]; valid are \[N, D\], \[N, H, W\] and \[N, C, H, W\]"),
    "video.npy": (np.zeros((2, 2, 2, 2, 2), np.float32), r"has shape \[2, 2, 2, 2, 2\]; valid are \[N, D\]"),
    "objects.npy": (np.array([[{}]]), r"objects.npy contains object; valid are"),
}


@pytest.mark.parametrize("name", BAD)
def test_an_array_that_does_not_do_is_rejected_by_its_header(name, tmp_path):
    np.save(tmp_path / name, BAD[name][0], allow_pickle=True)
    with pytest.raises(UserError, match=BAD[name][1]):
        ArrayConfig(path=str(tmp_path / name)).shape()


def test_a_file_that_is_no_array(tmp_path):
    for name in ("text.npy", "text.npz"):
        (tmp_path / name).write_text("hello")
        with pytest.raises(UserError, match=rf"--data.path: .*{name} is not a .npy, .npz or .safetensors file"):
            ArrayConfig(path=str(tmp_path / name)).shape()
    with pytest.raises(UserError, match=r"--data.path: no file .*absent.npy"):
        ArrayConfig(path=str(tmp_path / "absent.npy")).shape()
    with pytest.raises(
        UserError, match=r"--data.path: --data array needs the .npy, .npz or .safetensors file; .*numpy.save\('x.npy', x\)"
    ):
        ArrayConfig().shape()
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"--data.path: .* is a folder without .npy, .npz or .safetensors files$"):
        ArrayConfig(path=str(tmp_path / "empty")).shape()


def test_a_file_that_nothing_reads_is_rejected_with_how_to_convert_it(tmp_path):
    (tmp_path / "a.pt").write_text("x,y\n1,2\n")
    with pytest.raises(
        UserError, match=r"a.pt is not a .npy, .npz or .safetensors file; make one:\n.*'x.npy', torch.load\('.*a.pt'"
    ):
        ArrayConfig(path=str(tmp_path / "a.pt")).shape()


def test_a_home_folder_is_expanded(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    np.save(tmp_path / "x.npy", np.zeros((40, 5), np.float32))
    assert len(load(ArrayConfig(path="~/x.npy"))["train"]) == 32
    with pytest.raises(UserError, match=r"--data.path: ~nobody-at-all/x.npy names the home folder of an unknown user"):
        ArrayConfig(path="~nobody-at-all/x.npy").shape()


def test_nan_in_an_array_is_rejected(tmp_path):
    array = np.zeros((20, 5), np.float32)
    array[7, 2] = np.nan
    np.save(tmp_path / "nan.npy", array)
    with pytest.raises(UserError, match=r"--data.path: .*nan.npy contains NaN or infinite values"):
        load(ArrayConfig(path=str(tmp_path / "nan.npy")))


def of_file(path: Path, array: np.ndarray, **changes: Any) -> dict[str, Split]:
    """The splits of an array that was saved to `path`."""
    np.save(path, array)
    return load(ArrayConfig(path=str(path), val_fraction=0, **changes))


@pytest.mark.parametrize(
    ("largest", "dtype", "changes", "divisor", "note"),
    [
        (1, "uint8", {}, 1, r"uint8 values up to 1, taken as they are \(as --data.scale 1\)"),
        (0, "uint8", {}, 1, r"uint8 values up to 0, taken as they are"),
        (16, "uint8", {}, 255, r"uint8 values up to 16, divided by 255 \(as --data.scale 255\)"),
        (1, "uint8", {"scale": 255.0}, 255, None), (16, "uint8", {"scale": 16.0}, 16, None),
        (200, "float32", {}, 1, None), (200, "float16", {"scale": 200.0}, 200, None),
    ],
)  # fmt: skip
def test_what_stored_values_are_divided_by(largest, dtype, changes, divisor, note, tmp_path):
    """Bytes of 0 and 1 (dSprites) are bits, not 0 and 1/255."""
    stored = (np.arange(100 * 4).reshape(100, 4) % (largest + 1)).astype(dtype)
    train = of_file(tmp_path / "x.npy", stored, test_fraction=0, **changes)["train"]
    torch.testing.assert_close(as_the_model_sees(train), torch.from_numpy(stored).double() / divisor, rtol=1e-15, atol=0)
    assert len(train.notes) == 1 + (note is not None)
    assert "100 samples" in train.notes[-1]
    assert note is None or re.fullmatch(rf"--data.scale auto: .*x.npy contains {note}.*", train.notes[0])


def test_bits_of_bytes_train_at_their_own_scale_and_the_run_says_so(tmp_path, capfd):
    """Before: 64 random bits at 2.5 nats, without a word. At random weights they cost 64 ln 2."""
    np.save(tmp_path / "x.npy", np.random.default_rng(0).integers(0, 2, (200, 8, 8), np.uint8))
    cfg = settings(data={"name": "array", "path": str(tmp_path / "x.npy")}, steps=1, log_every=1, optim={"lr": 1e-9})
    trainer = fitted(cfg, tmp_path / "run", load(cfg.data))
    assert metrics(tmp_path / "run")[0]["train/loss"] == pytest.approx(64 * math.log(2), rel=0.05)
    assert "--data.scale auto" in trainer.restorer.notes[0]
    about = json.loads((tmp_path / "run/model/config.json").read_text())
    assert Transform.from_json(about["transform"]) == trainer.loaders["train"].split.transform == Transform(1.0, "no_channel")
    (tmp_path / "run/config.toml").write_text(write_toml(cfg))
    assert main([str(tmp_path / "run"), "--export", "1", str(tmp_path / "other")]) == 0
    assert json.loads((tmp_path / "other/model/config.json").read_text())["transform"] == about["transform"]


@pytest.mark.parametrize("layout", ["auto", "channels_first", "channels_last"])
@pytest.mark.parametrize("shape", [(40, 6, 5, 3), (40, 6, 5, 1), (40, 3, 6, 5), (40, 3, 5, 4), (40, 6, 5, 7)])
def test_the_layout_is_known_given_or_asked_for(shape, layout, tmp_path):
    array = np.random.default_rng(0).random(shape, np.float32)
    if layout == "auto" and shape[1] == 6 and shape[3] != 7:
        with pytest.raises(UserError, match=rf"--data.layout: .* \[40, 6, 5, {shape[3]}\]: give channels_last for 6x5 images of "
                           rf"{shape[3]} channels.*\nor channels_first for 5x{shape[3]} images of 6"):  # fmt: skip
            of_file(tmp_path / "x.npy", array, layout=layout)
        return
    train = of_file(tmp_path / "x.npy", array, layout=layout, test_fraction=0)["train"]
    expected = torch.from_numpy(array).movedim(-1, 1) if layout == "channels_last" else torch.from_numpy(array)
    assert ArrayConfig(path=str(tmp_path / "x.npy"), layout=layout).shape() == train.shape == tuple(expected.shape[1:])
    assert torch.equal(as_the_model_sees(train, torch.float32), expected)
    assert as_the_model_sees(train, torch.float32).is_contiguous()
    assert torch.equal(train.x, expected)


def test_channels_last_goes_with_four_dimensions(tmp_path):
    with pytest.raises(UserError, match=r"--data.layout channels_last needs an array \[N, H, W, C\]; .* has shape \[9, 6, 5\]"):
        of_file(tmp_path / "x.npy", np.zeros((9, 6, 5), np.float32), layout="channels_last")


def labelled(path: Path, x: np.ndarray, y: np.ndarray) -> ArrayConfig:
    np.savez(path, x=x, y=y)
    return ArrayConfig(path=str(path), label_key="y")


def test_labels_of_an_npz_stay_with_their_samples(tmp_path):
    """And a conditional model trains on them."""
    x = np.repeat(np.arange(60, dtype=np.float32)[:, None] / 60, 5, 1)
    sets = load(labelled(tmp_path / "x.npz", x, (np.arange(60) % 7).astype(np.uint8)))
    for split in sets.values():
        assert labels_of(split).dtype == torch.int64
        assert torch.equal((split.x[:, 0] * 60).round().long() % 7, labels_of(split))
    data = {"name": "array", "path": str(tmp_path / "x.npz"), "label_key": "y"}
    cfg = settings(model={"name": "cvae", "classes": 7}, data=data, steps=1)
    check_data(cfg, sets)
    fitted(cfg, tmp_path / "run", sets)
    few = settings(model={"name": "cvae", "classes": 6}, data=data, steps=1)
    with pytest.raises(UserError, match=r"--model.classes 6: --data array has labels up to 6"):
        check_data(few, sets)
    with pytest.raises(UserError, match=r"--model cvae needs labels; --data array has none; name them with --data.label-key"):
        check_data(cfg, load(ArrayConfig(path=str(tmp_path / "x.npz"), key="x")))


@pytest.mark.parametrize(
    ("y", "says"),
    [
        (np.zeros(19, int), "'y' has 19 labels for 20 samples"),
        (np.zeros(20), r"'y' is float64 \[20\] from 0.0 to 0.0; valid are"),
        (np.zeros((20, 1), int), r"'y' is int64 \[20, 1\]"), (np.arange(20) - 1, r"'y' is int64 \[20\] from -1 to 18"),
        (np.array(["a"] * 20), r"'y' is <U1 \[20\]; valid are \[N\] integers from 0 on, one per sample; .* contains x, y"),
    ],
)  # fmt: skip
def test_labels_that_are_none_are_rejected(y, says, tmp_path):
    with pytest.raises(UserError, match=f"--data.label-key: {says}"):
        load(labelled(tmp_path / "x.npz", np.zeros((20, 5), np.float32), y))


def test_labels_that_are_not_there_are_rejected(tmp_path):
    np.savez(tmp_path / "x.npz", x=np.zeros((20, 5), np.float32), y=np.zeros(20, int))
    with pytest.raises(UserError, match=r"--data.label-key: 'z' is not in .*x.npz; it contains x, y"):
        ArrayConfig(path=str(tmp_path / "x.npz"), label_key="z").shape()
    np.save(tmp_path / "x.npy", np.zeros((20, 5), np.float32))
    with pytest.raises(UserError, match=r"--data.label-key: a .npy file has no labels; make a .npz: .*y=y"):
        ArrayConfig(path=str(tmp_path / "x.npy"), label_key="y").shape()


LOADING = """
import resource, sys
from pathlib import Path
from distae.config.data import ArrayConfig
from distae.data import Loader, load
import numpy as np, torch
np.save("small.npy", np.zeros((2000, 3, 64, 64), sys.argv[1]))
def peak():
    # Linux: maxrss is inherited from the parent over exec, this is of this process alone.
    return next(int(l.split()[1]) for l in Path("/proc/self/status").read_text().splitlines() if l.startswith("VmHWM")) * 1024
def once(path):
    sets = load(ArrayConfig(path=path))
    for s in sets.values():
        Loader(s, "none", torch.device("cpu"), torch.float32).batch(torch.arange(24), None)
once("small.npy")
Path("/proc/self/clear_refs").write_text("5")
before = peak()
once(sys.argv[2])
print((peak() - before) / Path(sys.argv[2]).stat().st_size)
"""


@pytest.mark.spawn
@pytest.mark.parametrize("dtype", ["uint8", "float16"])
def test_loading_does_not_copy(dtype, tmp_path):
    """Peak memory over the size of the file, its own mapped pages included. Before: uint8 2.0, float16 5.0."""
    size = 200 << 20
    rows = size // (3 * 64 * 64 * np.dtype(dtype).itemsize)
    stored = np.lib.format.open_memmap(tmp_path / "x.npy", "w+", dtype, (rows, 3, 64, 64))
    stored[:, 0, 0, :2] = 2
    stored.flush()
    env = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-W", "error", "-c", LOADING, dtype, "x.npy"]
    done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) <= 1.05


def _npy(shape: tuple[int, ...], data: bytes = b"", descr: str = "<f4") -> bytes:
    """An .npy file whose header says this shape, whatever follows."""
    file = io.BytesIO()
    np.lib.format.write_array_header_1_0(file, {"descr": descr, "fortran_order": False, "shape": shape})
    return file.getvalue() + data


HOSTILE = {
    "truncated.npy": (_npy((100, 5), b"\0" * 1000), "it is truncated: shape .100, 5. of float32 takes 2128 bytes, and it has 1128"),
    "negative.npy": (_npy((-1, 5), b"\0" * 1000), "announces shape .-1, 5."),
    "huge.npy": (_npy((2**40, 16), b"\0" * 1000), "it is truncated"),
    "wide.npy": (_npy((10, 0)), r"has shape \[10, 0\]"),
    "objects.npy": (_npy((10, 5), b"\0" * 1000, "|O"), "contains object"),
    "short.npy": (_npy((10, 5))[:20], "is not a .npy, .npz or .safetensors file"),
    "long_header.npy": (
        b"\x93NUMPY\x02\x00" + (2**32 - 1).to_bytes(4, "little") + b"{",
        "is not a .npy, .npz or .safetensors file",
    ),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_header_that_promises_more_than_the_file_has(name, tmp_path):
    (tmp_path / name).write_bytes(HOSTILE[name][0])
    for path in (tmp_path / name, tmp_path / f"{name}.npz"):
        if path.suffix == ".npz":
            with zipfile.ZipFile(path, "w") as archive:
                archive.writestr("x.npy", HOSTILE[name][0])
        with pytest.raises(UserError, match=HOSTILE[name][1].replace("1128", r"\d+")):
            load(ArrayConfig(path=str(path)))


def test_a_sparse_file_larger_than_the_memory_is_compared_not_read(tmp_path):
    (tmp_path / "x.npy").write_bytes(_npy((2**34, 16)))
    os.truncate(tmp_path / "x.npy", 1 << 40)
    with pytest.raises(UserError, match="it is truncated"):
        ArrayConfig(path=str(tmp_path / "x.npy")).shape()
    os.truncate(tmp_path / "x.npy", (1 << 40) + 128)
    assert ArrayConfig(path=str(tmp_path / "x.npy")).shape() == (16,)  # it would be mapped
    with zipfile.ZipFile(tmp_path / "x.npz", "w") as archive:
        archive.writestr("x.npy", _npy((2**34, 16)))
    with pytest.raises(UserError, match="it is truncated"):
        ArrayConfig(path=str(tmp_path / "x.npz")).shape()


def test_a_bomb_is_not_unpacked(tmp_path):
    np.savez_compressed(tmp_path / "x.npz", x=np.zeros((2000, 5000), np.uint8))
    with pytest.raises(UserError, match="times the file: save it uncompressed"):
        ArrayConfig(path=str(tmp_path / "x.npz")).shape()


def test_a_wrong_checksum_of_an_npz_is_reported(tmp_path):
    np.savez(tmp_path / "x.npz", x=np.arange(50_000, dtype=np.float32).reshape(10_000, 5))
    data = bytearray((tmp_path / "x.npz").read_bytes())
    data[150_000] ^= 1
    (tmp_path / "x.npz").write_bytes(data)
    with pytest.raises(UserError, match=r"x.npz is damaged \(Bad CRC-32"):
        load(ArrayConfig(path=str(tmp_path / "x.npz")))


def test_archives_and_headers_that_are_no_arrays(tmp_path):
    with zipfile.ZipFile(tmp_path / "x.npz", "w") as archive:
        archive.writestr("readme.txt", "no array")
    (tmp_path / "x.npy").write_bytes(b"\x93NUMPY\x01\x00" + (200).to_bytes(2, "little") + b"(" * 200)
    for name in ("x.npz", "x.npy"):
        with pytest.raises(UserError, match=r"is not a .npy, .npz or .safetensors file of numbers"):
            ArrayConfig(path=str(tmp_path / name)).shape()
