"""Data sets, the order of samples, and batches."""

import json
import urllib.error
import urllib.request
from typing import Any, cast, get_args

import numpy as np
import pytest
import torch
from helpers import as_the_model_sees, images, labels_of, settings, shared_data, splits
from sklearn.datasets import load_digits
from torch.utils.data import BatchSampler, DistributedSampler

from distae.config.data import ArrayConfig, DigitsConfig, FashionMNISTConfig, MNISTConfig, StoredLayout
from distae.data import GlobalBatchSampler, Loader, Split, Transform, load, steps
from distae.data import source as data_source
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
    """Of each micro-batch of torch's global batch, rank r holds the r-th of equal parts."""
    torchs: DistributedSampler[int] = DistributedSampler(cast(Any, range(n)), 1, 0, shuffle=True, seed=seed, drop_last=True)
    ranks = [GlobalBatchSampler(n, batch, rank, world_size, micro_steps, seed) for rank in range(world_size)]
    for epoch in range(3):
        for sampler in (torchs, *ranks):
            sampler.set_epoch(epoch)
        expected = list(BatchSampler(torchs, batch, drop_last=True))
        assert [torch.cat(rows, 1).flatten().tolist() for rows in zip(*ranks, strict=True)] == expected
        assert len(expected) == len(ranks[0]) == n // batch


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
    assert all(torch.equal(sets[k].x, again[k].x) and torch.equal(labels_of(sets[k]), labels_of(again[k])) for k in sets)
    assert sets["train"].x.dtype == torch.uint8
    assert float(sets["train"].x.max()) / sets["train"].transform.scale == 1


def test_labels_stay_with_their_images():
    sets = load(DigitsConfig())
    known = {tuple(x): y for x, y in zip(*load_digits(return_X_y=True), strict=True)}
    assert all(
        known[tuple(x)] == y for s in sets.values() for x, y in zip(s.x.flatten(1).tolist(), labels_of(s).tolist(), strict=True)
    )


def test_limit_takes_the_first_of_each_split():
    assert [len(s) for s in load(DigitsConfig(limit=20)).values()] == [20, 20, 20]


def test_training_on_some_classes_leaves_the_test_split_whole():
    plain, some = load(DigitsConfig()), load(DigitsConfig(train_classes=("3", "8")))
    for name in ("train", "val"):
        kept = torch.isin(labels_of(plain[name]), torch.tensor([3, 8]))
        assert some[name].x.equal(plain[name].x[kept])
        assert labels_of(some[name]).equal(labels_of(plain[name])[kept])
    assert some["test"].x.equal(plain["test"].x)


@pytest.mark.parametrize(
    ("cfg", "message"),
    [(DigitsConfig(train_classes=("3", "ten")), "no class 'ten'; valid: 0, 1, 2"), (None, "the data have no labels")],
)
def test_classes_that_the_data_lack_are_rejected(cfg, message, tmp_path):
    if cfg is None:
        np.save(tmp_path / "x.npy", np.zeros((20, 4), "float32"))
        cfg = ArrayConfig(path=str(tmp_path / "x.npy"), train_classes=("1",))
    with pytest.raises(UserError, match=f"--data.train-classes: .*{message}"):
        load(cfg)


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
    assert labels_of(sets["test"]).bincount().tolist() == counts[name]


def test_a_batch_is_the_stored_rows_in_the_models_units():
    split = images(20, 0)
    x, label = Loader(split, "none", CPU, torch.float64).batch(torch.tensor([3, 1]), Noise.seeded(0, 2))
    assert torch.equal(x, split.x[[3, 1]].double() * (1 / 255))
    assert label is not None
    assert label.tolist() == [3, 1]


def test_binarize():
    split, rows = images(20, 0), torch.arange(20)
    grey, _ = Loader(split, "none", CPU, torch.float32).batch(rows, Noise.seeded(0, 20))
    hard, _ = Loader(split, "threshold", CPU, torch.float32).batch(rows, Noise.seeded(0, 20))
    assert torch.equal(hard, (grey > 0.5).float())
    loader = Loader(split, "stochastic", CPU, torch.float32)
    drawn = torch.stack([loader.batch(rows, Noise(0, (i,), Rows(20), CPU))[0] for i in range(400)])
    assert set(drawn.unique().tolist()) == {0, 1}
    torch.testing.assert_close(drawn.mean(0), grey, atol=0.13, rtol=0)  # 5 standard deviations of the mean of 400


@pytest.mark.parametrize("layout", get_args(StoredLayout))
@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
def test_a_transform_is_undone_by_its_inverse_and_kept_as_json(layout, dtype):
    transform = Transform(255.0, layout)
    stored = torch.randint(0, 256, (5, 6, 4) if layout == "no_channel" else (5, 6, 4, 3)).to(dtype)
    before = stored.clone()
    made = transform.apply(stored, torch.float32)
    assert torch.equal(stored, before)
    torch.testing.assert_close(made, transform.arrange(stored).float() / 255)
    torch.testing.assert_close(transform.invert(made), stored.float())
    assert Transform.from_json(json.loads(json.dumps(transform.to_json()))) == transform
    with pytest.raises(UserError, match="is not a transform of stored values"):
        Transform.from_json({"scale": 0.0})


def test_a_class_of_the_test_split_alone_is_rejected_too():
    wrong = splits()
    wrong["test"] = Split.of(wrong["test"].x, torch.full((37,), 10), wrong["test"].transform)
    with pytest.raises(UserError, match=r"--model.classes 10: --data digits has labels up to 10"):
        check_data(settings(model={"name": "cvae", "classes": 10}), wrong)


def test_splits_are_row_numbers_of_one_source(monkeypatch):
    """No copies; blocks, bounds and a copy on a device are of the chosen rows, in order."""
    monkeypatch.setattr(data_source, "BLOCK_BYTES", 300)
    whole = images(50, 0)
    rows = torch.tensor([41, 3, 3, 7, *range(20)])
    some = whole.take(rows).take(slice(1, None))
    assert some.source is whole.source
    expected = whole.x[rows[1:]]
    blocks = list(some.blocks())
    assert [len(b) for b in blocks] == [4, 4, 4, 4, 4, 3]
    assert torch.equal(torch.cat(blocks), expected)
    assert torch.equal(torch.cat(list(whole.blocks())), whole.x)
    assert some.bounds() == (float(expected.min()), float(expected.max()))
    moved = some.to(CPU)
    assert (len(moved.source), moved.rows, moved.transform) == (23, None, whole.transform)
    assert torch.equal(moved.x, expected)
    assert torch.equal(labels_of(moved), labels_of(some))
    assert some.nbytes == expected.nbytes
    assert torch.equal(as_the_model_sees(moved), as_the_model_sees(some))


def test_bernoulli_rejects_data_outside_its_range():
    wide = splits() | {"val": Split.of(torch.full((5, 1, 8, 8), -1.5), None)}
    with pytest.raises(UserError, match=r"--model.likelihood bernoulli needs data in \[0, 1\]; the val split .* \[-1.5, -1.5\]"):
        check_data(settings(), wide)
    check_data(settings(model={"likelihood": "gaussian"}), wide)
    with pytest.raises(UserError, match="bernoulli"):
        check_data(settings(model={"likelihood": "gaussian"}, data={"binarize": "stochastic"}), wide)


def test_fewer_samples_than_a_batch_are_rejected():
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
