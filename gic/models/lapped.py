"""The lapped orthogonal transform: a fixed linear codec of 16 x 16 blocks, the shortcut around g_a and g_s.

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

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gic.errors import ConfigError

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


def dct(n: int) -> Tensor:
    """DCT-II, orthonormal: row k is the basis function of frequency k, (n, n), float64.

    >>> bool(torch.allclose(dct(4) @ dct(4).T, torch.eye(4, dtype=torch.float64)))
    True
    """
    k, i = torch.arange(n, dtype=torch.float64)[:, None], torch.arange(n, dtype=torch.float64)
    basis = math.sqrt(2 / n) * torch.cos(math.pi * (2 * i + 1) * k / (2 * n))
    basis[0] *= math.sqrt(0.5)
    return basis


def prefilter(n: int) -> Tensor:
    """P: the orthogonal mixing of n samples across a border, (n, n), float64, n even.

    It turns the DCT of blocks of n into the lapped orthogonal transform: basis functions of 2n samples that fall to
    zero at their ends.
    """
    h = n // 2
    one = torch.eye(h, dtype=torch.float64)
    turn = one.flip(0)
    k, i = torch.arange(h, dtype=torch.float64)[:, None], torch.arange(h, dtype=torch.float64)
    dct_4 = math.sqrt(2 / h) * torch.cos(math.pi * (2 * i + 1) * (2 * k + 1) / (4 * h))
    butterfly = torch.cat([torch.cat([one, turn], 1), torch.cat([turn, -one], 1)]) * math.sqrt(0.5)
    rotation = turn @ dct(h).T @ dct_4 @ turn
    return butterfly @ torch.cat([butterfly[:h], rotation @ butterfly[h:]])


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


class LappedTransform(nn.Module):
    """Image to coefficients and back; nothing of it is learned or saved.

    Args:
        channels: M, the number of coefficients kept of each block's 768, those of lowest frequency; 192 leave an
            error of about 33 dB on photographs.

    Attributes:
        deviation: Approximate standard deviation of each coefficient of a block for photographs in [0, 1], (M,).
        coarse_deviation: The same for the means of the blocks once they are transformed again, (K, 4, 4).
        scale: Factor on each coefficient, (M,).
        coarse_scale: The same for the means, (K, 4, 4).
        means: Channels of these means, K numbers, one for each colour that is kept.
        kept: Number of each channel's coefficient, ``256 colour + 16 row + column``, M integers.

    Raises:
        ConfigError: If ``channels`` does not lie in 1 ... 768.

    Example:
        >>> transform, x = LappedTransform(768), torch.rand(1, 3, 64, 128)
        >>> y = transform(x)
        >>> y.shape, bool(torch.allclose(transform.inverse(y), x, atol=1e-4))
        (torch.Size([1, 768, 4, 8]), True)
    """

    basis: Tensor
    mixing: Tensor
    coarse_basis: Tensor
    coarse_mixing: Tensor
    deviation: Tensor
    coarse_deviation: Tensor
    scale: Tensor
    coarse_scale: Tensor

    def __init__(self, channels: int = 192) -> None:
        super().__init__()
        if not 1 <= channels <= 3 * BLOCK**2:
            raise ConfigError(f"a lapped transform keeps 1 to {3 * BLOCK**2} coefficients, not {channels}")
        colours = F.normalize(torch.tensor(COLOURS, dtype=torch.float64))
        basis = torch.einsum("kc,ui,vj->kuvcij", colours, dct(BLOCK), dct(BLOCK))
        basis = basis.reshape(3 * BLOCK**2, 3 * BLOCK**2)
        frequency = _frequencies(BLOCK).flatten()
        deviation = torch.cat([energy * frequency**-1.5 for energy in _ENERGY])
        self.kept = kept = order()[:channels]
        place = {number: channel for channel, number in enumerate(self.kept)}
        colour_of_mean = [colour for colour in range(3) if colour * BLOCK**2 in place]
        self.means = [place[colour * BLOCK**2] for colour in colour_of_mean]
        coarse = (_frequencies(SUPER_BLOCK) / SUPER_BLOCK) ** -1.5
        for name, values in {
            "basis": basis[kept],
            "mixing": prefilter(BLOCK),
            "coarse_basis": dct(SUPER_BLOCK),
            "coarse_mixing": prefilter(SUPER_BLOCK),
            "deviation": deviation[kept],
            "coarse_deviation": torch.tensor(_ENERGY, dtype=torch.float64)[colour_of_mean, None, None] * coarse,
        }.items():
            self.register_buffer(name, values.float(), persistent=False)
        self.register_buffer("scale", _SCALE * self.deviation**_SCALE_POWER, persistent=False)
        self.register_buffer("coarse_scale", _SCALE * self.coarse_deviation**_SCALE_POWER, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """Image (B, 3, H, W), H and W multiples of 64, to coefficients (B, M, H/16, W/16), both float32."""
        with torch.autocast(x.device.type, enabled=False):
            x = _mix_both(x.float(), self.mixing)
            blocks = F.pixel_unshuffle(x, BLOCK).flatten(2).transpose(1, 2)  # (B, h w, 768)
            y = blocks @ self.basis.T
            y = y.transpose(1, 2).reshape(len(x), -1, x.shape[2] // BLOCK, x.shape[3] // BLOCK)
        return self.gather(y)

    def inverse(self, y: Tensor) -> Tensor:
        """Coefficients (B, M, h, w), h and w multiples of 4, to image (B, 3, 16 h, 16 w), float32: the transpose."""
        y = self.spread(y)
        with torch.autocast(y.device.type, enabled=False):
            blocks = y.float().flatten(2).transpose(1, 2) @ self.basis
            x = F.pixel_shuffle(blocks.transpose(1, 2).reshape(len(y), -1, *y.shape[2:]), BLOCK)
            return _mix_both(x, self.mixing.T)

    def gather(self, y: Tensor) -> Tensor:
        """Last steps of the transform: transform the means again, and scale.

        Args:
            y: Coefficients of the blocks, (B, M, h, w), h and w multiples of 4; or the first channels of them, the
                means among these.
        """
        with torch.autocast(y.device.type, enabled=False):
            y = y.float()
            means = _each_block(_mix_both(y[:, self.means], self.coarse_mixing), self.coarse_basis)
            y = y * self.scale[: y.shape[1], None, None]
            y[:, self.means] = means * self._tiled(self.coarse_scale, y)
            return y

    def spread(self, y: Tensor) -> Tensor:
        """Undo :meth:`gather`."""
        with torch.autocast(y.device.type, enabled=False):
            y = y.float()
            means = _each_block(y[:, self.means] / self._tiled(self.coarse_scale, y), self.coarse_basis.T)
            y = y / self.scale[: y.shape[1], None, None]
            y[:, self.means] = _mix_both(means, self.coarse_mixing.T)
            return y

    @staticmethod
    def _tiled(block: Tensor, y: Tensor) -> Tensor:
        return block.repeat(1, y.shape[2] // SUPER_BLOCK, y.shape[3] // SUPER_BLOCK)


def _frequencies(n: int) -> Tensor:
    """Distance of each coefficient of an n x n block from frequency 0, in half waves per block, (n, n), float64."""
    side = torch.arange(n, dtype=torch.float64) + 0.5
    return (side[:, None] ** 2 + side**2).sqrt()


def _each_block(x: Tensor, basis: Tensor) -> Tensor:
    """Transform each n x n block of (..., h, w) along both sides, in its place."""
    return _in_blocks(_in_blocks(x, basis).transpose(-1, -2), basis).transpose(-1, -2)


def _mix_both(x: Tensor, mixing: Tensor) -> Tensor:
    """Apply P across the borders of blocks along both sides of (..., h, w)."""
    return _mix(_mix(x, mixing).transpose(-1, -2), mixing).transpose(-1, -2)


def _mix(x: Tensor, mixing: Tensor) -> Tensor:
    """Apply P across the borders of blocks along the last side; the sides of the image are no such borders."""
    n = len(mixing)
    if x.shape[-1] <= n:
        return x
    inner = _in_blocks(x[..., n // 2 : -(n // 2)], mixing)
    return torch.cat([x[..., : n // 2], inner, x[..., -(n // 2) :]], dim=-1)


def _in_blocks(x: Tensor, matrix: Tensor) -> Tensor:
    """Multiply each n numbers in a row along the last side by a matrix (n, n)."""
    n = len(matrix)
    return (x.reshape(*x.shape[:-1], x.shape[-1] // n, n) @ matrix.T).reshape(x.shape)
