"""torchvision's sets, on made-up files in torchvision's own layout, without its checksums, which they do not have."""

import pickle
import struct
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from distae.config import TrainConfig, build
from distae.data import load
from distae.errors import UserError

GREY = np.random.default_rng(0).integers(0, 256, (20, 28, 28), dtype=np.uint8)
COLOUR = np.random.default_rng(0).integers(0, 256, (20, 3, 32, 32), dtype=np.uint8)
LABELS = np.arange(20, dtype=np.uint8) % 10


def idx(path: Path, values: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(struct.pack(f">I{values.ndim}I", 0x800 + values.ndim, *values.shape) + values.tobytes())


def sets_of(name: str, root: Path, **changes):
    return load(build(TrainConfig, {"data": {"name": name, "root": str(root), "val_fraction": 0.0, **changes}}).data)


def test_kmnist(tmp_path):
    for part in ("train", "t10k"):
        idx(tmp_path / f"KMNIST/raw/{part}-images-idx3-ubyte", GREY)
        idx(tmp_path / f"KMNIST/raw/{part}-labels-idx1-ubyte", LABELS)
    splits = sets_of("kmnist", tmp_path)
    assert splits["train"].shape == (1, 28, 28)
    assert (splits["test"].x.numpy()[:, 0] == GREY).all()


def test_emnist_is_turned_upright_and_its_letters_count_from_zero(tmp_path):
    for part in ("train", "test"):
        idx(tmp_path / f"EMNIST/raw/emnist-letters-{part}-images-idx3-ubyte", GREY)
        idx(tmp_path / f"EMNIST/raw/emnist-letters-{part}-labels-idx1-ubyte", LABELS + 1)
    splits = sets_of("emnist", tmp_path, split="letters")
    assert (splits["train"].x.numpy()[:, 0] == GREY.transpose(0, 2, 1)).all()
    assert (splits["train"].label.numpy() == LABELS).all()


def test_cifar100(tmp_path, monkeypatch):
    import torchvision.datasets as tv

    folder = tmp_path / "cifar-100-python"
    folder.mkdir()
    for part in ("train", "test"):
        (folder / part).write_bytes(pickle.dumps({"data": COLOUR.reshape(20, -1), "fine_labels": [*map(int, LABELS)]}))
    (folder / "meta").write_bytes(pickle.dumps({"fine_label_names": [*"abcdefghij"]}))
    monkeypatch.setattr(tv.CIFAR100, "train_list", [["train", None]])
    monkeypatch.setattr(tv.CIFAR100, "test_list", [["test", None]])
    monkeypatch.setattr(tv.CIFAR100, "meta", tv.CIFAR100.meta | {"md5": None})
    splits = sets_of("cifar100", tmp_path)
    assert (splits["train"].x.numpy() == COLOUR).all()
    assert (splits["train"].label.numpy() == LABELS).all()


def test_svhn(tmp_path, monkeypatch):
    import torchvision.datasets as tv
    from scipy.io import savemat

    for part in ("train", "test"):
        savemat(
            tmp_path / f"{part}_32x32.mat", {"X": COLOUR.transpose(2, 3, 1, 0), "y": np.where(LABELS == 0, 10, LABELS)[:, None]}
        )
    monkeypatch.setattr(tv.SVHN, "split_list", {k: [url, name, None] for k, (url, name, _) in tv.SVHN.split_list.items()})
    splits = sets_of("svhn", tmp_path)
    assert (splits["test"].x.numpy() == COLOUR).all()
    assert (splits["test"].label.numpy() == LABELS).all()


def test_stl10_with_and_without_the_unlabeled(tmp_path, monkeypatch):
    import torchvision.datasets as tv

    x = np.random.default_rng(0).integers(0, 256, (5, 3, 96, 96), dtype=np.uint8)
    (tmp_path / "stl10_binary").mkdir()
    for name in ("train", "test", "unlabeled"):
        (tmp_path / f"stl10_binary/{name}_X.bin").write_bytes(x.transpose(0, 1, 3, 2).tobytes())
        (tmp_path / f"stl10_binary/{name}_y.bin").write_bytes(np.arange(1, 6, dtype=np.uint8).tobytes())
    for part in ("train_list", "test_list"):
        monkeypatch.setattr(tv.STL10, part, [[name, None] for name, _ in getattr(tv.STL10, part)])
    splits = sets_of("stl10", tmp_path)
    assert (splits["train"].x.numpy() == x).all()
    assert splits["train"].label.tolist() == [0, 1, 2, 3, 4]
    splits = sets_of("stl10", tmp_path, unlabeled=True)
    assert len(splits["train"]) == 10
    assert splits["train"].label is None


def faces(root: Path) -> Path:
    folder = root / "celeba" / "img_align_celeba"
    folder.mkdir(parents=True)
    names = [f"{i:06}.jpg" for i in range(1, 9)]
    for i, name in enumerate(names):
        x = np.zeros((218, 178, 3), np.uint8)
        x[35:183, 15:163] = 20 * i + 10  # the central 148x148
        Image.fromarray(x).save(folder / name, quality=95)
    (root / "celeba/list_eval_partition.txt").write_text("".join(f"{n} {i // 3}\n" for i, n in enumerate(names)))
    attributes = "".join(f"{n}  {2 * (i % 2) - 1} -1\n" for i, n in enumerate(names))
    (root / "celeba/list_attr_celeba.txt").write_text(f"8\nSmiling Young\n{attributes}")
    return folder


def test_celeba_has_its_own_splits_and_is_cut_to_the_face(tmp_path):
    faces(tmp_path)
    splits = sets_of("celeba", tmp_path, size=16, attribute="Smiling")
    assert {k: v.rows.tolist() for k, v in splits.items()} == {"train": [0, 1, 2], "val": [3, 4, 5], "test": [6, 7]}
    assert splits["train"].shape == (3, 16, 16)
    inside = splits["val"].x.numpy()[:, :, 1:-1, 1:-1].astype(int)
    assert np.abs(inside - (20 * np.arange(3, 6) + 10)[:, None, None, None]).max() <= 3
    assert splits["val"].label.tolist() == [1, 0, 1]
    with pytest.raises(UserError, match=r"--data.attribute: 'Hat' is not in .*; it has Smiling, Young"):
        sets_of("celeba", tmp_path, attribute="Hat")


def test_celeba_with_broken_files(tmp_path):
    folder = faces(tmp_path)
    (folder / "000002.jpg").write_bytes(b"")
    with pytest.raises(UserError, match=r"000002.jpg cannot be read \(it is empty"):
        sets_of("celeba", tmp_path)
    assert sets_of("celeba", tmp_path, on_error="skip")["train"].rows.tolist() == [0, 2]
    Image.new("RGB", (178, 218)).save(folder / "999999.jpg")
    with pytest.raises(UserError, match=r"list_eval_partition.txt does not list 999999.jpg"):
        sets_of("celeba", tmp_path, on_error="skip")


@pytest.mark.parametrize(
    ("name", "files", "folder"),
    [
        ("mnist", "train-images-idx3-ubyte.gz", "MNIST/raw"),
        ("kmnist", "t10k-labels-idx1-ubyte.gz", "KMNIST/raw"),
        ("emnist", "gzip.zip", "EMNIST/raw"),
        ("cifar100", "cifar-100-python.tar.gz", ""),
        ("svhn", "train_32x32.mat, test_32x32.mat", ""),
        ("stl10", "stl10_binary.tar.gz", ""),
        ("celeba", "img_align_celeba.zip, list_attr_celeba.txt", "celeba"),
    ],
)
def test_without_the_files_and_a_network_it_says_what_to_put_where(tmp_path, monkeypatch, name, files, folder):
    import torchvision.datasets as tv

    def unreachable(self):
        raise OSError("no network here")

    for cls in (tv.MNIST, tv.EMNIST, tv.CIFAR10, tv.SVHN, tv.STL10, tv.CelebA):
        monkeypatch.setattr(cls, "download", unreachable)
    with pytest.raises(UserError, match="no network here") as found:
        sets_of(name, tmp_path / "none")
    assert files in str(found.value)
    assert f"into {tmp_path / 'none' / folder}," in str(found.value)
