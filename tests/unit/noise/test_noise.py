"""Keyed randomness: the same key gives the same numbers, however the rows are shared out."""

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from distae import noise
from distae.noise import Noise, Rows
from distae.noise.keyed import rows_per_block

CPU = torch.device("cpu")
DRAWS = {
    "normal": lambda n, like: n.normal(like),
    "uniform": lambda n, like: n.uniform(like),
    "bernoulli": lambda n, like: n.bernoulli(like),
    "dropout": lambda n, like: n.dropout(like, 0.3),
}


def draw(name: str, rows: Rows, held: int, key: tuple = ("train", 5, "autoencoder"), seed: int = 1, width: int = 3) -> torch.Tensor:
    return DRAWS[name](Noise(seed, key, rows, CPU), torch.full((held, 2, width), 0.4))


@pytest.mark.parametrize("name", DRAWS)
@pytest.mark.parametrize("world_size", [2, 3, 4])
@pytest.mark.parametrize("micro_steps", [1, 2])
@pytest.mark.parametrize("width", [3, 5000, 40_000])
def test_ranks_and_micro_steps_share_out_one_draw(name, world_size, micro_steps, width):
    """Rows of which a block holds 64, of which it holds 2, and one that is a block of its own."""
    n = 24 if width > 3 else 240
    alone, micro = draw(name, Rows(n), n, width=width), n // micro_steps
    for m in range(micro_steps):
        for rank in range(world_size):
            share = micro // world_size
            start = m * micro + rank * share
            assert torch.equal(draw(name, Rows(share, start), share, width=width), alone[start : start + share])


def test_the_key_decides_and_nothing_else():
    torch.manual_seed(0)
    first = draw("normal", Rows(4), 4)
    torch.manual_seed(1)
    before = torch.get_rng_state()
    assert torch.equal(draw("normal", Rows(4), 4), first)
    assert torch.equal(torch.get_rng_state(), before)


def test_every_part_of_the_key_counts():
    keys = [("train", 5, "a"), ("train", 6, "a"), ("train", 5, "b"), ("eval", 5), ("train", "5", "a"), ("train", 5, "a", 0)]
    draws = [draw("normal", Rows(4), 4, key) for key in keys] + [draw("normal", Rows(4), 4, keys[0], seed=2)]
    stream = Noise(1, keys[0], Rows(4), CPU)
    draws += [stream.normal(torch.empty(4, 2, 3)) for _ in range(3)][1:]
    assert len({tuple(d.flatten().tolist()) for d in draws}) == len(draws)


def test_distributions():
    stream, like = Noise(0, ("x",), Rows(1000), CPU), torch.empty(1000, 100)
    normal, uniform = stream.normal(like), stream.uniform(like)
    assert abs(normal.mean()) < 0.02
    assert abs(normal.var() - 1) < 0.03
    assert abs(normal.pow(4).mean() - 3) < 0.15
    assert uniform.min() >= 0
    assert uniform.max() < 1
    assert abs(uniform.mean() - 0.5) < 0.01
    p = torch.linspace(0, 1, 100).expand(1000, 100)
    ones = stream.bernoulli(p)
    assert set(ones.unique().tolist()) == {0, 1}
    assert (ones.mean(0) - p[0]).abs().max() < 0.08
    assert ones[:, 0].sum() == 0
    assert ones[:, -1].sum() == 1000


def test_dropout_drops_its_share_and_keeps_the_mean():
    x = torch.ones(1000, 100)
    out = Noise(0, ("x",), Rows(1000), CPU).dropout(x, 0.3)
    assert sorted(out.unique().tolist()) == pytest.approx([0, 1 / 0.7])
    assert abs((out == 0).float().mean() - 0.3) < 0.01
    assert torch.equal(Noise(0, ("x",), Rows(1000), CPU).dropout(x, 0.0), x)


def test_a_permutation_is_one_and_the_same_on_every_rank():
    orders = [Noise(0, ("x",), Rows(4, 4 * rank), CPU).permutation(8).tolist() for rank in range(2)]
    assert orders[0] == orders[1]
    assert sorted(orders[0]) == list(range(8))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_values_are_drawn_in_at_least_single_precision(dtype):
    assert Noise(0, ("x",), Rows(4), CPU).normal(torch.empty(4, 2, dtype=dtype)).dtype == torch.promote_types(dtype, torch.float32)


def test_a_draw_costs_what_the_ranks_own_rows_cost():
    """Blocks that are touched in part are all that is drawn besides, on rank 3 of 1,024 with 16 micro-steps as on 1."""
    for start in (0, 3 * 100, 15 * 1024 * 100 + 3 * 100):
        x = Noise(0, ("x",), Rows(100, start), CPU).normal(torch.empty(100, 784))
        assert x.shape == (100, 784)
        assert x.untyped_storage().nbytes() <= 4 * 784 * (100 + 2 * rows_per_block(784))


def test_a_block_is_as_large_as_its_rows_width_says():
    assert [rows_per_block(width) for width in (0, 1, 16, 512, 513, 784, 3072, 32768, 32769, 10**6)] == [
        64, 64, 64, 64, 32, 32, 8, 1, 1, 1
    ]  # fmt: skip


def test_blocks_are_drawn_whole_and_differ():
    x = Noise(0, ("x",), Rows(150), CPU).uniform(torch.empty(150, 512))
    short = Noise(0, ("x",), Rows(50), CPU).uniform(torch.empty(50, 512))
    assert torch.equal(short, x[:50])
    assert len({float(row[0]) for row in x}) == 150


def test_several_rows_per_sample_are_shared_out_alike():
    def drawn(rows: Rows) -> torch.Tensor:
        return Noise(0, ("x",), rows, CPU).times(5).normal(torch.empty(rows.count * 5, 13))

    whole = drawn(Rows(60))
    assert torch.equal(torch.cat([drawn(Rows(20, 20 * rank)) for rank in range(3)]), whole)


def test_ranks_agree_after_draws_of_different_numbers_of_blocks():
    """A call is counted once, however many blocks of it a rank touches."""

    def drawn(rows: Rows) -> tuple[torch.Tensor, torch.Tensor]:
        stream = Noise(0, ("x",), rows, CPU)
        stream.normal(torch.empty(rows.count, 784))
        return stream.permutation(50), stream.common(3, 4)

    few, many = drawn(Rows(10)), drawn(Rows(400, 35))
    assert all(torch.equal(a, b) for a, b in zip(few, many, strict=True))


def test_threads_do_not_disturb_each_other():
    def drawn(key: int) -> torch.Tensor:
        return torch.cat([Noise(0, (key, i), Rows(64), CPU).normal(torch.empty(64, 500)) for i in range(20)])

    alone = [drawn(key) for key in range(8)]
    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(drawn, range(8)))
    assert all(torch.equal(a, b) for a, b in zip(alone, together, strict=True))


def test_initialising_puts_the_generator_back():
    torch.manual_seed(5)
    before = torch.get_rng_state()
    with noise.initialising(1):
        first = torch.get_rng_state()
        torch.nn.Linear(2, 2)
    assert torch.equal(torch.get_rng_state(), before)
    with noise.initialising(1):
        assert torch.equal(torch.get_rng_state(), first)


def test_integers_are_the_same_on_every_rank_and_as_likely():
    drawn = [Noise(0, ("x",), Rows(4, 4 * rank), CPU).integers(30000, 3) for rank in range(2)]
    assert torch.equal(*drawn)
    assert drawn[0].bincount(minlength=3).sub(10000).abs().max() < 400


def test_a_split_order_is_a_fixed_permutation():
    assert torch.equal(noise.split_order(50, 0), noise.split_order(50, 0))
    assert noise.split_order(50, 0).sort().values.tolist() == list(range(50))
    assert not torch.equal(noise.split_order(50, 0), noise.split_order(50, 1))
