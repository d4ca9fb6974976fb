"""The entropy coder against the entropy, and against a second implementation with Python's own integers."""

import numpy as np
import pytest

from distae.compression.coder import BITS, check_size, cumulative, decode, encode
from distae.compression.tables import TOTAL, _integers

RNG = np.random.default_rng(0)


def tables(positions, kinds, sharpness=0.3):
    return _integers(RNG.gamma(sharpness, 1, (positions, kinds)) + 1e-5)


def drawn(frequencies, n):
    """Symbols `[n * T]` of these frequencies, and the table of each."""
    columns = [RNG.choice(frequencies.shape[1], n, p=row / TOTAL) for row in frequencies]
    return np.stack(columns, 1).ravel(), np.tile(np.arange(len(frequencies)), n)


def one_by_one(symbols, table, frequencies):
    """The same code by its definition: one lane, unbounded integers."""
    x, words, ends = 1 << 31, [], cumulative(frequencies)
    for s, t in zip(symbols[::-1], table[::-1], strict=True):
        f = int(frequencies[t, s])
        if x >= f << 63 - BITS:
            words.append(x & 0xFFFFFFFF)
            x >>= 32
        x = (x // f << BITS) + x % f + int(ends[t, s])
    return b"\x01\x00" + x.to_bytes(8, "little") + b"".join(word.to_bytes(4, "little") for word in reversed(words))


@pytest.mark.parametrize(("n", "positions", "kinds"), [(40, 5, 40), (300, 49, 512), (700, 8, 2), (1, 3, 2), (0, 3, 2), (40, 1, 1)])
def test_what_is_decoded_is_what_was_encoded(n, positions, kinds):
    frequencies = tables(positions, kinds)
    symbols, table = drawn(frequencies, n)
    data = encode(symbols, table, frequencies)
    assert np.array_equal(decode(data, table, frequencies), symbols)
    if data[:2] == b"\x01\x00":
        assert data == one_by_one(symbols.tolist(), table.tolist(), frequencies)


def test_bytes_are_within_a_hundredth_of_the_entropy():
    frequencies = tables(49, 512)
    symbols, table = drawn(frequencies, 2000)
    entropy = (BITS - np.log2(frequencies[table, symbols])).sum() / 8
    assert entropy <= len(encode(symbols, table, frequencies)) < 1.01 * entropy


def test_symbols_of_frequency_0_are_never_decoded():
    frequencies = _integers(np.array([[0.0, 3, 0, 0, 1, 0], [1, 0, 0, 2, 0, 0.0], [0, 0, 0, 0, 0, 1]]))
    symbols, table = drawn(frequencies, 500)
    assert np.array_equal(decode(encode(symbols, table, frequencies), table, frequencies), symbols)


def test_a_forged_number_of_symbols_is_an_error():
    check_size(b"", 1000)
    with pytest.raises(ValueError, match="claims to hold"):
        check_size(b"0" * 100, 2**32 * 784)


@pytest.mark.parametrize("cut", [0, 4, 7, 100, -4, -1])
def test_other_bytes_are_an_error(cut):
    frequencies = tables(5, 40)
    symbols, table = drawn(frequencies, 1000)
    data = encode(symbols, table, frequencies)
    with pytest.raises(ValueError, match="the codes"):
        decode(data[:cut], table, frequencies)
    with pytest.raises(ValueError, match="the codes"):
        decode(data + b"1234", table, frequencies)


@pytest.mark.parametrize("weights", [[1e9, 1, 1, 0], [1, 1, 1, 1], [1e-300, 1, 0, 0], [5, 0, 0, 0]])
def test_integers_sum_to_the_total_and_none_vanishes(weights):
    made = _integers(np.array([weights], dtype=np.float64))[0]
    assert made.sum() == TOTAL
    assert ((made > 0) == (np.array(weights) > 0)).all()
    np.testing.assert_allclose(made / TOTAL, np.array(weights) / sum(weights), atol=1e-6)
