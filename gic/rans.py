"""Range asymmetric numeral system (Duda 2013, arXiv 1311.2540): numbers with known frequencies to bytes and back.

One state of up to 40 bits, renormalised by 16-bit words, in Python's integers: exact by construction, safe on any
input, about half a microsecond per symbol. By measurement (benchmarks/entropy_coders.py) preferred to
``compressai.ans`` (crashes on damaged data), to ``constriction`` (ten times as fast, but how it rounds probabilities,
and so what a file means, belongs to a version of it) and to NumPy over interleaved states (three times as fast with
256 of them, at 3 bytes of file each).

Bytes: the final state (4 or 5 bytes; fewer where it is all there is), then the words, big-endian, in the order in
which the decoder reads them. The state starts from 2^16, where the decoder must arrive: at most 3 bytes of overhead.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence

import numpy as np

from gic.errors import FormatError

PRECISION = 16
"""Frequencies are whole numbers >= 1 that sum up to 2^PRECISION."""
TOTAL = 1 << PRECISION

_LOWER = 1 << 24  # the state is at least this once words have been written
_START = 1 << 16
_DAMAGED = "the entropy-coded data are damaged"


def encode(starts: Sequence[int], frequencies: Sequence[int]) -> bytes:
    """Code events, each the interval ``[start, start + frequency)`` of ``[0, 2^16)``.

    Args:
        starts: Start of each event's interval.
        frequencies: Length of each event's interval, 1 ... 2^16 - 1.

    Returns:
        The code; empty if there are no events.
    """
    if not starts:
        return b""
    state = _START
    words: list[int] = []
    append = words.append
    for start, frequency in zip(reversed(starts), reversed(frequencies), strict=True):
        if state >= frequency << 24:
            append(state & 0xFFFF)
            state >>= 16
        quotient, remainder = divmod(state, frequency)
        state = (quotient << 16) + remainder + start
    words.reverse()
    return state.to_bytes((state.bit_length() + 7) // 8, "big") + np.array(words, dtype=">u2").tobytes()


class Decoder:
    """Reads what :func:`encode` wrote, in the same order.

    Time and memory depend on the number of events asked for and the length of ``data`` only.

    Args:
        data: The code, or anything else.

    Raises:
        FormatError: If ``data`` cannot be a code.
    """

    def __init__(self, data: bytes) -> None:
        size = len(data) if len(data) <= 5 else 4 + len(data) % 2
        self._empty = not data
        if data and data[0] == 0:
            raise FormatError(f"{_DAMAGED}: the first byte is zero")
        self._state = int.from_bytes(data[:size], "big") if data else _START
        self._words: Iterator[int] = iter(np.frombuffer(data, dtype=">u2", offset=size).tolist() if data else [])

    def read(self, tables: Iterable[Sequence[int]]) -> list[int]:
        """Read one event for each table.

        Args:
            tables: Starts of the intervals of all possible events, in ascending order from 0, and 2^16 at the end.

        Returns:
            Index of each event in its table.

        Raises:
            FormatError: If there are no data.
        """
        state = self._state
        words = self._words
        found: list[int] = []
        append = found.append
        for starts in tables:
            slot = state & 0xFFFF
            index = bisect_right(starts, slot)
            start = starts[index - 1]
            state = (starts[index] - start) * (state >> 16) + slot - start
            append(index - 1)
            if state < _LOWER and (word := next(words, -1)) >= 0:
                state = state << 16 | word
        if found and self._empty:
            raise FormatError(f"{_DAMAGED}: nothing is left to read")
        self._state = state
        return found

    def read_bits(self, count: int) -> int:
        """Read a number of ``count`` bits written as an event of that many equal intervals; at most 16."""
        shift = PRECISION - count
        slot = self._state & 0xFFFF
        value = slot >> shift
        state = ((self._state >> 16) << shift) + slot - (value << shift)
        if state < _LOWER and (word := next(self._words, -1)) >= 0:
            state = state << 16 | word
        self._state = state
        return value

    def finish(self) -> None:
        """Check that all data have been read.

        Raises:
            FormatError: If words are left or the state is not the one that the encoder started from.
        """
        if self._state != _START or next(self._words, None) is not None:
            raise FormatError(f"{_DAMAGED}: they do not end where they should")
