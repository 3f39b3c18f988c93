"""The hyper transforms: h_a takes y to z, h_s takes z_hat to mu and log sigma (Minnen et al. 2018, arXiv 1809.02736).

h_s is made of 3x3 convolutions, ReLU and pixel shuffles alone, so that it can be run in exact integer arithmetic
(:mod:`gic.bitstream.exact`); a network that replaces it must be too.
"""

from __future__ import annotations

from torch import nn

from gic.models.layers import conv3x3, subpel_conv3x3


class HyperAnalysis(nn.Sequential):
    """h_a: (B, C, h, w), h and w multiples of 4, to z (B, N, h/4, w/4), not yet rounded.

    Args:
        channels: C, channels of y and of the further inputs.
        hyper_channels: N, channels of z.
    """

    stride = 4
    """Elements of y for each element of z, along each side."""

    def __init__(self, channels: int, hyper_channels: int) -> None:
        n = hyper_channels
        super().__init__(
            conv3x3(channels, n),
            nn.LeakyReLU(inplace=True),
            conv3x3(n, n, stride=2),
            nn.LeakyReLU(inplace=True),
            conv3x3(n, n, stride=2),
        )


class HyperSynthesis(nn.Sequential):
    """h_s: z_hat (B, N, h, w), integers, to (B, C, 4h, 4w): mu, log sigma, then log sigma of groups of the detail.

    Args:
        hyper_channels: N, channels of z.
        channels: C, twice the M channels of y and one for each group of detail channels.
    """

    stride = 4
    """As in the analysis."""

    def __init__(self, hyper_channels: int, channels: int) -> None:
        n = hyper_channels
        super().__init__(
            subpel_conv3x3(n, n, 2),
            nn.ReLU(inplace=True),
            subpel_conv3x3(n, n, 2),
            nn.ReLU(inplace=True),
            conv3x3(n, channels),
        )
