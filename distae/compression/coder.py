"""Range asymmetric numeral systems (Duda 2013, arXiv 1311.2540), interleaved (Giesen 2014, arXiv 1402.3392), with numpy.

Integers only, so that the same bytes decode to the same symbols on every machine. A lane is a coder of its own with a state of 64
bits, from which words of 32 bits are moved to one stream; step t codes the symbols t * lanes to (t + 1) * lanes, one per lane.
"""

import numpy as np
from numpy.typing import NDArray

BITS = 24
"""The frequencies of a table sum to 2^BITS."""
LOW, WORD, MASK = np.uint64(1 << 31), np.uint64(32), np.uint64((1 << BITS) - 1)
"""States are in [LOW, LOW << WORD) between symbols."""
SHIFT = np.uint64(BITS)
LANE_BYTES = 800
"""Bytes of a lane at least: it costs 6 of its own, and one step of numpy serves all lanes."""
MOST_LANES = 0xFFFF
FREE, PER_BYTE = 1 << 24, 1 << 15
"""Symbols that a file may claim to hold, whatever its size, or for each byte: others would fill the memory."""

Ints = NDArray[np.int64]


def cumulative(frequencies: Ints) -> Ints:
    """`[T, K + 1]`: the sums of the frequencies `[T, K]` before each symbol, from 0 to 2^BITS."""
    return np.pad(frequencies.cumsum(1), ((0, 0), (1, 0)))


def check_size(data: bytes, count: int) -> None:
    """Raises ValueError where nobody encoded so many symbols in these bytes."""
    if count > max(FREE, len(data) * PER_BYTE):
        raise ValueError(f"it claims to hold {count} codes in {len(data)} bytes")


def encode(symbols: Ints, table: Ints, frequencies: Ints) -> bytes:
    """The bytes of `symbols` `[n]`, symbol i by the table with the number `table[i]`; each is in [0, K) and has a frequency."""
    ends = cumulative(frequencies)
    begin = ends[table, symbols].astype(np.uint64)
    size = frequencies[table, symbols].astype(np.uint64)
    lanes = int((BITS - np.log2(size)).sum() / 8 / LANE_BYTES)
    lanes = min(max(1, lanes), MOST_LANES)
    state, words = np.full(lanes, LOW), list[NDArray[np.uint32]]()
    for start in range((len(symbols) - 1) // lanes * lanes, -1, -lanes):
        part = slice(start, min(start + lanes, len(symbols)))
        x, f = state[: part.stop - start], size[part]
        full = x >= (f << (WORD + np.uint64(31) - SHIFT))
        words.append(x[full].astype("<u4"))
        x = np.where(full, x >> WORD, x)
        above, rest = np.divmod(x, f)
        state[: len(x)] = (above << SHIFT) + rest + begin[part]
    return lanes.to_bytes(2, "little") + state.astype("<u8").tobytes() + b"".join(part.tobytes() for part in reversed(words))


def decode(data: bytes, table: Ints, frequencies: Ints) -> Ints:
    """The symbols `[n]` of `encode`, n being the length of `table`. Raises ValueError on bytes that `encode` did not give."""
    count, kinds, lanes = len(table), frequencies.shape[1], int.from_bytes(data[:2], "little")
    head = 2 + 8 * lanes
    if not lanes or len(data) < head or (len(data) - head) % 4:
        raise ValueError("the codes end too early")
    state, stream = np.frombuffer(data, "<u8", lanes, 2).astype(np.uint64), np.frombuffer(data, "<u4", -1, head)
    ends = cumulative(frequencies)
    keys = (ends[:, :-1] + (np.arange(len(ends)) << BITS)[:, None]).ravel()  # ascending: one search finds table and symbol
    symbols, position = np.empty(count, np.int64), 0
    for start in range(0, count, lanes):
        part = slice(start, min(start + lanes, count))
        x, of = state[: part.stop - start], table[part]
        slot = x & MASK
        found = np.searchsorted(keys, slot.astype(np.int64) + (of << BITS), "right") - 1
        symbols[part] = here = found - of * kinds
        x = frequencies[of, here].astype(np.uint64) * (x >> SHIFT) + slot - ends[of, here].astype(np.uint64)
        low = x < LOW
        taken = stream[position : (position := position + int(low.sum()))]
        if len(taken) < low.sum():
            raise ValueError("the codes end too early")
        x[low] = (x[low] << WORD) | taken
        state[: len(x)] = x
    if position != len(stream) or (state != LOW).any():
        raise ValueError("the codes do not end where they should")
    return symbols
