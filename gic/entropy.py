"""Symbols to bytes and back, with the same probabilities on every machine (DESIGN 8).

    z  <-> bytes    factorised prior: one table of integers for each channel
    z   -> prior    mu and log2 sigma of y from h_s in whole numbers (gic.exact): the same on every device
    symbols of y <-> bytes    table of the element's sigma / q; plain integer arithmetic picks it

The tables are built from the weights when these are loaded, by functions that give the same bits everywhere
(gic.portable), and coded with gic.rans. A value outside its table is an escape event, followed by sign, length and
digits of the distance in plain bits.

Units: levels q and standard deviations are powers of two with exponents in units of 1 / LEVELS_PER_OCTAVE; the file
stores q as such a whole number, the *code* of q.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterator, Sequence
from functools import cache, cached_property
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from gic import portable, rans
from gic.compressor import SIGMA_MIN, Compressor, FactorizedPrior
from gic.errors import ConfigError, FormatError
from gic.exact import IntegerNetwork

LEVELS_PER_OCTAVE = 1024
"""Exponents of q and sigma are multiples of 1 / LEVELS_PER_OCTAVE."""
CODE_MIN, CODE_MAX = -(2**15), 2**15 - 1
"""Codes of q are 16-bit numbers."""
MU_BITS = 11
"""mu is a multiple of 2^-MU_BITS, at most 2^(24 - MU_BITS) in magnitude."""
OFFSETS = 16
"""Number of dither values: u_j = (j + 1/2) / OFFSETS - 1/2."""
SYMBOL_MAX = 2**24
"""Largest magnitude of a symbol of y or z."""

SCALE_STEP = 64
"""Scales of the Gaussian tables are 1/16 octave apart, which costs 0.006 % of the bits (1/8 octave: 0.023 %)."""
SCALE_FIRST, SCALE_LAST = -51 * SCALE_STEP, 128 * SCALE_STEP
"""Range of the scales sigma / q: 0.11 to 256; wider elements, few, take the last table and a bit or two more."""
SKIP_ROUND = SCALE_FIRST - LEVELS_PER_OCTAVE
"""Under ``round``, elements with sigma / q below half the smallest scale, 0.055, are not coded: their symbol is 0,
any other lies 9 sigma away."""
SKIP_DITHER = round(math.log2(0.11) * LEVELS_PER_OCTAVE)
"""Under ``dither``, elements with sigma / q below 0.11 are not coded; the same as ``gic.model.SKIP_BELOW``."""

_LOG2_E = float.fromhex("0x1.71547652b82fep+0")
_LOG2_SIGMA_MIN = round(math.log2(SIGMA_MIN) * LEVELS_PER_OCTAVE)
_TAIL = 4.3  # half width of the Gaussian tables, in units of sigma
_TAIL_LOGIT = 11.0  # the same of z's tables: a probability of 2e-5
_Z_TABLE_MAX = 2048
_ESCAPE_HEAD_BITS = 6  # sign, and the number of binary digits after the first: at most 31

IntArray = NDArray[np.int32]


class Prior(NamedTuple):
    """The Gaussian prior of y, identical wherever it is computed from the same z and weights.

    Attributes:
        mu: Means, float32, multiples of 2^-MU_BITS, (B, M, 4h, 4w).
        log2_sigma: Logarithms of the standard deviations, int32, in units of 1 / LEVELS_PER_OCTAVE octaves, like mu.
    """

    mu: Tensor
    log2_sigma: Tensor

    @property
    def sigma(self) -> Tensor:
        """Standard deviations, float32; for what is not shared to the bit, like the denoiser."""
        return torch.exp2(self.log2_sigma.float() / LEVELS_PER_OCTAVE)


def level_code(q: float) -> int:
    """Code of the level nearest to ``q``.

    Raises:
        ConfigError: If ``q`` is not positive or out of the range of codes.

    Example:
        >>> level_code(1.0), level_code(3.0), level_value(-1024)
        (0, 1623, 0.5)
    """
    code = round(LEVELS_PER_OCTAVE * math.log2(q)) if 0 < q < math.inf else CODE_MAX + 1
    if not CODE_MIN <= code <= CODE_MAX:
        raise ConfigError(f"q = {q:g} cannot be stored: it must lie between 2^-32 and 2^32")
    return code


def level_value(code: int) -> float:
    """Level q of a code, ``2^(code / LEVELS_PER_OCTAVE)``, the same on every machine."""
    return float(portable.exp2(code / LEVELS_PER_OCTAVE))


def dither_values(offsets: NDArray[np.integer[Any]]) -> NDArray[np.float32]:
    """Dither u of offset numbers 0 ... OFFSETS - 1, float32 and exact."""
    return ((offsets.astype(np.float32) + 0.5) / OFFSETS - 0.5).astype(np.float32)


# --- tables -----------------------------------------------------------------------------------------------


class Tables:
    """Frequencies of whole numbers, many tables in one: for each ``low ... high`` and an escape, all at least 1.

    Args:
        low: Smallest symbol of each table.
        size: Number of symbols of each table, without the escape.
        cdf: Distribution functions at the lower edge of each symbol and at the upper edge of the last, all tables in a
            row: ``sum(size + 1)`` values in [0, 1]. What they leave out is the escape's.
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
        # Rounding must not let a distribution function fall.
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


def _escape(distance: int) -> Iterator[tuple[int, int]]:
    """Numbers and their bits that spell a distance: digits after the first and sign, then the digits."""
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


@cache
def gaussian_tables(dither: bool) -> Tables:
    """Tables of ``P(k) = Phi((k + u + 1/2) / s) - Phi((k + u - 1/2) / s)`` for all scales s = sigma / q.

    Under ``round`` u is 0 and the scale's number is the table's. Under ``dither`` the table is
    ``scale number * OFFSETS + offset number``.
    """
    scale = portable.exp2(np.arange(SCALE_FIRST, SCALE_LAST + 1, SCALE_STEP) / LEVELS_PER_OCTAVE)
    u = np.zeros(len(scale))
    if dither:
        u = np.tile(dither_values(np.arange(OFFSETS)).astype(np.float64), len(scale))
        scale = np.repeat(scale, OFFSETS)
    radius = np.maximum(np.floor(_TAIL * scale + (1.0 if dither else 0.5)), 1).astype(np.int64)
    table, edge = _edges(-radius, 2 * radius + 1)
    return Tables(-radius, 2 * radius + 1, portable.normal_cdf((edge + u[table]) / scale[table]))


def factorized_tables(prior: FactorizedPrior) -> Tables:
    """One table for each channel of z, from the weights of its factorised prior.

    Raises:
        ConfigError: If the weights are not finite numbers.
    """
    count = len(prior.matrices)
    parameters = [_float64(p) for p in (*prior.matrices, *prior.biases, *prior.factors)]
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

    channels = np.arange(prior.channels)
    low = _search(lambda k: logits(channels, k - 0.5) > -_TAIL_LOGIT, prior.channels) - 1
    high = _search(lambda k: logits(channels, k + 0.5) >= _TAIL_LOGIT, prior.channels)
    low = np.maximum(low, -_Z_TABLE_MAX)
    high = np.maximum(np.minimum(high, _Z_TABLE_MAX), low)
    table, edge = _edges(low, high - low + 1)
    return Tables(low, high - low + 1, portable.sigmoid(logits(table, edge)))


def _search(predicate: Callable[[NDArray[np.int64]], NDArray[np.bool_]], count: int) -> NDArray[np.int64]:
    """Smallest whole number k for which a rising predicate holds, within +-(_Z_TABLE_MAX + 1), for ``count`` cases."""
    no = np.full(count, -_Z_TABLE_MAX - 1)
    yes = np.full(count, _Z_TABLE_MAX + 1)
    while int((yes - no).max()) > 1:
        middle = (no + yes) >> 1
        holds = predicate(middle)
        no, yes = np.where(holds, no, middle), np.where(holds, middle, yes)
    return yes


def _float64(x: Tensor) -> portable.Array:
    array: portable.Array = x.detach().to("cpu", torch.float64).numpy()
    return array


# --- the coder --------------------------------------------------------------------------------------------


class EntropyCoder:
    """Codes z and y of a compressor; reads its weights once, when made.

    Symbols are int32 arrays. ``offsets`` are the dither's offset numbers, 0 ... OFFSETS - 1, like the symbols; ``None``
    is plain rounding. Any shape will do, for z with the channels third from the end.

    Args:
        compressor: Holds ``h_s``, whose output is mu and log sigma in this order, and ``prior_z``.

    Raises:
        ConfigError: If h_s cannot be computed exactly, or weights are not finite numbers.

    Example:
        >>> compressor = Compressor((8, 8, 8, 8), (0, 0, 0, 0), latent_channels=8, hyper_channels=4)
        >>> coder = EntropyCoder(compressor)
        >>> z = np.random.default_rng(0).integers(-3, 4, (1, 4, 2, 2), dtype=np.int32)
        >>> bool((coder.decode_z(coder.encode_z(z), z.shape) == z).all())
        True
    """

    def __init__(self, compressor: Compressor) -> None:
        self.hyper_channels = compressor.hyper_channels
        self._log2_sigma_max = round(math.log2(compressor.sigma_max) * LEVELS_PER_OCTAVE)
        m = self._means = compressor.latent_channels
        # After mu and log sigma of the latent channels one log sigma for each group of the detail's.
        self._sources = [*range(m, 2 * m), *(2 * m + group for group in compressor.groups)]
        sigmas = len(set(self._sources))
        gain = torch.tensor([2.0**MU_BITS] * m + [LEVELS_PER_OCTAVE * _LOG2_E] * sigmas, dtype=torch.float64)
        self._detail = np.zeros(0)
        if compressor.detail is not None:
            self._detail = np.floor(_float64(compressor.detail) * (LEVELS_PER_OCTAVE * _LOG2_E) + 0.5)
            if not np.isfinite(self._detail).all():
                raise ConfigError(
                    "the detail channels have scales that are not finite numbers: the model cannot code files"
                )
        self._h_s = IntegerNetwork(compressor.h_s, gain)
        self._z_tables = factorized_tables(compressor.prior_z)

    @cached_property
    def tables_hash(self) -> str:
        """SHA-256 of all that encoder and decoder must share: integer weights, tables, constants; 64 hex digits."""
        digest = hashlib.sha256()
        constants = [LEVELS_PER_OCTAVE, MU_BITS, OFFSETS, SCALE_STEP, SCALE_FIRST, SKIP_ROUND, SKIP_DITHER]
        arrays: list[NDArray[Any]] = [np.array(constants)]
        for conv in self._h_s.convolutions:
            arrays += [conv.weight.numpy(), conv.bias.numpy(), np.frexp(conv.scale.numpy())[1]]
        if self._detail.size:
            arrays += [np.array(self._sources), self._detail]
        for tables in (self._z_tables, gaussian_tables(False)):
            arrays += [tables.low, tables.size, tables.starts]
        for array in arrays:
            digest.update(np.array(array.shape, dtype="<i8").tobytes() + array.astype("<i8").tobytes())
        return digest.hexdigest()

    # --- hyper-latent -------------------------------------------------------------------------------------

    def prior(self, z: Tensor) -> Prior:
        """Prior of y from whole numbers z (B, N, h, w) of any dtype, on the device of ``z``.

        Raises:
            ValueError: If ``z`` is not made of whole numbers.
        """
        out = self._h_s(z)
        mu, log2_sigma = out[:, : self._means], out[:, self._means :]
        if self._detail.size:
            mu = F.pad(mu, (0, 0, 0, 0, 0, len(self._detail)))
            log2_sigma = out[:, self._sources]
            log2_sigma[:, self._means :] += torch.from_numpy(self._detail).to(out.device)[:, None, None]
        log2_sigma = log2_sigma.clamp(_LOG2_SIGMA_MIN, self._log2_sigma_max)
        return Prior((mu / 2**MU_BITS).float().to(z.device), log2_sigma.to(torch.int32).to(z.device))

    def encode_z(self, z: IntArray) -> bytes:
        """Code the hyper-latent.

        Raises:
            ValueError: If a symbol is larger than SYMBOL_MAX.
        """
        return self._z_tables.encode(self._channels(z.shape), z.ravel())

    def decode_z(self, data: bytes, shape: Sequence[int]) -> IntArray:
        """Undo :meth:`encode_z`.

        Raises:
            FormatError: If the data are found to be damaged.
        """
        return self._z_tables.decode(data, self._channels(shape)).reshape(shape)

    def bits_z(self, z: IntArray) -> float:
        """Code length of z, in bits, within 4 bytes of what :meth:`encode_z` writes."""
        return self._z_tables.length(self._channels(z.shape), z.ravel())

    def lengths_z(self, z: IntArray) -> NDArray[np.float64]:
        """Code length of each symbol of z, in bits, like ``z``."""
        return self._z_tables.lengths(self._channels(z.shape), z.ravel()).reshape(z.shape)

    def _channels(self, shape: Sequence[int]) -> NDArray[np.int64]:
        if len(shape) < 3 or shape[-3] != self.hyper_channels:
            raise ValueError(f"z of shape {tuple(shape)} has not {self.hyper_channels} channels third from the end")
        return np.broadcast_to(np.arange(self.hyper_channels)[:, None, None], shape).ravel()

    # --- latent -------------------------------------------------------------------------------------------

    def coded_mask(self, prior: Prior, code: int, dither: bool) -> NDArray[np.bool_]:
        """Which elements of y are coded at the level of ``code``; the symbols of all others must be 0."""
        return _numpy(prior.log2_sigma) >= code + (SKIP_DITHER if dither else SKIP_ROUND)

    def encode_y(self, symbols: IntArray, prior: Prior, code: int, offsets: NDArray[np.uint8] | None = None) -> bytes:
        """Code the symbols of y.

        Args:
            symbols: ``round((y - mu) / q - u)``, 0 where :meth:`coded_mask` says no.
            prior: From :meth:`prior`.
            code: Code of the level q.
            offsets: The dither, or ``None``.

        Raises:
            ValueError: If a symbol is larger than SYMBOL_MAX or not 0 where it is not coded.
        """
        mask, tables, gaussian = self._select(prior, code, offsets)
        if symbols[~mask].any():
            raise ValueError("symbols that are not coded must be 0: apply coded_mask first")
        return gaussian.encode(tables, symbols[mask])

    def decode_y(self, data: bytes, prior: Prior, code: int, offsets: NDArray[np.uint8] | None = None) -> IntArray:
        """Undo :meth:`encode_y`.

        Raises:
            FormatError: If the data are found to be damaged.
        """
        mask, tables, gaussian = self._select(prior, code, offsets)
        symbols = np.zeros(mask.shape, dtype=np.int32)
        symbols[mask] = gaussian.decode(data, tables)
        return symbols

    def bits_y(self, symbols: IntArray, prior: Prior, code: int, offsets: NDArray[np.uint8] | None = None) -> float:
        """Code length of y, in bits, within 4 bytes of what :meth:`encode_y` writes; what is not coded costs 0."""
        mask, tables, gaussian = self._select(prior, code, offsets)
        return gaussian.length(tables, symbols[mask])

    def _select(
        self, prior: Prior, code: int, offsets: NDArray[np.uint8] | None
    ) -> tuple[NDArray[np.bool_], NDArray[np.int32], Tables]:
        """Mask of the coded elements, the table of each of them, and the tables."""
        dither = offsets is not None
        mask = self.coded_mask(prior, code, dither)
        # sigma / q to the nearest scale, in whole numbers.
        ratio = _numpy(prior.log2_sigma)[mask] - (code + SCALE_FIRST - SCALE_STEP // 2)
        tables = np.clip(ratio // SCALE_STEP, 0, (SCALE_LAST - SCALE_FIRST) // SCALE_STEP)
        if offsets is not None:
            tables = tables * OFFSETS + offsets[mask]
        return mask, tables, gaussian_tables(dither)


def _numpy(x: Tensor) -> NDArray[np.int32]:
    array: NDArray[np.int32] = x.detach().cpu().numpy()
    return array
