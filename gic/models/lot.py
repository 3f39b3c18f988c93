"""The lapped orthogonal transform: a fixed linear codec of 16 x 16 blocks, on tensors or NumPy's arrays.

    x --P--> x' --DCT of each block, in a luma and two colour differences--> M coefficients of lowest frequency
                  the means of the blocks --the same once more, in blocks of 4 x 4--> coarse structure, 64 pixels wide

P mixes the 16 pixels across every border of two blocks, first along the rows, then along the columns, so that a
coefficient reaches into the neighbouring blocks and no block edges show. Every step is orthonormal: with all 768
coefficients the way back is exact. The transform is Malvar's (The LOT, IEEE Trans. ASSP 38, 1990) in the time-domain
form of Tran, Liang and Tu (IEEE Trans. SP 51, 2003).

Neighbouring blocks have similar means: transforming these again, as JPEG XR does, saves two bits for each. At the end
each coefficient is scaled by a power of its expected size, so that one step q is finer for coarse structure than for
detail: at high rates equal steps would be best, but at a bit per pixel and less a detail that is not rounded to zero
costs more than its error.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from gic.errors import ConfigError
from gic.method.arrays import AnyArray, Array, namespace

BLOCK = 16
"""Side of a block in pixels, one element of the latent."""
SUPER_BLOCK = 4
"""Side, in elements of the latent, of a block of means."""
COLOURS = ((1.0, 1.0, 1.0), (1.0, 0.0, -1.0), (1.0, -2.0, 1.0))
"""Luma and two colour differences of R, G, B, before they are scaled to length 1: orthogonal."""
_COLOUR_WIDTH = 3.0
"""A colour difference at frequency f counts like luma at this many times f."""
_LATE = 170
"""Row 10, column 10 of luma: it follows the coefficients of equal rank, for compatibility, see :func:`order`."""
_ENERGY = (2.2, 1.0, 0.5)
"""Standard deviation at frequency 1 of photographs in [0, 1]; it falls as f^-1.5."""
_SCALE, _SCALE_POWER = 2.28, 0.4
"""A coefficient of deviation d is scaled by ``_SCALE * d ** _SCALE_POWER``, about 1 for one of middle frequency."""
_COLOUR_IMPORTANCE = (0, 9, 17)
"""``-0.8 log2`` of ``_ENERGY`` relative to luma's, in tenths: see :func:`importance`."""


def dct(n: int) -> NDArray[np.float64]:
    """DCT-II, orthonormal: row k is the basis function of frequency k, (n, n), float64.

    >>> bool(np.allclose(dct(4) @ dct(4).T, np.eye(4)))
    True
    """
    k, i = np.arange(n)[:, None], np.arange(n)
    basis: NDArray[np.float64] = math.sqrt(2 / n) * np.cos(math.pi * (2 * i + 1) * k / (2 * n))
    basis[0] *= math.sqrt(0.5)
    return basis


def prefilter(n: int) -> NDArray[np.float64]:
    """P: the orthogonal mixing of n samples across a border, (n, n), float64, n even.

    It turns the DCT of blocks of n into the lapped orthogonal transform: basis functions of 2n samples that fall to
    zero at their ends.
    """
    h = n // 2
    one = np.eye(h)
    turn = one[::-1]
    k, i = np.arange(h)[:, None], np.arange(h)
    dct_4 = math.sqrt(2 / h) * np.cos(math.pi * (2 * i + 1) * (2 * k + 1) / (4 * h))
    butterfly = np.block([[one, turn], [turn, -one]]) * math.sqrt(0.5)
    rotation = turn @ dct(h).T @ dct_4 @ turn
    p: NDArray[np.float64] = butterfly @ np.concatenate([butterfly[:h], rotation @ butterfly[h:]])
    return p


def order() -> list[int]:
    """Numbers ``256 colour + 16 row + column`` of all coefficients of a block, from low to high frequency.

    Weights depend on it, so it must be the same everywhere. Python's square root is rounded correctly on every machine;
    PyTorch's with MKL is not. This order was first made with it, which put :data:`_LATE` behind the coefficients of
    equal rank.
    """

    def rank(number: int) -> tuple[float, bool]:
        colour, place = divmod(number, BLOCK**2)
        row, column = divmod(place, BLOCK)
        frequency = math.sqrt((row + 0.5) ** 2 + (column + 0.5) ** 2)
        return (_COLOUR_WIDTH if colour else 1.0) * frequency, number == _LATE

    return sorted(range(3 * BLOCK**2), key=rank)


def frequency_groups(channels: int, first: int = 0) -> list[int]:
    """Group of each of the transform's channels from ``first`` on: one colour, direction and half octave of frequency.

    Integer arithmetic, the same everywhere: row u and column v of a block have ``s = (2 u + 1)^2 +
    (2 v + 1)^2``, whose number of binary digits is the half octave; the direction is 0 where
    ``2 u + 1 >= 2 (2 v + 1)``, 2 where ``2 v + 1 >= 2 (2 u + 1)``, else 1. Groups are numbered in the order of
    (colour, digits, direction).
    """
    keys = []
    for number in order()[first:channels]:
        colour, place = divmod(number, BLOCK**2)
        u, v = (2 * side + 1 for side in divmod(place, BLOCK))
        keys.append((colour, (u * u + v * v).bit_length(), 0 if u >= 2 * v else 2 if v >= 2 * u else 1))
    numbers = {key: group for group, key in enumerate(sorted(set(keys)))}
    return [numbers[key] for key in keys]


def importance(channels: int) -> list[list[int]]:
    """Squared error of the picture for an error of 1 of each coefficient, in tenths of an octave, up to a constant.

    The scales of the transform make it grow as ``frequency ** 1.2`` and differ between colours. Integer arithmetic, the
    same everywhere: the number of binary digits of ``s ** 6``, with s as in :func:`frequency_groups`.

    Returns:
        For each channel 16 numbers, those of the places (row, column) of a block of means, row by row. They are all the
        same but for the means, whose second transform makes their frequency depend on the place, a quarter of it.

    >>> [numbers[:2] for numbers in importance(2)]
    [[-17, -4], [20, 20]]
    """
    numbers = []
    for number in order()[:channels]:
        colour, place = divmod(number, BLOCK**2)
        where = range(SUPER_BLOCK**2) if place == 0 else [None] * SUPER_BLOCK**2
        of_colour = []
        for inner in where:
            u, v = (2 * side + 1 for side in (divmod(place, BLOCK) if inner is None else divmod(inner, SUPER_BLOCK)))
            octaves = ((u * u + v * v) ** 6).bit_length()
            of_colour.append(octaves + _COLOUR_IMPORTANCE[colour] - (0 if inner is None else 24))
        numbers.append(of_colour)
    return numbers


class SideChannels(NamedTuple):
    """Groups of channels that the hyper networks use beside y.

    Attributes:
        groups: Group of each detail channel.
        seen: Group of each channel whose activity h_a receives.
    """

    groups: list[int]
    seen: list[int]

    @classmethod
    def of(cls, latent_channels: int, lapped: bool, detail_channels: int, hyper_activity: bool) -> SideChannels:
        """For a compressor with these settings.

        Raises:
            ConfigError: If they need the lapped transform and ``lapped`` is False.
        """
        if (detail_channels or hyper_activity) and not lapped:
            name = "detail_channels" if detail_channels else "hyper_activity"
            raise ConfigError(f"{name} builds on the lapped transform: set lapped too")
        groups = frequency_groups(latent_channels + detail_channels, latent_channels) if detail_channels else []
        return cls(groups, frequency_groups(latent_channels + detail_channels) if hyper_activity else groups)


class Numbers(Protocol):
    """The numbers of a transform of M channels, float32: arrays, or tensors on some device.

    Attributes:
        means: Channels of the means of the blocks, K numbers, one for each colour that is kept.
        basis: Rows of the DCT of a block, (M, 768).
        mixing: P of blocks, (16, 16).
        coarse_basis: The DCT of the means, (4, 4).
        coarse_mixing: P of the means, (4, 4).
        deviation: Approximate standard deviation of each coefficient of a block for photographs in [0, 1], (M,).
        coarse_deviation: The same for the means of the blocks once they are transformed again, (K, 4, 4).
        scale: Factor on each coefficient, (M,).
        coarse_scale: The same for the means, (K, 4, 4).
    """

    @property
    def means(self) -> Sequence[int]: ...  # noqa: D102
    @property
    def basis(self) -> Any: ...  # noqa: D102
    @property
    def mixing(self) -> Any: ...  # noqa: D102
    @property
    def coarse_basis(self) -> Any: ...  # noqa: D102
    @property
    def coarse_mixing(self) -> Any: ...  # noqa: D102
    @property
    def deviation(self) -> Any: ...  # noqa: D102
    @property
    def coarse_deviation(self) -> Any: ...  # noqa: D102
    @property
    def scale(self) -> Any: ...  # noqa: D102
    @property
    def coarse_scale(self) -> Any: ...  # noqa: D102


class Lot(NamedTuple):
    """:class:`Numbers` in arrays of NumPy, and the number of each channel's coefficient, see :func:`order`."""

    kept: list[int]
    means: list[int]
    basis: NDArray[np.float32]
    mixing: NDArray[np.float32]
    coarse_basis: NDArray[np.float32]
    coarse_mixing: NDArray[np.float32]
    deviation: NDArray[np.float32]
    coarse_deviation: NDArray[np.float32]
    scale: NDArray[np.float32]
    coarse_scale: NDArray[np.float32]


def lot(channels: int) -> Lot:
    """The numbers of a transform.

    Args:
        channels: M, the number of coefficients kept of each block's 768, those of lowest frequency.

    Raises:
        ConfigError: If ``channels`` does not lie in 1 ... 768.
    """
    if not 1 <= channels <= 3 * BLOCK**2:
        raise ConfigError(f"a lapped transform keeps 1 to {3 * BLOCK**2} coefficients, not {channels}")
    colours = np.array(COLOURS)
    colours /= np.sqrt((colours**2).sum(1, keepdims=True))
    kept = order()[:channels]
    one = dct(BLOCK)
    colour, row, column = np.array([(n // BLOCK**2, n // BLOCK % BLOCK, n % BLOCK) for n in kept]).T
    basis = colours[colour][:, :, None, None] * one[row][:, None, :, None] * one[column][:, None, None, :]
    deviation = np.concatenate([energy * _frequencies(BLOCK).ravel() ** -1.5 for energy in _ENERGY])[kept]
    place = {number: channel for channel, number in enumerate(kept)}
    of_mean = [c for c in range(3) if c * BLOCK**2 in place]
    coarse = (_frequencies(SUPER_BLOCK) / SUPER_BLOCK) ** -1.5
    coarse_deviation = np.array(_ENERGY)[of_mean, None, None] * coarse
    arrays = (
        basis.reshape(channels, -1),
        prefilter(BLOCK),
        dct(SUPER_BLOCK),
        prefilter(SUPER_BLOCK),
        deviation,
        coarse_deviation,
        _SCALE * deviation**_SCALE_POWER,
        _SCALE * coarse_deviation**_SCALE_POWER,
    )
    return Lot(kept, [place[c * BLOCK**2] for c in of_mean], *(array.astype(np.float32) for array in arrays))


def _frequencies(n: int) -> NDArray[np.float64]:
    """Distance of each coefficient of an n x n block from frequency 0, in half waves per block, (n, n)."""
    side = np.arange(n) + 0.5
    frequencies: NDArray[np.float64] = np.sqrt(side[:, None] ** 2 + side**2)
    return frequencies


# --- the transform and its inverse --------------------------------------------------------------------------


def forward(t: Numbers, x: Array) -> Array:
    """Image (B, 3, H, W), H and W multiples of 64, to coefficients (B, M, H/16, W/16), float32."""
    x = _mix_both(x, t.mixing)
    b, c, height, width = x.shape
    h, w = height // BLOCK, width // BLOCK
    blocks = namespace(x).moveaxis(x.reshape(b, c, h, BLOCK, w, BLOCK), (2, 4), (1, 2)).reshape(b, h * w, -1)
    y: Array = (blocks @ t.basis.T).swapaxes(1, 2).reshape(b, -1, h, w)
    return gather(t, y)


def inverse(t: Numbers, y: Array) -> Array:
    """Coefficients (B, M, h, w), h and w multiples of 4, to image (B, 3, 16 h, 16 w), float32: the transpose."""
    return unblocked(t, spread(t, y))


def unblocked(t: Numbers, y: Array) -> Array:
    """Last steps of the inverse, after :func:`spread`."""
    b, _, h, w = y.shape
    blocks = y.reshape(b, -1, h * w).swapaxes(1, 2) @ t.basis
    blocks = namespace(y).moveaxis(blocks.reshape(b, h, w, 3, BLOCK, BLOCK), (1, 2), (2, 4))
    return _mix_both(blocks.reshape(b, 3, BLOCK * h, BLOCK * w), t.mixing.T)  # type: ignore[no-any-return]


def gather(t: Numbers, y: Array) -> Array:
    """Last steps of the transform: transform the means again, and scale.

    Args:
        t: The transform's numbers.
        y: Coefficients of the blocks, (B, M, h, w), h and w multiples of 4, float32; or the first channels of them, the
            means among these.
    """
    means = _each_block(_mix_both(y[:, t.means], t.coarse_mixing), t.coarse_basis)
    y = y * t.scale[: y.shape[1], None, None]
    y[:, t.means] = means * _tiled(t.coarse_scale, y)
    return y


def spread(t: Numbers, y: Array) -> Array:
    """Undo :func:`gather`."""
    means = _each_block(y[:, t.means] / _tiled(t.coarse_scale, y), t.coarse_basis.T)
    y = y / t.scale[: y.shape[1], None, None]
    y[:, t.means] = _mix_both(means, t.coarse_mixing.T)
    return y


def unit(t: Numbers, gain: float, channels: int) -> AnyArray:
    """Scale of each of the first coefficients for the networks, (channels,): its standard deviation, but at least 1."""
    return ((gain * t.deviation[:channels]) ** 2 + 1) ** 0.5


def _tiled(block: AnyArray, y: AnyArray) -> AnyArray:
    return namespace(y).tile(block, (1, y.shape[2] // SUPER_BLOCK, y.shape[3] // SUPER_BLOCK))


def _each_block(x: AnyArray, basis: AnyArray) -> AnyArray:
    """Transform each n x n block of (..., h, w) along both sides, in its place."""
    return _along_rows(_along_columns(x, basis), basis)


def _mix_both(x: AnyArray, mixing: AnyArray) -> AnyArray:
    """Apply P across the borders of blocks along both sides of (..., h, w), but for the sides of the image."""
    half, xp = len(mixing) // 2, namespace(x)
    if x.shape[-1] > 2 * half:
        x = xp.concatenate([x[..., :half], _along_rows(x[..., half:-half], mixing), x[..., -half:]], -1)
    if x.shape[-2] > 2 * half:
        inner = _along_columns(x[..., half:-half, :], mixing)
        x = xp.concatenate([x[..., :half, :], inner, x[..., -half:, :]], -2)
    return x


def _along_rows(x: AnyArray, matrix: AnyArray) -> AnyArray:
    """Multiply each n numbers in a row by a matrix (n, n)."""
    n = len(matrix)
    return (x.reshape(*x.shape[:-1], x.shape[-1] // n, n) @ matrix.T).reshape(x.shape)


def _along_columns(x: AnyArray, matrix: AnyArray) -> AnyArray:
    """Multiply each n numbers in a column by a matrix (n, n)."""
    n = len(matrix)
    return (matrix @ x.reshape(*x.shape[:-2], x.shape[-2] // n, n, x.shape[-1])).reshape(x.shape)
