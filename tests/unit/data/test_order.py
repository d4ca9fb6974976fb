"""The order of samples without a table, and in windows of units; the splits that go with them."""

from dataclasses import replace
from typing import Any
from unittest import mock

import pytest
import torch
from helpers import settings
from torch import Tensor

from distae.data import GlobalBatchSampler, Split, hold_out, order_of, steps
from distae.data.checks import check_data
from distae.data.runs import Runs
from distae.data.sampler import KeyedOrder
from distae.data.windowed import WindowedOrder, lanes_of
from distae.errors import UserError
from distae.noise import KeyedPermutation

CPU = torch.device("cpu")
BATCH, SEED, WINDOW = 24, 5, 3
SIZES = {
    "equal": torch.full((40,), 10),
    "unequal": torch.arange(1, 60),
    "one huge": torch.tensor([5, 3, 400, 2, 7, 1, 9, 30] * 3),
    "few": torch.tensor([30, 29]),
}


def windowed(sizes: Tensor, window: int = WINDOW, seed: int = SEED) -> WindowedOrder:
    return WindowedOrder(sizes, BATCH, seed, window)


def keyed(sizes: Tensor, seed: int = SEED) -> KeyedOrder:
    return KeyedOrder(int(sizes.sum()), BATCH, seed)


def sampled(order: object, n: int, rank: int = 0, world_size: int = 1, micro_steps: int = 1) -> GlobalBatchSampler:
    return GlobalBatchSampler(n, BATCH, rank, world_size, micro_steps, SEED, order)  # type: ignore[arg-type]


def first_steps(sampler: GlobalBatchSampler, count: int, first: int = 0) -> Tensor:
    stream = steps(sampler, first, CPU)
    return torch.stack([next(stream) for _ in range(count)])


@pytest.mark.parametrize("make", [windowed, keyed])
@pytest.mark.parametrize("name", SIZES)
def test_an_epoch_is_a_permutation_another_each_time_and_the_same_on_any_number_of_ranks(name, make):
    sizes = SIZES[name]
    n = int(sizes.sum())
    whole = n // BATCH
    alone = first_steps(sampled(make(sizes), n), 3 * whole)[:, 0]
    epochs = alone.view(3, whole * BATCH)
    for epoch in epochs:
        assert len(epoch.unique()) == len(epoch)
        assert epoch.min() >= 0
        assert epoch.max() < n
    assert not epochs[0].equal(epochs[1])
    assert not first_steps(sampled(make(sizes, seed=6), n), whole)[:, 0].equal(alone[:whole])
    for world_size, micro_steps in [(1, 2), (2, 1), (3, 1), (2, 2), (4, 3), (24, 1)]:
        ranks = [first_steps(sampled(make(sizes), n, r, world_size, micro_steps), 3 * whole) for r in range(world_size)]
        assert torch.cat(ranks, 2).flatten(1).equal(alone)


@pytest.mark.parametrize("make", [windowed, keyed])
def test_entering_at_a_step_is_skipping_to_it(make):
    sizes = SIZES["unequal"]
    n = int(sizes.sum())
    straight = first_steps(sampled(make(sizes), n, 1, 3), 2 * (n // BATCH))
    for first in (1, 17, n // BATCH - 1, n // BATCH, n // BATCH + 9):
        assert first_steps(sampled(make(sizes), n, 1, 3), 20, first).equal(straight[first : first + 20])


def units_of(rows: Tensor, sizes: Tensor) -> Tensor:
    return torch.searchsorted(sizes.cumsum(0), rows, right=True)


@pytest.mark.parametrize("world_size", [1, 2, 3, 4, 6, 12])
def test_a_rank_reads_its_share_of_the_units(world_size):
    """Of 400 units on 24 lanes: its own, and at most one more at each end."""
    sizes = torch.randint(5, 16, (400,), generator=torch.Generator().manual_seed(0))
    n = int(sizes.sum())
    assert lanes_of(BATCH, 400) == 24
    counts = []
    for rank in range(world_size):
        rows = first_steps(sampled(windowed(sizes), n, rank, world_size), n // BATCH)
        counts.append(len(units_of(rows, sizes).unique()))
    assert sum(counts) <= 400 + world_size
    assert max(counts) <= 1.15 * 400 / world_size + 1


@pytest.mark.parametrize("name", ["equal", "unequal"])
def test_each_unit_is_read_once_where_as_many_are_kept_as_lanes_and_windows_need(name):
    sizes = SIZES[name].repeat(8)
    n, order = int(sizes.sum()), windowed(sizes)
    most, reads = order.units_in_use(range(BATCH)), 0
    kept: dict[int, bool] = {}
    for unit in units_of(first_steps(sampled(order, n), n // BATCH).flatten(), sizes).tolist():
        reads += unit not in kept
        kept.pop(unit, None)
        kept[unit] = True
        if len(kept) > most:
            kept.pop(next(iter(kept)))
    assert reads <= 1.02 * len(sizes)


def test_windows_mix_what_is_sorted():
    """Of 400 units of 10 classes in order, a batch has almost as many classes as at random; without lanes it has few."""
    sizes = torch.full((400,), 10)
    classes = torch.arange(4000) // 400

    def mean_number(rows: Tensor) -> float:
        return sum(len(classes[step].unique()) for step in rows.flatten(1)) / len(rows)

    ours = mean_number(first_steps(sampled(windowed(sizes), 4000), 166))
    full = mean_number(first_steps(sampled(keyed(sizes), 4000), 166))
    assert ours > 0.97 * full
    with mock.patch("distae.data.windowed.MOST_LANES", 1):
        assert mean_number(first_steps(sampled(windowed(sizes), 4000), 166)) < 0.6 * full


def test_lanes_follow_from_the_batch_and_the_units():
    assert [lanes_of(b, u) for b, u in [(128, 10**6), (96, 10**6), (100, 130), (24, 27), (128, 3), (127, 10**6)]] == [
        128, 96, 25, 6, 1, 127,
    ]  # fmt: skip


@pytest.mark.parametrize("n", [1, 2, 3, 10, 97, 1000, 65537])
def test_a_keyed_permutation_is_one(n):
    x = torch.arange(n)
    images = [KeyedPermutation(n, key)(x) for key in ((0, 0), (0, 1), (1, 0))]
    assert all(image.sort().values.equal(x) for image in images)
    if n > 9:
        assert not images[0].equal(images[1])
        assert not images[0].equal(images[2])
    assert KeyedPermutation(n, (0, 0))(x.flip(0)).equal(images[0].flip(0))


def test_a_keyed_permutation_of_more_than_any_table():
    n = 10**15
    images = KeyedPermutation(n, 0)(n - 1 - torch.arange(100_000))
    assert len(images.unique()) == 100_000
    assert images.min() >= 0
    assert images.max() < n
    assert float(images.double().mean()) == pytest.approx(n / 2, rel=0.01)


@pytest.mark.slow
def test_a_keyed_permutation_sends_every_number_everywhere():
    """Chi-square of 20 numbers' places over 1,000 keys, and of how far apart neighbours land."""
    n, keys = 20, 1000
    images = torch.stack([KeyedPermutation(n, key)(torch.arange(n)) for key in range(keys)])
    counts = torch.stack([images[:, i].bincount(minlength=n) for i in range(n)]).double()
    pairs = (images[:, 1:] - images[:, :-1]).remainder(n).flatten().bincount(minlength=n)[1:].double()
    for observed in (*counts, pairs):
        expected, freedom = observed.sum() / len(observed), len(observed) - 1
        chi_square = float(((observed - expected).square() / expected).sum())
        assert chi_square < freedom + 4 * (2 * freedom) ** 0.5


def split_of(sizes: Tensor) -> Any:
    """Rows that say their number."""
    n = int(sizes.sum())
    split = Split.of(torch.arange(n, dtype=torch.float64)[:, None], torch.arange(n) % 10)
    split.source.units = sizes
    return split


def test_the_order_that_settings_ask_for():
    split, cfg = split_of(SIZES["equal"]), settings()

    def order(shuffle: Any, split: Split = split) -> str:
        return type(order_of(replace(cfg, data=replace(cfg.data, shuffle=shuffle)), split)).__name__

    assert [order(s) for s in ("auto", "full", "windowed")] == ["FullOrder", "FullOrder", "WindowedOrder"]
    with mock.patch("distae.data.sampler.WINDOWED_BYTES", 1000):
        assert order("auto") == "WindowedOrder"
    with mock.patch("distae.data.sampler.TABLE_ROWS", 100):
        assert order("full") == "KeyedOrder"
    by_row = Split.of(torch.zeros(40, 4), None)
    assert order("auto", by_row) == "FullOrder"
    with pytest.raises(UserError, match=r"--data.shuffle windowed: --data digits is read row by row .*; valid: auto, full"):
        check_data(replace(cfg, data=replace(cfg.data, shuffle="windowed")), {"train": by_row})


def test_units_of_a_split_are_its_own_rows():
    split = split_of(torch.tensor([3, 4, 2, 5]))
    rows = torch.tensor([0, 2, 3, 10, 11, 13])
    assert split.take(rows).units.tolist() == [2, 1, 3]
    assert split.take(slice(5)).units.tolist() == [3, 2]
    assert split.take(rows.flip(0)).units is None
    assert replace(split, rows=Runs(torch.tensor([1, 8]), torch.tensor([4, 3]))).units.tolist() == [2, 2, 1, 2]


def test_whole_units_are_held_out_of_many():
    sizes = torch.randint(1, 5, (2000,), generator=torch.Generator().manual_seed(0))
    halves: Any = hold_out(split_of(sizes), 0.1)
    rest, held = halves
    n = int(sizes.sum())
    assert torch.cat([rest.x, held.x]).flatten().sort().values.equal(torch.arange(n, dtype=torch.float64))
    assert len(held.units) == 200
    assert len(rest.units) == 1800
    few = hold_out(split_of(sizes[:900]), 0.1)[1]
    assert len(few) == round(0.1 * int(sizes[:900].sum()))


def test_very_many_rows_are_split_without_a_table():
    """As if 100 were very many, then of 10^10 rows, whose table would take 80 GB."""
    tensor = torch.arange(1000, dtype=torch.float64)[:, None]
    with mock.patch("distae.data.splits.TABLE_ROWS", 100), mock.patch("distae.data.splits.BLOCKS", 50):
        most, test = hold_out(Split.of(tensor, torch.arange(1000) % 7), 0.2)
        rest: Any = hold_out(most, 0.1)
        train, val = rest
        limited = train.take(slice(150))
        assert all(isinstance(s.rows, Runs) for s in (train, val, test, limited))
        parts = [s.x.flatten() for s in (train, val, test)]
        assert [len(p) for p in parts] == [720, 80, 200]
        assert torch.cat(parts).sort().values.equal(tensor.flatten())
        assert all(part.equal(part.sort().values) for part in parts)
        assert limited.x.equal(train.x[:150])
        assert train.label.equal((train.x.flatten() % 7).long())
        plain = replace(train, rows=train.rows[:])
        assert train.identity == plain.identity
        assert train.read(torch.tensor([5, 3]))[0].equal(train.x[[5, 3]])
    huge = Runs.of(10**10).blocks(torch.tensor([5, 10**9]), torch.tensor([10, 9 * 10**9]))
    assert len(huge) == 9 * 10**9 + 10
    assert huge[torch.tensor([9, 10, len(huge) - 1])].tolist() == [14, 10**9, 10**10 - 1]
    assert huge.below(torch.tensor([0, 5, 7, 10**9, 10**10])).tolist() == [0, 0, 2, 10, len(huge)]


def test_blocks_of_runs_are_those_of_the_rows():
    """Also of as many runs and blocks as there are units of a large source, in little time."""
    drawn = torch.Generator().manual_seed(0)
    for _ in range(30):
        sizes, gaps = (torch.randint(low, 5, (5,), generator=drawn) for low in (1, 0))
        runs = Runs(sizes.cumsum(0) - sizes + gaps.cumsum(0), sizes)
        begins, ends = torch.randperm(len(runs) + 1, generator=drawn)[:4].sort().values.view(2, 2).T.contiguous()
        expected = [runs[torch.arange(begin, end)] for begin, end in zip(begins.tolist(), ends.tolist(), strict=True)]
        assert torch.equal(runs.blocks(begins, ends - begins)[:], torch.cat(expected))
    units = torch.full((400_000,), 512)
    many = Runs.of(512 * 400_000).blocks(units.cumsum(0) - units, units)
    assert len(many.blocks(units.cumsum(0)[::2] - 512, units[::2])) == 512 * 200_000
