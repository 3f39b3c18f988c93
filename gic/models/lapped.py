"""The lapped orthogonal transform as a module: the shortcut around g_a and g_s. See :mod:`gic.models.lot`."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from gic.models import lot


class LappedTransform(nn.Module):
    """Image to coefficients and back; nothing of it is learned or saved.

    Args:
        channels: M, the number of coefficients kept of each block's 768, those of lowest frequency; 192 leave an
            error of about 33 dB on photographs.

    Attributes:
        kept: Number of each channel's coefficient, ``256 colour + 16 row + column``, M integers.
        means: As in :class:`gic.models.lot.Numbers`, and all below.

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
        numbers = lot.lot(channels)._asdict()
        self.kept: list[int] = numbers.pop("kept")
        self.means: list[int] = numbers.pop("means")
        for name, values in numbers.items():
            self.register_buffer(name, torch.from_numpy(values), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """Image (B, 3, H, W), H and W multiples of 64, to coefficients (B, M, H/16, W/16), both float32."""
        with torch.autocast(x.device.type, enabled=False):
            return lot.forward(self, x.float())

    def inverse(self, y: Tensor) -> Tensor:
        """Coefficients (B, M, h, w), h and w multiples of 4, to image (B, 3, 16 h, 16 w), float32: the transpose."""
        with torch.autocast(y.device.type, enabled=False):
            return lot.inverse(self, y.float())

    def gather(self, y: Tensor) -> Tensor:
        """Last steps of the transform, see :func:`gic.models.lot.gather`."""
        with torch.autocast(y.device.type, enabled=False):
            return lot.gather(self, y.float())

    def spread(self, y: Tensor) -> Tensor:
        """Undo :meth:`gather`."""
        with torch.autocast(y.device.type, enabled=False):
            return lot.spread(self, y.float())
