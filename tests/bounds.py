"""How far two computations of the same number may lie apart for no reason but rounding, on any processor."""

from __future__ import annotations

import math

import torch
from torch import nn


def rounding(terms: float, magnitude: float, dtype: torch.dtype = torch.float32) -> float:
    """Bound on the error of a sum of ``terms`` products whose absolute values add up to ``magnitude``.

    Whatever the order of the sum and with or without fused multiply-adds, each of the ``terms`` steps errs by at most
    u = eps / 2 of the magnitude. The errors are as good as independent, so that their sum is about sqrt(terms) * u *
    magnitude (Higham and Mary, SIAM J. Sci. Comput. 41, 2019); eight times that is left to them. For a product of
    vectors |a| |b| bounds the magnitude, for a multiplication by an orthonormal matrix |x|.
    """
    return 8 * math.sqrt(terms) * torch.finfo(dtype).eps / 2 * magnitude


def terms_of(*networks: nn.Module) -> int:
    """Products on the way to one output, layer after layer: the fan-in of all weights, as if all stood in a row."""
    return sum(p[0].numel() for network in networks for p in network.parameters() if p.dim() > 1)
