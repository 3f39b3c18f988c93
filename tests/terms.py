"""A perceptual term without weights, for configs in tests."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

from gic.quality.terms import PerceptualTerm


class CoarseDistance(PerceptualTerm):
    """Absolute difference of the images at a quarter of their size."""

    def forward(self, x_hat: Tensor, x: Tensor) -> Tensor:
        return (F.avg_pool2d(x_hat, 4) - F.avg_pool2d(x, 4)).abs().flatten(1).mean(1)
