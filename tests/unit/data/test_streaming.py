"""Reading ahead: the same numbers with any number of threads, errors as they were raised, no thread left; units that are kept."""

import threading
import time
from dataclasses import replace
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
from helpers import fresh_trainer, metrics, settings
from torch import Tensor

from benchmarks.crash.in_units import InUnits, write_units
from distae.commands.session import train_run
from distae.data import BadRowsError, Loader, Reading, Split, Tensors, Transform, load
from distae.data.units import Kept
from distae.evaluation.exact import eval_shards
from distae.runtime.signals import StopRequest

CPU = torch.device("cpu")
SIZES = [7, 3, 5] * 12


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    x = np.random.default_rng(0).integers(0, 250, (sum(SIZES), 8, 8), dtype=np.uint8)
    return write_units(tmp_path_factory.mktemp("units") / "units", x, SIZES)


def threads() -> list[str]:
    return [t.name for t in threading.enumerate() if t.name.startswith("distae-data")]


def loader(split: Split, workers: int, prefetch: int = 3) -> Any:
    return Loader(split, "none", CPU, torch.float32, reading=Reading(workers=workers, prefetch=prefetch))


class Slow(Tensors):
    """Reads take a while, at most one moment for each of 4 rows, and are counted."""

    def __init__(self, x: Tensor) -> None:
        super().__init__(x, torch.arange(len(x)))
        self.reads: list[tuple[str, list[int]]] = []

    def read(self, rows: Tensor) -> Tensor:
        time.sleep(0.001 * (int(rows[0]) % 4))
        self.reads.append((threading.current_thread().name, rows.tolist()))
        return super().read(rows)


def test_a_source_in_units_gives_its_rows(folder):
    source = InUnits(folder)
    everything = torch.cat([torch.from_numpy(np.load(path)) for path in source.paths])
    rows = torch.tensor([179, 0, 3, 55, 54, 0, 7, 178])
    assert len(source) == 180
    assert source.read(rows).equal(everything[rows])
    assert source.checksum(None) == Tensors(everything).checksum(None)
    assert sorted(set(source.opened)) == sorted(source.opened)


@pytest.mark.parametrize("workers", [0, 1, 3])
def test_batches_are_the_same_with_any_number_of_threads(workers):
    x = torch.arange(400.0).view(100, 4)
    made = loader(Split(Slow(x)), workers)
    order = list(torch.randint(100, (20, 2, 24), generator=torch.Generator().manual_seed(0)))
    seen = []
    for rows in made.ahead(order, iter):
        for mine in rows:
            values, label = made.batch(mine, None)
            assert values.equal(x[mine])
            assert label.equal(mine)
        seen.append(rows)
    assert torch.stack(seen).equal(torch.stack(order))
    assert bool(threads()) == bool(workers)
    assert not made.reader.coming
    made.close()
    assert not threads()


def test_what_comes_is_read_before_it_is_asked_for_and_by_the_threads():
    source = Slow(torch.zeros(100, 4))
    made = loader(Split(source), workers=2)
    coming = made.ahead((torch.arange(n, n + 16)[None] for n in range(0, 80, 16)), iter)
    next(coming)
    end = time.monotonic() + 5
    while len(source.reads) < 8 and time.monotonic() < end:
        time.sleep(0.01)
    assert sorted(rows[0] for _, rows in source.reads) == [0, 8, 16, 24, 32, 40, 48, 56]  # this one and 3 ahead, in halves
    assert all(name.startswith("distae-data") for name, _ in source.reads)
    coming.close()
    assert not made.reader.coming
    made.close()


def test_a_batch_that_nobody_expected_is_read_at_once():
    made = loader(Split(Slow(torch.arange(400.0).view(100, 4))), workers=2)
    coming = made.ahead([torch.arange(24)[None]] * 3, iter)  # the same rows three times
    for rows in coming:
        assert made.batch(torch.tensor([5, 3]), None)[1].tolist() == [5, 3]
        assert made.batch(rows[0], None)[1].equal(rows[0])
    made.close()


def test_an_evaluation_reads_ahead_too():
    source = Slow(torch.zeros(100, 4))
    made = loader(Split(source), workers=2, prefetch=1)
    shards = eval_shards(made, 100, 32)
    sizes = [len(made.batch(shard.samples, None)[0]) for shard in shards]
    assert sizes == [32, 32, 32, 4]
    assert all(name.startswith("distae-data") for name, _ in source.reads)
    made.close()


def test_an_error_of_a_thread_is_raised_where_the_batch_is_asked_for(folder, tmp_path):
    x = np.zeros((40, 8, 8), np.uint8)
    x[33] = 255
    source = InUnits(write_units(tmp_path / "bad", x, [10] * 4))
    made = loader(Split(source, Transform(255.0)), workers=2)
    coming = made.ahead(torch.arange(40).view(5, 1, 8), iter)
    for _ in range(4):
        made.batch(next(coming)[0], None)
    with pytest.raises(BadRowsError, match="row 3 of a file is bad") as caught:
        made.batch(next(coming)[0], None)
    assert [*caught.value.reasons] == [33]
    source.paths[0].unlink()
    with pytest.raises(BadRowsError, match=r"row 5: .*No such file") as caught:
        InUnits.read(source := copy_of(source), torch.tensor([5, 12]))
    assert [*caught.value.reasons] == [5]
    made.close()
    assert not threads()


def copy_of(source: InUnits) -> InUnits:
    """The same files, none of them read yet."""
    made = InUnits.__new__(InUnits)
    made.paths, made.units, made.opened = source.paths, source.units, []
    return made


def test_units_that_two_threads_want_are_read_once_and_the_oldest_are_dropped():
    def read(number: int) -> int:
        time.sleep(0.02)
        return number

    kept = Kept(read, 3)
    several = [threading.Thread(target=kept.get, args=(0, 0)) for _ in range(4)]
    for thread in several:
        thread.start()
    for thread in several:
        thread.join()
    assert kept.reads == 1
    assert [kept.get(n, 0) for n in (1, 2, 0, 3, 0, 1)] == [1, 2, 0, 3, 0, 1]  # 1 was dropped for 3
    assert kept.reads == 5


def run(folder, run_dir, workers: int, steps: int = 12, **changes):
    """A run on the units; its split and the rows of metrics that say nothing of time."""
    data = {"name": "in_units", "path": str(folder), "shuffle": "windowed", "window": 1, "workers": workers, **changes}
    cfg = replace(settings(data=data, steps=steps, eval_every=6, log_every=1), run_dir=str(run_dir))
    splits = load(cfg.data)
    end = train_run(cfg, splits, StopRequest(), 1)
    return end, splits["train"].source, [{k: v for k, v in row.items() if k.endswith("loss")} for row in metrics(run_dir)]


def test_a_run_does_not_depend_on_the_threads_and_leaves_none(folder, tmp_path):
    alone, threaded = (run(folder, tmp_path / str(workers), workers) for workers in (0, 3))
    assert alone[0].outcome == threaded[0].outcome == "done"
    assert alone[2] == threaded[2]
    assert not threads()
    assert "streamed, 3 worker threads" in (tmp_path / "3" / "log.txt").read_text()


def test_a_run_that_fails_names_the_row_and_leaves_no_thread(folder, tmp_path):
    def broken(self, unit, rows):
        if threading.current_thread() is not threading.main_thread():
            raise BadRowsError({int(rows[0]): "0007.npy row 2 is broken"})
        return unit[rows]

    with mock.patch.object(InUnits, "decode", broken):
        end, *_ = run(folder, tmp_path / "run", workers=2)
    assert end.outcome == "failed"
    assert end.reason.startswith("0007.npy row 2 is broken")
    assert not threads()


def test_ctrl_c_leaves_no_thread(folder, tmp_path):
    cfg = settings(data={"name": "in_units", "path": str(folder), "workers": 2})
    trainer = fresh_trainer(cfg, tmp_path / "run", load(cfg.data))
    asked = mock.patch.object(trainer.stop, "agreed", side_effect=[False, False, KeyboardInterrupt])
    with asked, pytest.raises(KeyboardInterrupt):
        trainer.fit()
    trainer.close()
    assert trainer.state.step == 2
    assert not threads()


def test_data_wait_is_in_every_row_of_training(folder, tmp_path):
    run(folder, tmp_path / "run", workers=2)
    rows = [row for row in metrics(tmp_path / "run") if "train/loss" in row]
    assert len(rows) == 12
    assert all(0 <= row["train/data_wait_fraction"] < 1 for row in rows)
