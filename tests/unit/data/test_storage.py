"""Where the values are: decoded once per node, mapped, streamed; what cannot be is a UserError; a map takes no memory."""

import os
import subprocess
import sys
import threading
from dataclasses import replace
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
from helpers import ROOT, fitted, settings
from torch import Tensor

from benchmarks.crash.in_units import InUnits, InUnitsConfig, write_units
from distae.config.data import ArrayConfig, DigitsConfig
from distae.data import Split, identity, load, order_of, place
from distae.data.decoded import DecodedCopy, decoded
from distae.errors import UserError
from distae.runtime.cache import cache_folder, make_room

SIZES = [7, 3, 5] * 12


@pytest.fixture
def cfg(tmp_path, monkeypatch) -> InUnitsConfig:
    monkeypatch.setenv("DISTAE_CACHE", str(tmp_path / "cache"))
    x = np.random.default_rng(0).integers(0, 250, (sum(SIZES), 8, 8), dtype=np.uint8)
    return InUnitsConfig(path=str(write_units(tmp_path / "units", x, SIZES)), shuffle="windowed", window=1)


def test_a_small_set_is_decoded_once_and_stays_the_same_data_in_the_same_order(cfg):
    splits: Any = load(cfg)
    placed: Any = place(cfg, splits, 2)
    for name, split in placed.items():
        assert type(split.source) is DecodedCopy
        assert split.x.equal(splits[name].x)
        assert split.label.equal(splits[name].label)
        assert split.source.name_of(5) == splits[name].source.name_of(int(splits[name].rows[5]))
    assert identity(placed) == identity(splits)
    orders = [order_of(settings(data={"name": "in_units", "shuffle": "windowed"}), s["train"]) for s in (splits, placed)]
    assert orders[0].rows(0, range(5), range(24)).equal(orders[1].rows(0, range(5), range(24)))
    again: Any = load(cfg)
    again["train"].identity  # noqa: B018 - reads the values
    before = len(again["train"].source.opened)
    placed = place(cfg, again, 2)
    placed["train"].read(torch.arange(20))
    assert len(again["train"].source.opened) == before


def test_a_copy_of_other_files_or_settings_is_not_used(cfg):
    copies = set()
    for version, data in [("", cfg), ("later", cfg), ("", replace(cfg, limit=100))]:
        with mock.patch.object(InUnits, "version", version):
            copies.add(place(data, load(data), 2)["train"].source.origin)
    assert len(copies) == 3
    assert place(replace(cfg, workers=3, window=2), load(cfg), 2)["train"].source.origin in copies


def test_of_several_processes_one_decodes(cfg):
    splits = [load(cfg)["train"] for _ in range(3)]
    reads: list[int] = []
    for split in splits:
        split.identity  # noqa: B018 - so that what follows is decoding alone
    decode = InUnits.decode

    def counted(self: InUnits, unit: Tensor, rows: Tensor) -> Tensor:
        reads.append(len(rows))
        return decode(self, unit, rows)

    with mock.patch.object(InUnits, "decode", counted):
        several = [threading.Thread(target=decoded, args=(split, "", 1)) for split in splits]
        for thread in several:
            thread.start()
        for thread in several:
            thread.join()
    assert sum(reads) == len(splits[0])


def test_a_larger_set_is_streamed_unless_asked_for(cfg):
    splits = load(cfg)
    with mock.patch("distae.data.storage.SMALL_BYTES", 1000):
        assert place(cfg, splits, 2) is splits
        assert type(place(replace(cfg, storage="resident"), splits, 2)["train"].source) is DecodedCopy
    assert place(replace(cfg, storage="streamed"), splits, 2) is splits


def test_what_cannot_be_decoded_is_named_streamed_or_reported(cfg, tmp_path, monkeypatch):
    bad = np.zeros((40, 8, 8), np.uint8)
    bad[33] = 255
    splits = {"train": Split(InUnits(write_units(tmp_path / "bad", bad, [10] * 4)))}
    monkeypatch.setattr(splits["train"].source, "checksum", lambda rows: "known")
    for storage in ("auto", "resident"):
        with pytest.raises(UserError, match="row 3 of a file is bad"):
            place(replace(cfg, storage=storage), splits, 2)
    assert not list(cache_folder("decoded").glob("*.bin"))
    skipping = replace(cfg, on_error="skip")
    with pytest.raises(UserError, match=r"--data.storage resident: --data.on-error skip .*; valid: streamed"):
        place(replace(skipping, storage="resident"), load(skipping), 2)
    streamed = load(skipping)
    assert place(skipping, streamed, 2) is streamed
    monkeypatch.setenv("DISTAE_CACHE", str(tmp_path / "bad" / "0000.npy"))
    splits = load(cfg)
    assert place(cfg, splits, 2) is splits
    with pytest.raises(UserError, match=r"--data.storage resident: the decoded copy cannot be written .*set DISTAE_CACHE"):
        place(replace(cfg, storage="resident"), splits, 2)


def test_combinations_that_cannot_be(cfg, tmp_path):
    np.save(tmp_path / "x.npy", np.zeros((50, 4), np.float32))
    array = ArrayConfig(path=str(tmp_path / "x.npy"))
    for data, storage, valid in [
        (cfg, "mapped", "auto, resident, streamed"), (array, "streamed", "auto, resident, mapped"),
        (DigitsConfig(), "mapped", "auto, resident"),
    ]:  # fmt: skip
        with pytest.raises(UserError, match=f"--data.storage {storage}: --data {data.name} is .*; valid: {valid}$"):
            place(replace(data, storage=storage), load(data), 1)
    for data in (cfg, array):
        full = mock.patch("distae.data.storage.available_memory", return_value=10)
        with full, pytest.raises(UserError, match="this node has 1e-08 GB free; valid"):
            place(replace(data, storage="resident"), load(data), 1)
    with mock.patch("distae.data.storage.MOST_BYTES", 10), pytest.raises(UserError, match="valid: streamed"):
        place(replace(cfg, storage="resident"), load(cfg), 1)
    splits = load(array)
    storages: Any = ("auto", "resident", "mapped")
    for storage in storages:
        assert place(replace(array, storage=storage), splits, 1) is splits


def test_a_run_says_where_its_data_are(tmp_path):
    np.save(tmp_path / "x.npy", np.zeros((200, 64), np.float32))
    cfg = settings(data={"name": "array", "path": str(tmp_path / "x.npy")}, model={"likelihood": "gaussian"}, steps=1)
    fitted(cfg, tmp_path / "mapped", load(cfg.data))
    fitted(settings(steps=1), tmp_path / "memory")
    said = [(tmp_path / name / "log.txt").read_text() for name in ("mapped", "memory")]
    assert f"data: 200 samples, 5.12e-05 GB, mapped from {tmp_path / 'x.npy'}" in said[0]
    assert "data: 284 samples, 1.82e-05 GB, resident in memory" in said[1]


def test_the_cache_makes_room_by_use(tmp_path):
    for number in range(4):
        (tmp_path / str(number)).write_bytes(b"x" * 100)
        os.utime(tmp_path / str(number), (number, number))
    os.utime(tmp_path / "0")
    make_room(tmp_path, 150, 400)
    assert sorted(p.name for p in tmp_path.iterdir() if p.suffix != ".lock") == ["0", "3"]


TRAINING = """
import resource, sys
from pathlib import Path
import distae.data.source
from distae.commands.train import main
distae.data.source.BLOCK_BYTES = 1 << 20
def train(name):
    argv = "--steps 3 --data array --data.scale 255 --net.hidden 8 --eval-batch-size 100 --tracking none --device cpu --threads 1"
    return main([*argv.split(), "--data.path", f"{name}.npy", "--run-dir", name])
assert train("small") == 0
used = next(int(l.split()[1]) for l in Path("/proc/self/status").read_text().splitlines() if l.startswith("VmData")) * 1024
most = used + int(sys.argv[1])
resource.setrlimit(resource.RLIMIT_DATA, (most, most))
sys.exit(train("large"))
"""


@pytest.mark.spawn
def test_a_mapped_set_of_20_times_the_memory_trains(tmp_path):
    """A sparse file of 800 MB, where the process may take 40 MB more than it has after a run on a small one."""
    free = 40 << 20
    for name, rows in {"small": 1000, "large": 20 * free // 4096}.items():
        np.lib.format.open_memmap(tmp_path / f"{name}.npy", "w+", np.uint8, (rows, 4096)).flush()
    env = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", TRAINING, str(free)]
    done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert "0.839 GB, mapped from large.npy" in done.stderr
