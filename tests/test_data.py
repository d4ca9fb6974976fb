"""Data sets, the order of samples, and batches."""

import io
import os
import urllib.error
import urllib.request
import zipfile

import numpy as np
import pytest
import torch
from helpers import images, settings, shared_data, splits
from sklearn.datasets import load_digits
from torch.utils.data import BatchSampler, DistributedSampler

from distae.config.data import ArrayConfig, DigitsConfig, FashionMNISTConfig, MNISTConfig
from distae.data import Arrays, GlobalBatchSampler, Loader, load, steps
from distae.data.checks import check_data
from distae.errors import UserError
from distae.noise import Noise, Rows

CPU = torch.device("cpu")


@pytest.mark.parametrize("seed", [0, 7])
@pytest.mark.parametrize("micro_steps", [1, 2])
@pytest.mark.parametrize(
    ("n", "batch", "world_size"), [(100, 12, 1), (97, 12, 2), (97, 12, 3), (48, 24, 4), (50, 50, 1), (31, 6, 3)]
)
def test_the_order_is_torchs_own(n, batch, world_size, micro_steps, seed):
    for rank in range(world_size):
        mine = GlobalBatchSampler(n, batch, rank, world_size, micro_steps, seed)
        torchs = DistributedSampler(range(n), world_size, rank, shuffle=True, seed=seed, drop_last=True)
        for epoch in range(3):
            mine.set_epoch(epoch)
            torchs.set_epoch(epoch)
            expected = list(BatchSampler(torchs, batch // world_size, drop_last=True))[: n // batch]
            assert [rows.flatten().tolist() for rows in mine] == expected
            assert len(expected) == len(mine) == n // batch


@pytest.mark.parametrize("first", [0, 1, 5, 8, 9, 23])
def test_entering_at_a_step_is_skipping_to_it(first):
    def order(at: int, count: int) -> list[list[list[int]]]:
        stream = steps(GlobalBatchSampler(100, 12, 1, 2, 2, seed=3), at, CPU)
        return [next(stream).tolist() for _ in range(count)]

    assert order(first, 10) == order(0, first + 10)[first:]


def test_the_dropped_tail_is_another_each_epoch():
    sampler = GlobalBatchSampler(100, 12, 0, 1, 1, seed=0)
    dropped = []
    for epoch in range(2):
        sampler.set_epoch(epoch)
        seen = torch.cat(list(sampler)).flatten().tolist()
        assert len(set(seen)) == len(seen) == 96
        dropped.append(set(range(100)) - set(seen))
    assert dropped[0] != dropped[1]


def test_splits_are_a_fixed_partition_of_the_digits():
    sets = load(DigitsConfig())
    assert [len(sets[k]) for k in ("train", "val", "test")] == [1294, 144, 359]
    rows = torch.cat([s.x.flatten(1) for s in sets.values()])
    assert sorted(map(tuple, rows.tolist())) == sorted(map(tuple, load_digits().data.astype(int).tolist()))
    again = load(DigitsConfig())
    assert all(torch.equal(sets[k].x, again[k].x) and torch.equal(sets[k].label, again[k].label) for k in sets)
    assert sets["train"].x.dtype == torch.uint8
    assert float(sets["train"].x.max()) * sets["train"].scale == 1


def test_labels_stay_with_their_images():
    sets = load(DigitsConfig())
    known = {tuple(x): y for x, y in zip(*load_digits(return_X_y=True), strict=True)}
    assert all(known[tuple(x)] == y for s in sets.values() for x, y in zip(s.x.flatten(1).tolist(), s.label.tolist(), strict=True))


def test_limit_takes_the_first_of_each_split():
    assert [len(s) for s in load(DigitsConfig(limit=20)).values()] == [20, 20, 20]


@pytest.mark.parametrize("cfg", [MNISTConfig, FashionMNISTConfig])
def test_torchvision_sets_from_the_downloaded_files(cfg, tmp_path):
    """With the gz files copied to a folder, torchvision finds the gz files, checks their md5 and unpacks them; no network."""
    name = "MNIST" if cfg is MNISTConfig else "FashionMNIST"
    raw = tmp_path / name / "raw"
    raw.mkdir(parents=True)
    for file in (shared_data(name) / "raw").glob("*.gz"):
        (raw / file.name).symlink_to(file)
    sets = load(cfg(root=str(tmp_path)))
    assert {k: tuple(s.x.shape) for k, s in sets.items()} == {
        "train": (54000, 1, 28, 28), "val": (6000, 1, 28, 28), "test": (10000, 1, 28, 28)
    }  # fmt: skip
    assert sets["test"].x.dtype == torch.uint8
    counts = {"MNIST": [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009], "FashionMNIST": [1000] * 10}
    assert sets["test"].label.bincount().tolist() == counts[name]


def test_a_batch_is_the_stored_rows_in_the_models_units():
    arrays = images(20, 0)
    x, label = Loader(arrays, "none", CPU, torch.float64).batch(torch.tensor([3, 1]), None)
    assert torch.equal(x, arrays.x[[3, 1]].double() * (1 / 255))
    assert label.tolist() == [3, 1]


def test_binarize():
    arrays, rows = images(20, 0), torch.arange(20)
    grey, _ = Loader(arrays, "none", CPU, torch.float32).batch(rows, None)
    hard, _ = Loader(arrays, "threshold", CPU, torch.float32).batch(rows, None)
    assert torch.equal(hard, (grey > 0.5).float())
    loader = Loader(arrays, "stochastic", CPU, torch.float32)
    drawn = torch.stack([loader.batch(rows, Noise(0, (i,), Rows(20), CPU))[0] for i in range(400)])
    assert set(drawn.unique().tolist()) == {0, 1}
    torch.testing.assert_close(drawn.mean(0), grey, atol=0.13, rtol=0)  # 5 standard deviations of the mean of 400


ARRAYS = {
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
    with pytest.raises(UserError, match=r"--data.key: None is not in .*two.npz; it holds a, b"):
        ArrayConfig(path=str(tmp_path / "two.npz")).shape()


BAD = {
    "int.npy": (np.zeros((9, 5), np.int32), r"int.npy holds int32; valid are uint8, float16, float32 and float64"),
    "flat.npy": (np.zeros(9, np.float32), r"flat.npy has shape \[9\]; valid are \[N, D\], \[N, H, W\] and \[N, C, H, W\]"),
    "video.npy": (np.zeros((2, 2, 2, 2, 2), np.float32), r"has shape \[2, 2, 2, 2, 2\]; valid are \[N, D\]"),
    "objects.npy": (np.array([[{}]]), r"objects.npy holds object; valid are"),
}


@pytest.mark.parametrize("name", BAD)
def test_an_array_that_does_not_do_is_refused_by_its_header(name, tmp_path):
    np.save(tmp_path / name, BAD[name][0], allow_pickle=True)
    with pytest.raises(UserError, match=BAD[name][1]):
        ArrayConfig(path=str(tmp_path / name)).shape()


def test_a_file_that_is_no_array(tmp_path):
    for name in ("text.npy", "text.npz"):
        (tmp_path / name).write_text("hello")
        with pytest.raises(UserError, match=rf"--data.path: .*{name} is no .npy or .npz file"):
            ArrayConfig(path=str(tmp_path / name)).shape()
    with pytest.raises(UserError, match=r"--data.path: no file .*absent.npy"):
        ArrayConfig(path=str(tmp_path / "absent.npy")).shape()
    with pytest.raises(UserError, match=r"--data.path: --data array needs the .npy or .npz file"):
        ArrayConfig().shape()


def test_nan_in_an_array_is_refused(tmp_path):
    array = np.zeros((20, 5), np.float32)
    array[7, 2] = np.nan
    np.save(tmp_path / "nan.npy", array)
    with pytest.raises(UserError, match=r"--data.path: .*nan.npy holds NaN or infinite values"):
        load(ArrayConfig(path=str(tmp_path / "nan.npy")))


def test_bernoulli_refuses_data_outside_its_range():
    wide = splits() | {"val": Arrays(torch.full((5, 1, 8, 8), -1.5), None)}
    with pytest.raises(UserError, match=r"--model.likelihood bernoulli needs data in \[0, 1\]; the val split .* \[-1.5, -1.5\]"):
        check_data(settings(), wide)
    check_data(settings(model={"likelihood": "gaussian"}), wide)
    with pytest.raises(UserError, match="bernoulli"):
        check_data(settings(model={"likelihood": "gaussian"}, data={"binarize": "stochastic"}), wide)


def test_fewer_samples_than_a_batch_are_refused():
    with pytest.raises(UserError, match=r"--global-batch-size 24: the training split has only 23 samples"):
        check_data(settings(), splits(train=23))


def test_no_network_names_the_folder_to_fill(tmp_path, monkeypatch):
    def unreachable(*args: object, **kwargs: object) -> None:
        raise urllib.error.URLError("no network")

    monkeypatch.setattr(urllib.request, "urlopen", unreachable)
    with pytest.raises(UserError) as caught:
        load(MNISTConfig(root=str(tmp_path / "absent")))
    message = str(caught.value)
    assert message.startswith(f"--data.root {tmp_path / 'absent'}: MNIST is not there and could not be downloaded")
    names = [f"{part}-{kind}-ubyte.gz" for part in ("train", "t10k") for kind in ("images-idx3", "labels-idx1")]
    assert f"put {', '.join(names)} into {tmp_path / 'absent/MNIST/raw'}" in message
    assert len(message.splitlines()) == 2


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
    "objects.npy": (_npy((10, 5), b"\0" * 1000, "|O"), "holds object"),
    "short.npy": (_npy((10, 5))[:20], "is no .npy or .npz file"),
    "long_header.npy": (b"\x93NUMPY\x02\x00" + (2**32 - 1).to_bytes(4, "little") + b"{", "is no .npy or .npz file"),
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


def test_a_sparse_file_larger_than_the_memory(tmp_path):
    (tmp_path / "x.npy").write_bytes(_npy((2**34, 16)))
    os.truncate(tmp_path / "x.npy", 1 << 40)
    with pytest.raises(UserError, match=r"it is truncated|this machine has"):
        ArrayConfig(path=str(tmp_path / "x.npy")).shape()
    os.truncate(tmp_path / "x.npy", (1 << 40) + 128)
    with pytest.raises(UserError, match="this machine has"):
        ArrayConfig(path=str(tmp_path / "x.npy")).shape()


def test_a_bomb_is_not_unpacked(tmp_path):
    np.savez_compressed(tmp_path / "x.npz", x=np.zeros((2000, 5000), np.uint8))
    with pytest.raises(UserError, match="times the file: save it uncompressed"):
        ArrayConfig(path=str(tmp_path / "x.npz")).shape()


def test_a_wrong_checksum_of_an_npz_is_said(tmp_path):
    np.savez(tmp_path / "x.npz", x=np.arange(50_000, dtype=np.float32).reshape(10_000, 5))
    data = bytearray((tmp_path / "x.npz").read_bytes())
    data[150_000] ^= 1
    (tmp_path / "x.npz").write_bytes(data)
    with pytest.raises(UserError, match=r"x.npz is damaged \(Bad CRC-32"):
        load(ArrayConfig(path=str(tmp_path / "x.npz")))
