"""Initialisation of the hyper networks beside the lapped transform: a linear codec, whose statistics are known.

g_a and g_s begin with zero output, so that y is the lapped transform. The prior is initialised with the width that each
coefficient has in photographs, the place of each element among the 4 x 4 of one element of z and, optionally, the
activity of each group of coefficients. Training would take many steps to find these.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from gic.models.hyper import HyperAnalysis, HyperSynthesis
from gic.models.lapped import LappedTransform
from gic.models.lot import frequency_groups

PRIOR_SLOPE = 3.0
"""How narrow the prior of z is where z begins as the activity."""

_ABOVE = 8.0  # activity plus this is never negative
_Z_PER_NAT = 1.25  # units of z for a factor e of activity, where z begins with it;
_OTHERS = 0.1  # magnitude of its other channels there
_PLACES = HyperSynthesis.stride**2  # elements of y for each of z


def _width(h_s: HyperSynthesis) -> int:
    last: Any = h_s[-1]
    return int(last.in_channels)


@torch.no_grad()
def begin_linear(
    h_a: HyperAnalysis,
    h_s: HyperSynthesis,
    lapped: LappedTransform,
    latent_channels: int,
    gain: float,
    unit: Tensor,
    *,
    activity: bool = False,
    detail_groups: Sequence[int] = (),
) -> None:
    """Initialise the hyper networks to add little, and the prior to the known width of each coefficient.

    Args:
        h_a: Hyper analysis, changed in place.
        h_s: Hyper synthesis, changed in place.
        lapped: The transform whose coefficients y holds.
        latent_channels: M, channels of y without the detail.
        gain: Factor between coefficients and y.
        unit: Scale of each coefficient of y for the networks, (M,).
        activity: Initialise z to the activity of groups of channels, which h_a receives after the M channels.
        detail_groups: Group of each detail channel.
    """
    h_a_last: Any = h_a[-1]
    h_s_last: Any = h_s[-1]
    m = latent_channels
    mu, log_sigma = h_s_last.weight[:m], h_s_last.weight[m:]
    scale, deviation = lapped.scale[:m], lapped.deviation[:m]
    mu.mul_(0.1 * (scale * unit)[:, None, None, None])
    log_sigma.mul_(0.1)
    h_a_last.weight.mul_(3)  # z of a trained codec is of order one; what is smaller is rounded away
    h_s_last.bias[m : 2 * m] = (gain * scale * deviation).log()
    passing = _follow_activity(h_a, h_s, lapped, m, detail_groups) if activity else 0
    if _width(h_s) >= 2 * _PLACES:
        width = scale * deviation
        offset = (lapped.coarse_scale * lapped.coarse_deviation / width[lapped.means, None, None]).log()
        _know_places(h_s, [m + channel for channel in lapped.means], offset, passing)


@torch.no_grad()
def _follow_activity(
    h_a: HyperAnalysis, h_s: HyperSynthesis, lapped: LappedTransform, latent_channels: int, detail_groups: Sequence[int]
) -> int:
    """Initialise z to the mean activity of each group over 4 x 4 elements, and log sigma to follow it.

    The first channels of all hidden layers carry it separately, one for each group except those of the means of
    blocks, as long as 32 other channels remain. Returns their number.
    """
    of_channel, m = frequency_groups(len(lapped.kept)), latent_channels
    means = {of_channel[channel] for channel in lapped.means}
    room = max(0, _width(h_s) - 2 * _PLACES)
    passing = [group for group in range(max(of_channel) + 1) if group not in means][:room]
    own = slice(len(passing))
    convolutions: list[Any] = [h_a[0], h_a[2], h_a[4]]
    for number, conv in enumerate(convolutions):
        if number > 0:
            conv.weight[:, own] = 0
        conv.weight[own] = 0
        for i, group in enumerate(passing):
            if number == 0:
                conv.weight[i, m + group, 1, 1] = 1
            else:
                conv.weight[i, i, 1:, 1:] = 0.25  # 2 x 2 elements
    convolutions[0].bias[own] = _ABOVE
    convolutions[2].weight[len(passing) :] *= _OTHERS
    convolutions[2].weight[own] *= _Z_PER_NAT
    convolutions[2].bias[own] = -_ABOVE * _Z_PER_NAT
    first: Any = h_s[0][0]  # type: ignore[index]
    second: Any = h_s[2][0]  # type: ignore[index]
    last: Any = h_s[4]
    four = slice(4 * len(passing))
    offset = _ABOVE * _Z_PER_NAT
    first.weight[four], second.weight[four], second.weight[:, own], last.weight[:, own] = 0, 0, 0, 0
    first.bias[four] = offset
    for i, group in enumerate(passing):
        first.weight[4 * i : 4 * i + 4, i, 1, 1] = 1
        second.weight[4 * i : 4 * i + 4, i, 1, 1] = 1
        outputs = [m + channel for channel in range(m) if of_channel[channel] == group]
        outputs += sorted({2 * m + detail_groups[t] for t in range(len(detail_groups)) if of_channel[m + t] == group})
        last.weight[outputs, i, 1, 1] = 1 / _Z_PER_NAT
        last.bias[outputs] -= _ABOVE
    return len(passing)


@torch.no_grad()
def _know_places(h_s: HyperSynthesis, outputs: Sequence[int], offsets: Tensor, passing: int = 0) -> None:
    """Let h_s add offsets (K, 4, 4) to K of its outputs, by the place of an element among the 4 x 4 of one of z.

    It uses hidden channels that are one in their place and zero elsewhere for every z: 4 after the first shuffle, 16
    after the second. In a trained network it takes those that mattered least, except the first ``passing``.
    """
    first: Any = h_s[0][0]  # type: ignore[index]
    second: Any = h_s[2][0]  # type: ignore[index]
    last: Any = h_s[4]
    matter = [conv.weight[:, passing:].square().sum((0, 2, 3)) for conv in (second, last)]
    corners, places = ((passing + w.argsort()[:n]).tolist() for w, n in zip(matter, (4, 16), strict=True))
    for i, corner in enumerate(corners):  # a shuffle makes channel c of 4 c ... 4 c + 3, in rows
        first.weight[4 * corner : 4 * corner + 4] = 0
        first.bias[4 * corner : 4 * corner + 4] = (torch.arange(4) == i).float()
        second.weight[:, corner] = 0
    for number, place in enumerate(places):
        coarse, fine = divmod(number, 4)
        own = slice(4 * place, 4 * place + 4)
        second.weight[own] = 0
        second.weight[own, corners[coarse], 1, 1] = 1
        second.bias[own] = (torch.arange(4) == fine).float() - 1
        last.weight[:, place] = 0
        last.weight[outputs, place, 1, 1] = offsets[:, 2 * (coarse // 2) + fine // 2, 2 * (coarse % 2) + fine % 2]
