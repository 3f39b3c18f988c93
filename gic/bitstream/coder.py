"""Symbols to bytes and back, with the same probabilities on every machine (DESIGN 8).

    z  <-> bytes    factorised prior: one table of integers for each channel
    z   -> prior    mu and log2 sigma of y from h_s in integers (gic.bitstream.exact): the same on every device
    symbols of y <-> bytes    table of the element's sigma / q; plain integer arithmetic picks it

Units: levels q and standard deviations are powers of two with exponents in units of 1 / LEVELS_PER_OCTAVE; the file
stores q as such an integer, the *code* of q.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from gic.bitstream import portable
from gic.bitstream.exact import IntegerNetwork, Layer, Product
from gic.bitstream.refinement import STEP, Refinement
from gic.bitstream.tables import (
    FIRST,
    LEVELS_PER_OCTAVE,
    OFFSETS,
    SCALE_STEP,
    SKIP_DITHER,
    SKIP_ROUND,
    FactorizedWeights,
    IntArray,
    Tables,
    factorized_tables,
    prior_tables,
    scale_numbers,
)
from gic.errors import ConfigError
from gic.models.lot import SUPER_BLOCK, importance
from gic.models.ranges import SIGMA_MIN

CODE_MIN, CODE_MAX = -(2**15), 2**15 - 1
"""Codes of q are 16-bit numbers."""
MU_BITS = 11
"""mu is a multiple of 2^-MU_BITS, at most 2^(24 - MU_BITS) in magnitude."""

_LOG2_E = float.fromhex("0x1.71547652b82fep+0")
_LOG2_SIGMA_MIN = round(math.log2(SIGMA_MIN) * LEVELS_PER_OCTAVE)


Code = int | IntArray
"""Code of a level, of all elements or of each."""


class Prior(NamedTuple):
    """The prior of y, identical on every machine for the same z and weights.

    Attributes:
        mu: Means, float32, multiples of 2^-MU_BITS, (B, M, 4h, 4w).
        log2_sigma: Logarithms of the standard deviations, int32, in units of 1 / LEVELS_PER_OCTAVE octaves, like mu.
    """

    mu: NDArray[np.float32]
    log2_sigma: IntArray

    @property
    def sigma(self) -> NDArray[np.float32]:
        """Standard deviations, float32; for uses that need not be bit-exact, like the denoiser."""
        sigma: NDArray[np.float32] = np.exp2(self.log2_sigma.astype(np.float32) / np.float32(LEVELS_PER_OCTAVE))
        return sigma


class EntropyModel(NamedTuple):
    """What encoder and decoder must share of a set of weights.

    Attributes:
        latent_channels: M, channels of y that the networks have.
        hyper_channels: N, channels of z.
        h_s: Integers z (B, N, h, w) to mu, log sigma, and log sigma of each group of the detail, (B, C, 4h, 4w).
        prior_z: Weights of the prior of z.
        sigma_max: Largest standard deviation of the prior of y.
        lapped: Whether y are coefficients of the lapped transform.
        detail: Log sigma of each detail channel, relative to its group's.
        groups: Group of each detail channel.
        prior: Distribution of y about mu, ``gaussian`` or ``laplace``.
    """

    latent_channels: int
    hyper_channels: int
    h_s: Sequence[Layer]
    prior_z: FactorizedWeights
    sigma_max: float
    lapped: bool = False
    detail: NDArray[Any] = np.zeros(0)
    groups: Sequence[int] = ()
    prior: str = "gaussian"

    def __repr__(self) -> str:
        return f"<entropy model of {self.coded_channels} + {self.hyper_channels} channels>"

    @property
    def coded_channels(self) -> int:
        """Channels of y that a file holds: those of the networks, then the detail."""
        return self.latent_channels + len(self.groups)


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


def level_field(codes: IntArray) -> NDArray[np.float32]:
    """Levels of an array of codes, float32, like ``codes``: :func:`level_value` of each."""
    return portable.exp2(codes / LEVELS_PER_OCTAVE).astype(np.float32)


class EntropyCoder:
    """Codes z and y of an entropy model; reads its weights once, in the constructor.

    Symbols are int32 arrays. ``offsets`` are the dither's offset numbers, 0 ... OFFSETS - 1, like the symbols; ``None``
    is plain rounding. Any shape is allowed; z has its channels third from the end.

    Args:
        model: The entropy model.
        product: A matrix product of float64; any will do, as all sums are exact.

    Raises:
        ConfigError: If h_s cannot be computed exactly, or weights are not finite.

    Example:
        >>> from gic.bitstream.exact import Convolution
        >>> rng = np.random.default_rng(0)
        >>> prior_z = FactorizedWeights([np.ones((4, 1, 1))], [np.zeros((4, 1, 1))], [])
        >>> h_s = [Convolution(rng.normal(size=(16, 4, 3, 3)), None)]
        >>> coder = EntropyCoder(EntropyModel(8, 4, h_s, prior_z, sigma_max=256.0))
        >>> z = rng.integers(-3, 4, (1, 4, 2, 2), dtype=np.int32)
        >>> bool((coder.decode_z(coder.encode_z(z), z.shape) == z).all())
        True
    """

    def __init__(self, model: EntropyModel, product: Product = np.matmul) -> None:
        self.hyper_channels = model.hyper_channels
        self._distribution = model.prior
        self._log2_sigma_max = round(math.log2(model.sigma_max) * LEVELS_PER_OCTAVE)
        m = self._means = model.latent_channels
        # After mu and log sigma of the latent channels one log sigma for each group of the detail's.
        self._sources = [*range(m, 2 * m), *(2 * m + group for group in model.groups)]
        sigmas = len(set(self._sources))
        gain = np.array([2.0**MU_BITS] * m + [LEVELS_PER_OCTAVE * _LOG2_E] * sigmas)
        self._detail = np.floor(model.detail.astype(np.float64) * (LEVELS_PER_OCTAVE * _LOG2_E) + 0.5)
        if not np.isfinite(self._detail).all():
            raise ConfigError(
                "the detail channels have scales that are not finite numbers: the model cannot code files"
            )
        self._h_s = IntegerNetwork(model.h_s, gain, product)
        self._z_tables = factorized_tables(model.prior_z)
        channels = model.coded_channels
        self._importance = np.array(importance(channels) if model.lapped else [[0] * SUPER_BLOCK**2] * channels)

    @cached_property
    def tables_hash(self) -> str:
        """SHA-256 of all that encoder and decoder must share: integer weights, tables, constants; 64 hex digits."""
        digest = hashlib.sha256()
        constants = [
            LEVELS_PER_OCTAVE,
            MU_BITS,
            OFFSETS,
            SCALE_STEP,
            FIRST[self._distribution],
            SKIP_ROUND,
            SKIP_DITHER,
        ]
        arrays: list[NDArray[Any]] = [np.array(constants)]
        for conv in self._h_s.convolutions:
            arrays += [conv.weight, conv.bias, np.frexp(conv.scale)[1]]
        if self._detail.size:
            arrays += [np.array(self._sources), self._detail]
        for tables in (self._z_tables, prior_tables(self._distribution, False)):
            arrays += [tables.low, tables.size, tables.starts]
        for array in arrays:
            digest.update(np.array(array.shape, dtype="<i8").tobytes() + array.astype("<i8").tobytes())
        return digest.hexdigest()

    # --- hyper-latent -------------------------------------------------------------------------------------

    def prior(self, z: NDArray[Any]) -> Prior:
        """Prior of y from integers z (B, N, h, w) of any dtype.

        Raises:
            ValueError: If ``z`` does not consist of integers.
        """
        out = self._h_s(z)
        mu, log2_sigma = out[:, : self._means], out[:, self._means :]
        if self._detail.size:
            mu = np.pad(mu, ((0, 0), (0, len(self._detail)), (0, 0), (0, 0)))
            log2_sigma = out[:, self._sources]
            log2_sigma[:, self._means :] += self._detail[:, None, None]
        log2_sigma = log2_sigma.clip(_LOG2_SIGMA_MIN, self._log2_sigma_max)
        return Prior((mu / 2**MU_BITS).astype(np.float32), log2_sigma.astype(np.int32))

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

    def coded_mask(self, prior: Prior, code: Code, dither: bool) -> NDArray[np.bool_]:
        """Which elements of y are coded at the level of ``code``; the symbols of all others must be 0."""
        mask: NDArray[np.bool_] = prior.log2_sigma >= code + (SKIP_DITHER if dither else SKIP_ROUND)
        return mask

    def encode_y(self, symbols: IntArray, prior: Prior, code: Code, offsets: NDArray[np.uint8] | None = None) -> bytes:
        """Code the symbols of y.

        Args:
            symbols: ``round((y - mu) / q - u)``, 0 where :meth:`coded_mask` is False.
            prior: From :meth:`prior`.
            code: Code of the level q; an array like y where it differs between elements.
            offsets: The dither, or ``None``.

        Raises:
            ValueError: If a symbol is larger than SYMBOL_MAX or not 0 where it is not coded.
        """
        mask, numbers, tables = self._select(prior, code, offsets)
        if symbols[~mask].any():
            raise ValueError("symbols that are not coded must be 0: apply coded_mask first")
        return tables.encode(numbers, symbols[mask])

    def decode_y(self, data: bytes, prior: Prior, code: Code, offsets: NDArray[np.uint8] | None = None) -> IntArray:
        """Undo :meth:`encode_y`.

        Raises:
            FormatError: If the data are found to be damaged.
        """
        mask, numbers, tables = self._select(prior, code, offsets)
        symbols = np.zeros(mask.shape, dtype=np.int32)
        symbols[mask] = tables.decode(data, numbers)
        return symbols

    def bits_y(self, symbols: IntArray, prior: Prior, code: Code, offsets: NDArray[np.uint8] | None = None) -> float:
        """Code length of y, in bits, within 4 bytes of what :meth:`encode_y` writes; what is not coded costs 0."""
        mask, numbers, tables = self._select(prior, code, offsets)
        return tables.length(numbers, symbols[mask])

    def refinement(self, prior: Prior, code: Code, coarse: IntArray) -> Refinement:
        """What a progressive file adds at the level of ``code`` to the level three times as coarse.

        Args:
            prior: From :meth:`prior`.
            code: Code of the finer level.
            coarse: Symbols at the coarser, ``code + STEP``, like y.
        """
        log2_sigma = prior.log2_sigma
        rows, columns = np.indices(log2_sigma.shape[-2:]) % SUPER_BLOCK
        return Refinement(
            log2_sigma - code,
            coarse,
            self.coded_mask(prior, code + STEP, False),
            self.coded_mask(prior, code, False),
            np.broadcast_to(self._importance[:, SUPER_BLOCK * rows + columns], log2_sigma.shape),
            self._distribution,
        )

    def _select(
        self, prior: Prior, code: Code, offsets: NDArray[np.uint8] | None
    ) -> tuple[NDArray[np.bool_], NDArray[np.int32], Tables]:
        """Mask of the coded elements, the table of each of them, and the tables."""
        dither = offsets is not None
        mask = self.coded_mask(prior, code, dither)
        # sigma / q to the nearest scale, in integers.
        numbers = scale_numbers((prior.log2_sigma - code)[mask], self._distribution)
        if offsets is not None:
            numbers = numbers * OFFSETS + offsets[mask]
        return mask, numbers, prior_tables(self._distribution, dither)
