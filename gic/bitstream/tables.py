"""Tables of integer frequencies, built from the weights, the same on every machine (DESIGN 8).

The functions that build them give the same bits everywhere (:mod:`gic.bitstream.portable`); :mod:`gic.bitstream.rans`
codes with them. A value outside its table is an escape event, followed by sign, length and digits of the distance in
plain bits. Scales sigma / q are powers of two with exponents in units of 1 / LEVELS_PER_OCTAVE.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from gic.bitstream import portable, rans
from gic.bitstream.container import LEVELS_PER_OCTAVE
from gic.errors import ConfigError, FormatError
from gic.models.ranges import SKIP_BELOW

OFFSETS = 16
"""Number of dither values: u_j = (j + 1/2) / OFFSETS - 1/2."""
SYMBOL_MAX = 2**24
"""Largest magnitude of a symbol of y or z."""

SCALE_STEP = 64
"""Scales of the Gaussian tables are 1/16 octave apart, which costs 0.006 % of the bits (1/8 octave: 0.023 %)."""
SCALE_FIRST, SCALE_LAST = -51 * SCALE_STEP, 128 * SCALE_STEP
"""Range of the scales sigma / q: 0.11 to 256; the few wider ones use the last table and cost one or two bits more."""
SKIP_ROUND = SCALE_FIRST - LEVELS_PER_OCTAVE
"""Under ``round``, elements with sigma / q below half the smallest scale, 0.055, are not coded: their symbol is 0,
any other lies 9 sigma away."""
FIRST = {"gaussian": SCALE_FIRST, "laplace": SKIP_ROUND}
"""First scale of the tables of each distribution of y about mu. The longer tails of the Laplace distribution would cost
every zero 0.002 bits at 0.11."""
SKIP_DITHER = round(math.log2(SKIP_BELOW) * LEVELS_PER_OCTAVE)
"""Under ``dither``, elements with sigma / q below SKIP_BELOW, 0.11, are not coded."""
_TAIL = {"gaussian": 4.3, "laplace": 5.5}  # half width of the tables of y, in units of sigma
_SQRT_2 = float.fromhex("0x1.6a09e667f3bcdp+0")
_TAIL_LOGIT = 11.0  # the same of z's tables: a probability of 2e-5
_Z_TABLE_MAX = 2048
_ESCAPE_HEAD_BITS = 6  # sign, and the number of binary digits after the first: at most 31

IntArray = NDArray[np.int32]


def dither_values(offsets: NDArray[np.integer[Any]]) -> NDArray[np.float32]:
    """Dither u of offset numbers 0 ... OFFSETS - 1, float32 and exact."""
    return ((offsets.astype(np.float32) + 0.5) / OFFSETS - 0.5).astype(np.float32)


class Distributions(NamedTuple):
    """Distributions of integers: the arguments of :class:`Tables`."""

    low: NDArray[np.int64]
    size: NDArray[np.int64]
    cdf: portable.Array


class Tables:
    """Frequencies of integers, many tables in one: for each ``low ... high`` and an escape, all at least 1.

    Args:
        low: Smallest symbol of each table.
        size: Number of symbols of each table, without the escape.
        cdf: Distribution functions at the lower edge of each symbol and at the upper edge of the last, all tables in a
            row: ``sum(size + 1)`` values in [0, 1]. The remaining probability is the escape's.
    """

    def __init__(self, low: NDArray[np.int64], size: NDArray[np.int64], cdf: portable.Array) -> None:
        self.low = low
        self.size = size
        self.first = np.concatenate([[0], np.cumsum(size + 1)])
        """Index of each table's first event among the events of all tables."""
        table = np.repeat(np.arange(len(size)), size + 1)
        position = np.arange(len(cdf)) - self.first[table]
        mass = cdf - cdf[self.first[table]]
        scaled = np.floor(mass * (rans.TOTAL - size[table] - 1) + 0.5).astype(np.int64)
        # Distribution functions must not decrease through rounding.
        scaled = np.maximum.accumulate(scaled + table * rans.TOTAL) - table * rans.TOTAL
        self.starts = (position + scaled).astype(np.int32)
        """Start of each event's interval in [0, 2^16)."""
        ends = np.append(self.starts[1:], np.int32(0))
        ends[self.first[1:] - 1] = rans.TOTAL
        self.frequencies = ends - self.starts
        self.bits = rans.PRECISION - np.log2(self.frequencies)
        """Code length of each event; an estimate only, never part of the coding."""
        edges = np.insert(self.starts, self.first[1:], rans.TOTAL)
        self.rows = rans.Rows(edges, (self.first + np.arange(len(self.first))).astype(np.int32))
        """The same for the decoder."""

    def __len__(self) -> int:
        return len(self.size)

    def events(
        self, tables: NDArray[np.integer[Any]], symbols: IntArray
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Event of each symbol, and the distance of those outside their table, negative below it, else 0."""
        below = symbols.astype(np.int64) - self.low[tables]
        above = below - (self.size[tables] - 1)
        distance = np.minimum(below, 0) + np.maximum(above, 0)
        return self.first[tables] + np.where(distance == 0, below, self.size[tables]), distance

    def length(self, tables: NDArray[np.integer[Any]], symbols: IntArray) -> float:
        """Code length of symbols, in bits."""
        events, distance = self.events(tables, symbols)
        outside = np.abs(distance[distance != 0])
        digits = np.frexp(outside.astype(np.float64))[1] - 1
        return float(self.bits[events].sum() + digits.sum() + _ESCAPE_HEAD_BITS * len(outside))

    def lengths(self, tables: NDArray[np.integer[Any]], symbols: IntArray) -> NDArray[np.float64]:
        """Code length of each symbol, in bits."""
        events, distance = self.events(tables, symbols)
        lengths: NDArray[np.float64] = self.bits[events]
        outside = np.flatnonzero(distance)
        lengths[outside] += np.frexp(np.abs(distance[outside]).astype(np.float64))[1] - 1 + _ESCAPE_HEAD_BITS
        return lengths

    def encode(self, tables: NDArray[np.integer[Any]], symbols: IntArray) -> bytes:
        """Code symbols, each with its table.

        Raises:
            ValueError: If a symbol is larger than SYMBOL_MAX.
        """
        if symbols.size and max(int(symbols.max()), -int(symbols.min())) > SYMBOL_MAX:
            raise ValueError(f"a symbol exceeds {SYMBOL_MAX} in magnitude")
        events, distance = self.events(tables, symbols)
        spelt = [piece for value in distance[distance != 0].tolist() for piece in _escape(value)]
        starts = np.array([number << (rans.PRECISION - bits) for number, bits in spelt], np.int32)
        frequencies = np.array([1 << (rans.PRECISION - bits) for _, bits in spelt], np.int32)
        return rans.encode(
            np.concatenate([self.starts[events], starts]), np.concatenate([self.frequencies[events], frequencies])
        )

    def decode(self, data: bytes, tables: NDArray[np.integer[Any]]) -> IntArray:
        """Undo :meth:`encode`.

        Raises:
            FormatError: If the data are found to be damaged. Time and memory depend on the number of symbols and the
                size of the data only.
        """
        decoder = rans.Decoder(data)
        positions = decoder.read(self.rows, tables)
        symbols = self.low[tables] + positions
        for index in np.flatnonzero(positions == self.size[tables]).tolist():
            table = tables[index]
            distance = _read_escape(decoder)
            edge = self.low[table] if distance < 0 else self.low[table] + self.size[table] - 1
            symbols[index] = edge + distance
        decoder.finish()
        if symbols.size and max(int(symbols.max()), -int(symbols.min())) > SYMBOL_MAX:
            raise FormatError("the entropy-coded data are damaged: a symbol is too large")
        decoded: IntArray = symbols.astype(np.int32)
        return decoded

    def decode_available(
        self, data: bytes, size: int, tables: NDArray[np.integer[Any]]
    ) -> tuple[IntArray, NDArray[np.bool_]]:
        """Undo :meth:`encode` as far as possible, from the first bytes of its result.

        Args:
            data: The first bytes; fewer than ``size``.
            size: Number of bytes of the whole.
            tables: Table of each symbol of the whole.

        Returns:
            The first symbols, as many as the data determine, and which of them are known: those outside their table are
            not.
        """
        positions = rans.Decoder(data[: rans.usable(len(data), size)]).read_available(self.rows, tables)
        tables = tables[: len(positions)]
        known = positions < self.size[tables]
        return np.where(known, self.low[tables] + positions, 0).astype(np.int32), known


def _escape(distance: int) -> Iterator[tuple[int, int]]:
    """Numbers and their bits that encode a distance: count of digits after the first and sign, then the digits."""
    magnitude = abs(distance)
    digits = magnitude.bit_length() - 1
    yield 2 * digits + (distance < 0), _ESCAPE_HEAD_BITS
    rest = magnitude - (1 << digits)
    for bits in _pieces(digits):
        digits -= bits
        yield rest >> digits, bits
        rest &= (1 << digits) - 1


def _read_escape(decoder: rans.Decoder) -> int:
    head = decoder.read_bits(_ESCAPE_HEAD_BITS)
    magnitude = 1
    for bits in _pieces(head >> 1):
        magnitude = magnitude << bits | decoder.read_bits(bits)
    return -magnitude if head & 1 else magnitude


def _pieces(digits: int) -> Iterator[int]:
    while digits > 0:
        yield min(digits, 16)
        digits -= 16


def _edges(low: NDArray[np.int64], size: NDArray[np.int64]) -> tuple[NDArray[np.int64], portable.Array]:
    """Table and edge ``k - 1/2`` of every symbol k of tables, with the upper edge of each table's last."""
    table = np.repeat(np.arange(len(size)), size + 1)
    position = np.arange(len(table)) - np.concatenate([[0], np.cumsum(size + 1)])[table]
    return table, (low[table] + position) - 0.5


def scales(prior: str = "gaussian") -> portable.Array:
    """The scales s = sigma / q of the tables of y, ascending."""
    return portable.exp2(np.arange(FIRST[prior], SCALE_LAST + 1, SCALE_STEP) / LEVELS_PER_OCTAVE)


def scale_numbers(ratio: IntArray, prior: str = "gaussian") -> IntArray:
    """Number of the scale nearest to each sigma / q, given by its log2 in units of 1 / LEVELS_PER_OCTAVE."""
    numbers: IntArray = (ratio - (FIRST[prior] - SCALE_STEP // 2)) // SCALE_STEP
    return np.clip(numbers, 0, (SCALE_LAST - FIRST[prior]) // SCALE_STEP)


@cache
def prior_tables(prior: str, dither: bool) -> Tables:
    """Tables of ``P(k) = F((k + u + 1/2) / s) - F((k + u - 1/2) / s)`` for all scales s = sigma / q.

    Under ``round`` u is 0 and the scale's number is the table's. Under ``dither`` the table is
    ``scale number * OFFSETS + offset number``.

    Args:
        prior: Distribution of y about mu, ``gaussian`` or ``laplace``, of which F is the distribution function at a
            standard deviation of 1.
        dither: Whether symbols are rounded with dither.
    """
    scale = scales(prior)
    u = np.zeros(len(scale))
    if dither:
        u = np.tile(dither_values(np.arange(OFFSETS)).astype(np.float64), len(scale))
        scale = np.repeat(scale, OFFSETS)
    return Tables(*distributions(prior, scale, u, 1.0 if dither else 0.5))


def distributions(prior: str, scale: portable.Array, u: portable.Array, rounding: float) -> Distributions:
    """Distributions with the standard deviations ``scale``, of symbols rounded after ``u`` was subtracted."""
    radius = np.maximum(np.floor(_TAIL[prior] * scale + rounding), 1).astype(np.int64)
    table, edge = _edges(-radius, 2 * radius + 1)
    x = (edge + u[table]) / scale[table]
    return Distributions(-radius, 2 * radius + 1, portable.normal_cdf(x) if prior == "gaussian" else _laplace_cdf(x))


def _laplace_cdf(x: portable.Array) -> portable.Array:
    """Distribution function of the Laplace distribution of mean 0 and standard deviation 1."""
    tail = 0.5 * portable.exp(-_SQRT_2 * np.abs(x))
    return np.where(x < 0, tail, 1.0 - tail)


class FactorizedWeights(NamedTuple):
    """Weights of the factorised prior of z, one set for each of the N channels (arXiv 1802.01436, appendix 6.1).

    Attributes:
        matrices: (N, rows, columns) for each layer, before the softplus.
        biases: (N, rows, 1) for each layer.
        factors: (N, rows, 1) for each layer but the last, before the tanh.
    """

    matrices: Sequence[NDArray[Any]]
    biases: Sequence[NDArray[Any]]
    factors: Sequence[NDArray[Any]]


def factorized_tables(prior: FactorizedWeights) -> Tables:
    """One table for each channel of z, from the weights of its factorised prior.

    Raises:
        ConfigError: If the weights are not finite numbers.
    """
    count, channels = len(prior.matrices), len(prior.matrices[0])
    parameters = [p.astype(np.float64) for p in (*prior.matrices, *prior.biases, *prior.factors)]
    if not all(np.isfinite(p).all() for p in parameters):
        raise ConfigError("the prior of z has weights that are not finite numbers: the model cannot code files")
    matrices = [portable.softplus(p) for p in parameters[:count]]
    biases = parameters[count : 2 * count]
    factors = [portable.tanh(p) for p in parameters[2 * count :]]

    def logits(channel: NDArray[np.int64], x: portable.Array) -> portable.Array:
        """Cumulative logits at ``x``, as CompressAI's ``_logits_cumulative``, with sums in a fixed order."""
        values = [x]
        for layer, (matrix, bias) in enumerate(zip(matrices, biases, strict=True)):
            sums = []
            for row in range(matrix.shape[1]):
                total = bias[channel, row, 0]
                for column, value in enumerate(values):
                    total = total + matrix[channel, row, column] * value
                if layer < len(factors):
                    total = total + factors[layer][channel, row, 0] * portable.tanh(total)
                sums.append(total)
            values = sums
        return values[0]

    every = np.arange(channels)
    low = _search(lambda k: logits(every, k - 0.5) > -_TAIL_LOGIT, channels) - 1
    high = _search(lambda k: logits(every, k + 0.5) >= _TAIL_LOGIT, channels)
    low = np.maximum(low, -_Z_TABLE_MAX)
    high = np.maximum(np.minimum(high, _Z_TABLE_MAX), low)
    table, edge = _edges(low, high - low + 1)
    return Tables(low, high - low + 1, portable.sigmoid(logits(table, edge)))


def _search(predicate: Callable[[NDArray[np.int64]], NDArray[np.bool_]], count: int) -> NDArray[np.int64]:
    """Smallest integer k for which a rising predicate holds, within +-(_Z_TABLE_MAX + 1), for ``count`` cases."""
    no = np.full(count, -_Z_TABLE_MAX - 1)
    yes = np.full(count, _Z_TABLE_MAX + 1)
    while int((yes - no).max()) > 1:
        middle = (no + yes) >> 1
        holds = predicate(middle)
        no, yes = np.where(holds, no, middle), np.where(holds, middle, yes)
    return yes
