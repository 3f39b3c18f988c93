"""The lapped orthogonal transform: a fixed linear codec of 16 x 16 blocks, the shortcut around g_a and g_s.

    x --P--> x' --DCT of each block, in a luma and two colour differences--> M coefficients of lowest frequency

P mixes the 16 pixels across every border of two blocks, first along the rows, then along the columns, so that a
coefficient reaches over its neighbours and nothing is seen of the blocks. Every step is orthonormal: with all 768
coefficients the way back is exact, and an error in the coefficients is as large in the image. The transform is
Malvar's (The LOT, IEEE Trans. ASSP 38, 1990) in the time-domain form of Tran, Liang and Tu (IEEE Trans. SP 51, 2003).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gic.errors import ConfigError

BLOCK = 16
"""Side of a block in pixels, one element of the latent."""
COLOURS = ((1.0, 1.0, 1.0), (1.0, 0.0, -1.0), (1.0, -2.0, 1.0))
"""Luma and two colour differences of R, G, B, before they are scaled to length 1: orthogonal."""
_COLOUR_WIDTH = 3.0
"""A colour difference at frequency f counts like luma at this many times f."""
_ENERGY = (2.2, 1.0, 0.5)
"""Standard deviation at frequency 1 of photographs in [0, 1]; it falls as f^-1.5."""


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


class LappedTransform(nn.Module):
    """Image to coefficients and back; nothing of it is learned or saved.

    Args:
        channels: M, the number of coefficients kept of each block's 768, those of lowest frequency; 192 leave an
            error of about 33 dB on photographs.

    Raises:
        ConfigError: If ``channels`` does not lie in 1 ... 768.

    Example:
        >>> transform, x = LappedTransform(768), torch.rand(1, 3, 64, 32)
        >>> y = transform(x)
        >>> y.shape, bool(torch.allclose(transform.inverse(y), x, atol=1e-5))
        (torch.Size([1, 768, 4, 2]), True)
    """

    basis: Tensor
    mixing: Tensor
    deviation: Tensor

    def __init__(self, channels: int = 192) -> None:
        super().__init__()
        if not 1 <= channels <= 3 * BLOCK**2:
            raise ConfigError(f"a lapped transform keeps 1 to {3 * BLOCK**2} coefficients, not {channels}")
        colours = F.normalize(torch.tensor(COLOURS, dtype=torch.float64))
        basis = torch.einsum("kc,ui,vj->kuvcij", colours, dct(BLOCK), dct(BLOCK))
        basis = basis.reshape(3 * BLOCK**2, 3 * BLOCK**2)
        side = torch.arange(BLOCK, dtype=torch.float64) + 0.5
        frequency = (side[:, None] ** 2 + side**2).sqrt().flatten()
        rank = torch.cat([frequency, _COLOUR_WIDTH * frequency, _COLOUR_WIDTH * frequency])
        deviation = torch.cat([energy * frequency**-1.5 for energy in _ENERGY])
        kept = rank.argsort(stable=True)[:channels]
        self.register_buffer("basis", basis[kept].float(), persistent=False)
        self.register_buffer("mixing", prefilter(BLOCK).float(), persistent=False)
        # What photographs in [0, 1] have in each coefficient, about.
        self.register_buffer("deviation", deviation[kept].float(), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """Image (B, 3, H, W), H and W multiples of 16, to coefficients (B, M, H/16, W/16), both float32."""
        with torch.autocast(x.device.type, enabled=False):
            x = self._mix(self._mix(x.float(), self.mixing).transpose(2, 3), self.mixing).transpose(2, 3)
            blocks = F.pixel_unshuffle(x, BLOCK).flatten(2).transpose(1, 2)  # (B, h w, 768)
            y = blocks @ self.basis.T
            return y.transpose(1, 2).reshape(len(x), -1, x.shape[2] // BLOCK, x.shape[3] // BLOCK)

    def inverse(self, y: Tensor) -> Tensor:
        """Coefficients (B, M, h, w) to image (B, 3, 16 h, 16 w), float32: the transpose, exact for M = 768."""
        with torch.autocast(y.device.type, enabled=False):
            blocks = y.float().flatten(2).transpose(1, 2) @ self.basis
            x = F.pixel_shuffle(blocks.transpose(1, 2).reshape(len(y), -1, *y.shape[2:]), BLOCK)
            return self._mix(self._mix(x, self.mixing.T).transpose(2, 3), self.mixing.T).transpose(2, 3)

    @staticmethod
    def _mix(x: Tensor, mixing: Tensor) -> Tensor:
        """Apply P across the borders of blocks along the last side; the sides of the image are no such borders."""
        h = BLOCK // 2
        if x.shape[-1] <= BLOCK:
            return x
        inner = x[..., h:-h].reshape(*x.shape[:-1], -1, BLOCK) @ mixing.T
        return torch.cat([x[..., :h], inner.flatten(-2), x[..., -h:]], dim=-1)
