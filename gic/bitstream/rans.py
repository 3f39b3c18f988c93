"""Range asymmetric numeral system (Duda 2013, arXiv 1311.2540): numbers with known frequencies to bytes and back.

One state of up to 40 bits, renormalised by 16-bit words, in integers: exact by construction, safe on any input.
The inner loops exist twice: in Python, about half a microsecond per symbol, and in C (``_loops.c``), about thirty
nanoseconds including the overhead, for installations with a compiler; see :data:`COMPILED`. After measurements
(benchmarks/entropy_coders.py) this was preferred to ``compressai.ans`` (crashes on damaged data), ``constriction`` (its
version decides how probabilities are rounded, and so what a file means) and NumPy over interleaved states (slower than
the C with 256 of them, at 3 bytes of file each).

Bytes: the final state (4 or 5 bytes; fewer if no words follow), then the words, big-endian, in the order in
which the decoder reads them. The state starts from 2^16, where the decoder must end: at most 3 bytes of overhead.
"""

from __future__ import annotations

import ctypes
from bisect import bisect_right
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from gic import loops
from gic.errors import FormatError

PRECISION = 16
"""Frequencies are integers >= 1 that sum up to 2^PRECISION."""
TOTAL = 1 << PRECISION

_LOWER = 1 << 24  # the state is at least this once words have been written
_START = 1 << 16
_DAMAGED = "the entropy-coded data are damaged"


class Rows(NamedTuple):
    """Intervals of all possible events, many tables in one.

    Attributes:
        edges: Int32; for each table the starts of its intervals, in ascending order from 0, and 2^16 at the end.
        first: Int32; index of each table's first edge, and the number of edges at the end.
    """

    edges: NDArray[np.int32]
    first: NDArray[np.int32]


COMPILED = loops.library is not None
"""Whether this installation uses the loops in C; the bytes are the same in both cases."""


def encode(starts: NDArray[np.integer[Any]], frequencies: NDArray[np.integer[Any]]) -> bytes:
    """Code events, each the interval ``[start, start + frequency)`` of ``[0, 2^16)``.

    Args:
        starts: Start of each event's interval.
        frequencies: Length of each event's interval, 1 ... 2^16 - 1.

    Returns:
        The code; empty if there are no events.

    Raises:
        ValueError: If a start has no frequency, or one is out of range.
    """
    if len(starts) != len(frequencies) or (len(starts) and not 0 < frequencies.min() <= frequencies.max() < TOTAL):
        raise ValueError("each event needs a start and a frequency of 1 to 65535")
    if not len(starts):
        return b""
    if loops.library is None:
        state, words = _encode(starts.tolist(), frequencies.tolist())
    else:
        box, words = ctypes.c_uint64(_START), np.empty(len(starts), np.uint16)
        whole = [np.ascontiguousarray(numbers, np.int32) for numbers in (starts, frequencies)]
        words = words[: loops.library.gic_rans_encode(ctypes.byref(box), *whole, len(starts), words)]
        state = box.value
    return state.to_bytes((state.bit_length() + 7) // 8, "big") + words[::-1].astype(">u2").tobytes()


def _encode(starts: list[int], frequencies: list[int]) -> tuple[int, NDArray[np.uint16]]:
    state = _START
    words: list[int] = []
    append = words.append
    for start, frequency in zip(reversed(starts), reversed(frequencies), strict=True):
        if state >= frequency << 24:
            append(state & 0xFFFF)
            state >>= 16
        quotient, remainder = divmod(state, frequency)
        state = (quotient << 16) + remainder + start
    return state, np.array(words, np.uint16)


def usable(available: int, size: int) -> int:
    """How many of the first ``available`` bytes of a code of ``size`` bytes events can be read from.

    >>> usable(9, 20), usable(3, 20), usable(20, 20)
    (8, 0, 20)
    """
    head = size if size <= 5 else 4 + size % 2
    return 0 if available < head else available - (available - head) % 2


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
        self._words = np.frombuffer(data[size:], dtype=">u2").astype(np.uint16)

    def read(self, rows: Rows, tables: NDArray[np.integer[Any]]) -> NDArray[np.int32]:
        """Read one event for each element of ``tables``.

        Args:
            rows: Intervals of the events of all tables.
            tables: Number of each event's table.

        Returns:
            Index of each event in its table.

        Raises:
            FormatError: If there are no data.
            ValueError: If a table number does not exist.
        """
        if not len(tables):
            return np.empty(0, np.int32)
        if tables.min() < 0 or tables.max() >= len(rows.first) - 1:
            raise ValueError("there is no table of this number")
        if self._empty:
            raise FormatError(f"{_DAMAGED}: nothing is left to read")
        if loops.library is None:
            return self._read(rows, tables)
        box, found = ctypes.c_uint64(self._state), np.empty(len(tables), np.int32)
        numbers = np.ascontiguousarray(tables, np.int32)
        read = loops.library.gic_rans_decode(
            ctypes.byref(box), self._words, len(self._words), *rows, numbers, len(numbers), found
        )
        self._state, self._words = box.value, self._words[read:]
        return found

    def _read(self, rows: Rows, tables: NDArray[np.integer[Any]]) -> NDArray[np.int32]:
        state = self._state
        words = iter(self._words.tolist())
        edges = {
            table: rows.edges[slice(*rows.first[table : table + 2])].tolist() for table in np.unique(tables).tolist()
        }
        found: list[int] = []
        append = found.append
        for starts in map(edges.__getitem__, tables.tolist()):
            slot = state & 0xFFFF
            index = bisect_right(starts, slot)
            start = starts[index - 1]
            state = (starts[index] - start) * (state >> 16) + slot - start
            append(index - 1)
            if state < _LOWER and (word := next(words, -1)) >= 0:
                state = state << 16 | word
        self._state, self._words = state, np.array(list(words), np.uint16)
        return np.array(found, np.int32)

    def read_available(self, rows: Rows, tables: NDArray[np.integer[Any]]) -> NDArray[np.int32]:
        """Like :meth:`read`, for data whose end may be missing: the first events, as many as the data determine."""
        state, words = self._state, self._words
        if self._empty:
            return np.empty(0, np.int32)

        def suffice(count: int) -> bool:
            self._state, self._words = state, np.append(words, np.uint16(0))
            self.read(rows, tables[:count])
            return len(self._words) > 0

        low, high = 0, len(tables)
        while low < high:
            middle = (low + high + 1) // 2
            low, high = (middle, high) if suffice(middle) else (low, middle - 1)
        self._state, self._words = state, words
        return self.read(rows, tables[: low + 1])  # the event after the last words needs none

    def read_bits(self, count: int) -> int:
        """Read a number of ``count`` bits written as an event of that many equal intervals; at most 16."""
        shift = PRECISION - count
        slot = self._state & 0xFFFF
        value = slot >> shift
        self._state = ((self._state >> 16) << shift) + slot - (value << shift)
        if self._state < _LOWER and len(self._words):
            self._state = self._state << 16 | int(self._words[0])
            self._words = self._words[1:]
        return value

    def finish(self) -> None:
        """Check that all data have been read.

        Raises:
            FormatError: If words are left or the state is not the one that the encoder started from.
        """
        if self._state != _START or len(self._words):
            raise FormatError(f"{_DAMAGED}: they do not end where they should")
