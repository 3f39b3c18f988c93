"""From level 3q to level q: what a progressive file adds, in the order of its value (DESIGN 11).

The grids around mu with the steps 3q and q nest: symbol k at level q lies in the cell of symbol k_3 = round(k / 3) at
3q, so that k = 3 k_3 + d with d in {-1, 0, 1}. A file that holds k_3 goes on with d.

**Probabilities.** Whatever the prior of the weights, what k_3 leaves open follows a Laplace distribution of sigma: more
closely than a Gaussian, so that it takes fewer bits (docs/progressive.md). With s = sigma / q and
t = exp(-sqrt(2) / s) its three thirds have, from the one next to mu outwards, the probabilities

    k_3 != 0:   (1, t, t^2) / (1 + t + t^2)
    k_3  = 0:   (p, 1 - 2p, p),   p = (t^(1/2) - t^(3/2)) / 2 / (1 - t^(3/2))

**Order.** Elements follow each other by the squared error that they save per bit, the largest first: the variance V of
the centroids of the thirds, in units of q^2, over the entropy H of d, times the element's importance for the picture
(:func:`gic.models.lot.importance`). All are rounded to tenths of an octave; equal ones keep the order of y. Both
sides know sigma, q and k_3, and so the order, which costs no bits.
"""

from __future__ import annotations

from functools import cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from gic.bitstream import portable
from gic.bitstream.tables import (
    IntArray,
    Tables,
    distributions,
    scale_numbers,
    scales,
)
from gic.errors import FormatError

STEP = 1623
"""Codes between two levels: 3 = 2^(STEP / 1024), to 1e-6."""
_SQRT_2, _LOG2_E = float.fromhex("0x1.6a09e667f3bcdp+0"), float.fromhex("0x1.71547652b82fep+0")
_COARSE_MAX = (2**31 - 2) // 3  # whose refinements are 32-bit numbers; symbols grow with each level
_LEAST = 2.0**-60  # of a probability whose logarithm is taken


class _Thirds(NamedTuple):
    """Tables of d, away from mu, two for each scale: k_3 = 0 and k_3 != 0; then those of a first level."""

    tables: Tables
    value: NDArray[np.int64]
    """Squared error saved per bit by each of the former, in units of q^2, its log2 in tenths."""


@cache
def _thirds(prior: str) -> _Thirds:
    s = scales(prior)
    root = portable.exp(-_SQRT_2 / (2 * s))  # t^(1/2)
    t = root * root
    side = (root - root * t) / (2 * (1 - root * t))
    total = 1 + t + t * t
    p = np.stack([np.stack([side, 1 - 2 * side, side], 1), np.stack([1 / total, t / total, t * t / total], 1)], 1)
    centroid = s / _SQRT_2 - t / (1 - t)  # of a third, from its edge next to mu
    _, p1, p2 = p[:, 1].T
    variance = np.stack([2 * side * (0.5 + centroid) ** 2, p1 + 4 * p2 - (p1 + 2 * p2) ** 2], 1)
    entropy = -(p * portable.log(np.maximum(p, _LEAST))).sum(2) * _LOG2_E
    value = np.floor(10 * _LOG2_E * portable.log(variance / entropy) + 0.5).astype(np.int64)
    p = p.reshape(-1, 3)
    cdf = np.stack([np.zeros(len(p)), p[:, 0], p[:, 0] + p[:, 1], np.ones(len(p))], 1)
    first = distributions(prior, s, np.zeros(len(s)), 0.5)
    low, size = np.full(len(p), -1), np.full(len(p), 3)
    tables = Tables(
        np.concatenate([low, first.low]), np.concatenate([size, first.size]), np.concatenate([cdf.ravel(), first.cdf])
    )
    return _Thirds(tables, value.ravel())


class Refinement:
    """The elements that one level adds to the level before it, in their order.

    Args:
        ratio: log2 of sigma / q at the finer level, in units of 1 / LEVELS_PER_OCTAVE, int32, of any shape.
        coarse: Symbols k_3, like ``ratio``.
        known: Which elements were coded at 3q, like ``ratio``.
        coded: Which are coded at q; those that were not before are coded with the tables of a first level.
        importance: Of an error of each element, in tenths of an octave, like ``ratio``.
        prior: Distribution of y about mu, ``gaussian`` or ``laplace``.

    Attributes:
        order: Indices of the elements into the flattened y, the first to come first.
        value: What each of them saves per bit, in tenths of an octave, descending.
    """

    def __init__(
        self,
        ratio: IntArray,
        coarse: IntArray,
        known: NDArray[np.bool_],
        coded: NDArray[np.bool_],
        importance: NDArray[np.int64],
        prior: str = "gaussian",
    ) -> None:
        scale = scale_numbers(ratio, prior)
        thirds = _thirds(prior)
        self._tables = thirds.tables
        table = np.where(known, 2 * scale + (coarse != 0), len(thirds.value) + scale)
        value = (thirds.value[2 * scale + (coarse != 0)] + importance).ravel()
        candidates = np.flatnonzero(coded)
        self.order = candidates[np.argsort(-value[candidates], kind="stable")]
        self.value = value[self.order]
        self._known, self._table = known.ravel()[self.order], table.ravel()[self.order]
        self._coarse = np.where(known, coarse, 0).ravel()[self.order]
        self._sign = np.where(self._coarse < 0, -1, 1)

    def __len__(self) -> int:
        return len(self.order)

    def _events(self, symbols: IntArray) -> IntArray:
        """What is coded of all elements, in their order: d away from mu, or the symbol where nothing was known."""
        events: IntArray = (self._sign * (symbols.ravel()[self.order] - 3 * self._coarse)).astype(np.int32)
        if np.abs(events[self._known]).max(initial=0) > 1:
            raise ValueError("a symbol does not lie in the cell of its coarser one")
        return events

    def lengths(self, symbols: IntArray) -> NDArray[np.float64]:
        """Code length of each element, in bits, in their order."""
        return self._tables.lengths(self._table, self._events(symbols))

    def encode(self, symbols: IntArray, start: int, stop: int) -> bytes:
        """Code the elements ``order[start:stop]``.

        Args:
            symbols: Those of all elements at the finer level; ``round(symbols / 3)`` is ``coarse`` where that is known.
            start: The first element.
            stop: The one after the last.

        Raises:
            ValueError: If a symbol does not lie in the cell of its coarser one, or is larger than SYMBOL_MAX.
        """
        return self._tables.encode(self._table[start:stop], self._events(symbols)[start:stop])

    def decode(self, data: bytes, start: int, stop: int, size: int | None = None) -> tuple[IntArray, IntArray]:
        """Undo :meth:`encode`.

        Args:
            data: Its result, or the first bytes of it.
            start: The first element.
            stop: The one after the last.
            size: Number of bytes of the whole result, if more than ``data``.

        Returns:
            Indices into the flattened y, and the symbols there: of all elements, or of those that ``data`` determines.

        Raises:
            FormatError: If the data are found to be damaged.
        """
        tables = self._table[start:stop]
        if np.abs(self._coarse[start:stop]).max(initial=0) > _COARSE_MAX:
            raise FormatError("the entropy-coded data are damaged: a symbol is too large")
        if size is None:
            events = self._tables.decode(data, tables)
            found = np.ones(len(events), bool)
        else:
            events, found = self._tables.decode_available(data, size, tables)
        at = slice(start, start + len(events))
        if np.abs(events[self._known[at]]).max(initial=0) > 1:
            raise FormatError("the entropy-coded data are damaged: a refinement is too large")
        symbols = (self._sign[at] * events + 3 * self._coarse[at]).astype(np.int32)
        return self.order[at][found], symbols[found]
