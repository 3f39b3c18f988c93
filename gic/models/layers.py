"""Building blocks of the compressor, compatible with CompressAI's: the same names, parameters and results.

They are written again because importing CompressAI, with its dependencies for point clouds, takes ten times as long as
coding a picture. The tests compare each block with CompressAI's.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


def conv1x1(inputs: int, outputs: int) -> nn.Conv2d:
    """1x1 convolution."""
    return nn.Conv2d(inputs, outputs, 1)


def conv3x3(inputs: int, outputs: int, stride: int = 1) -> nn.Conv2d:
    """3x3 convolution that keeps the size, or divides it by ``stride``."""
    return nn.Conv2d(inputs, outputs, 3, stride, 1)


def subpel_conv3x3(inputs: int, outputs: int, factor: int) -> nn.Sequential:
    """3x3 convolution and pixel shuffle, which multiply the size by ``factor``."""
    return nn.Sequential(conv3x3(inputs, outputs * factor**2), nn.PixelShuffle(factor))


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions, each with a LeakyReLU."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = conv3x3(channels, channels)
        self.leaky_relu = nn.LeakyReLU(inplace=True)
        self.conv2 = conv3x3(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, h, w) to the same."""
        out: Tensor = self.leaky_relu(self.conv2(self.leaky_relu(self.conv1(x))))
        return out + x


class ResidualBottleneckBlock(nn.Module):
    """1x1, 3x3 and 1x1 convolutions at half the channels (He et al. 2015, arXiv 1512.03385), as in ELIC."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = conv1x1(channels, channels // 2)
        self.relu1 = nn.ReLU(inplace=True)
        self.conv2 = conv3x3(channels // 2, channels // 2)
        self.relu2 = nn.ReLU(inplace=True)
        self.conv3 = conv1x1(channels // 2, channels)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, h, w) to the same."""
        out: Tensor = self.conv3(self.relu2(self.conv2(self.relu1(self.conv1(x)))))
        return out + x


class _AttentionUnit(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        half = channels // 2
        self.conv = nn.Sequential(
            conv1x1(channels, half),
            nn.ReLU(inplace=True),
            conv3x3(half, half),
            nn.ReLU(inplace=True),
            conv1x1(half, channels),
        )
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.relu(self.conv(x) + x)
        return out


class AttentionBlock(nn.Module):
    """Gates its input by a branch of its own (Cheng et al. 2020, arXiv 2001.01568, simplified)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv_a = nn.Sequential(*(_AttentionUnit(channels) for _ in range(3)))
        self.conv_b = nn.Sequential(*(_AttentionUnit(channels) for _ in range(3)), conv1x1(channels, channels))

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, h, w) to the same."""
        out: Tensor = self.conv_a(x) * torch.sigmoid(self.conv_b(x))
        return out + x


class _Bounded(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, bound: float) -> Tensor:
        ctx.save_for_backward(x)
        ctx.bound = bound
        return x.clamp_min(bound)

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor, None]:
        (x,) = ctx.saved_tensors
        return ((x >= ctx.bound) | (grad_output < 0)) * grad_output, None


class LowerBound(nn.Module):
    """``max(x, bound)``; below the bound only gradients that lead back above it pass.

    The bound is a constant of the code and not in ``state_dict()``, so that no file can round or override it.

    Attributes:
        bound: The bound.
        on_file: The bound stored in weights of an earlier version; None for others. Only files made with those weights
            depend on it.
    """

    def __init__(self, bound: float) -> None:
        super().__init__()
        self.bound = float(bound)
        self.on_file: float | None = None

    def forward(self, x: Tensor) -> Tensor:
        """Any shape to the same."""
        return _Bounded.apply(x, self.bound)  # type: ignore[no-any-return]

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        saved = state_dict.pop(f"{prefix}bound", None)
        self.on_file = None if saved is None else float(saved)
        super()._load_from_state_dict(state_dict, prefix, *args)
