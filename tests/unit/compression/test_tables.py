"""Tables of frequencies: what they are fitted to, what they cost, and their file."""

import numpy as np
import pytest
from safetensors.numpy import save

from distae.compression import fit_discrete, fit_grid, load_tables, save_tables
from distae.compression import tables as tables_
from distae.compression.tables import TOTAL, Tables
from distae.errors import UserError

RNG = np.random.default_rng(1)
INDICES = np.stack([RNG.binomial(15, p, 4000) for p in (0.1, 0.5, 0.9)], 1)
GAUSSIAN = RNG.normal(size=(6000, 4)) * [0.1, 1, 5, 0] + [0, 3, -2, 7]
STEPS = 0.5 * GAUSSIAN.std(0)


def test_discrete_tables_are_the_shares_of_the_training_codes():
    made = fit_discrete(INDICES, 16)
    share = np.stack([np.bincount(INDICES[:, i], minlength=16) for i in range(3)]) / len(INDICES)
    np.testing.assert_allclose(made.frequencies / TOTAL, share, atol=0.01)
    assert (made.frequencies > 0).all()


def test_with_few_training_codes_positions_lean_on_the_common_table():
    one = fit_discrete(INDICES[:1], 16).frequencies / TOTAL
    assert np.abs(one[0] - one[1]).max() < 0.05


def test_many_cells_share_a_table(monkeypatch):
    monkeypatch.setattr(tables_, "MOST_CELLS", 40)
    made = fit_discrete(INDICES, 16)
    assert made.frequencies.shape == (1, 16)
    symbols, _ = made.symbols(INDICES)
    assert np.array_equal(made.decode(made.encode(symbols), *symbols.shape), INDICES)


@pytest.mark.parametrize("step", [0.1, 0.5, 3.0])
def test_a_grid_is_as_fine_as_asked_and_costs_what_the_entropy_says(step):
    made = fit_grid(GAUSSIAN, step * GAUSSIAN.std(0))
    fresh = np.random.default_rng(2).normal(size=(3000, 4)) * [0.1, 1, 5, 0] + [0, 3, -2, 7]
    symbols, outside = made.symbols(fresh)
    assert outside == 0
    error = made.values(symbols) - fresh
    assert (np.abs(error) <= step * GAUSSIAN.std(0) / 2 * 1.000001).all()
    assert (error[:, 3] == 0).all(), "a value that never changes"
    if step < 1:  # h(N(0, 1)) - log2(step), of three values
        assert made.bits(symbols) / 9000 == pytest.approx(0.5 * np.log2(2 * np.pi * np.e) - np.log2(step), abs=0.06)
    assert len(made.encode(symbols)) < 1.02 * made.bits(symbols) / 8


def test_values_outside_the_grid_are_its_ends_and_are_counted():
    made = fit_grid(GAUSSIAN, STEPS)
    far = np.array([[1e6, 3, -1e6, 7]])
    symbols, outside = made.symbols(far)
    assert outside == 2
    assert symbols.tolist()[0][2] == 0
    assert np.array_equal(made.decode(made.encode(symbols), 1, 4), symbols)


@pytest.mark.parametrize("made", [fit_discrete(INDICES, 16), fit_grid(GAUSSIAN, STEPS)], ids=["discrete", "grid"])
def test_a_file_of_tables_is_the_same_tables(made, tmp_path):
    save_tables(made, tmp_path / "new" / "t.safetensors")
    again = load_tables(tmp_path / "new" / "t.safetensors")
    assert again.digest == made.digest
    assert np.array_equal(again.frequencies, made.frequencies)
    x = INDICES if made.step is None else GAUSSIAN
    symbols, _ = made.symbols(x)
    assert np.array_equal(again.decode(made.encode(symbols), *symbols.shape), symbols)


def test_the_digest_is_of_every_number():
    made = fit_grid(GAUSSIAN, STEPS)
    assert made.step is not None
    assert made.offset is not None
    others = [
        Tables(made.frequencies, made.offset, made.step * (1 + 1e-15)),
        Tables(made.frequencies, made.offset + 1e-9, made.step),
    ]
    others += [Tables(made.frequencies[::-1], made.offset, made.step), Tables(made.frequencies)]
    assert len({t.digest for t in [made, *others]}) == 5


@pytest.mark.parametrize(
    "data", [b"", b"\xff" * 40, save({"other": np.zeros(3)}), save({"frequencies": np.ones((2, 3), np.int32)})]
)  # fmt: skip
def test_another_file_is_no_tables(data, tmp_path):
    (tmp_path / "t").write_bytes(data)
    with pytest.raises(UserError, match=r"tables|damaged"):
        load_tables(tmp_path / "t")


def test_settings_that_give_no_tables():
    with pytest.raises(UserError, match="give a larger one"):
        fit_grid(GAUSSIAN, 1e-6 * STEPS)
    with pytest.raises(UserError, match="at most 1048576"):
        fit_discrete(INDICES, 1 << 21)


def test_a_value_without_effect_costs_no_bits():
    made = fit_grid(GAUSSIAN, np.array([1e9, 0.5, 2.5, 1]))
    symbols, _ = made.symbols(GAUSSIAN)
    assert len(np.unique(symbols[:, 0])) == 1
    alone = fit_grid(GAUSSIAN[:, 1:], np.array([0.5, 2.5, 1]))
    assert made.bits(symbols) == pytest.approx(alone.bits(alone.symbols(GAUSSIAN[:, 1:])[0]), rel=0.01)
