"""Perceptual terms without weights of their own, for configs and objectives in tests."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gic.quality.terms import PerceptualTerm


class CoarseDistance(PerceptualTerm):
    """Absolute difference of the images at a quarter of their size."""

    def forward(self, x_hat: Tensor, x: Tensor) -> Tensor:
        return (F.avg_pool2d(x_hat, 4) - F.avg_pool2d(x, 4)).abs().flatten(1).mean(1)


class Roughness(PerceptualTerm):
    """How far the horizontal differences of two images are apart, through a network of its own."""

    def __init__(self, weight: float = 1.0) -> None:
        super().__init__(weight)
        self.network = nn.Conv2d(3, 1, (1, 2), bias=False)
        self.network.weight.data = torch.tensor([-1.0, 1.0]).expand(1, 3, 1, 2).clone()
        self.network.requires_grad_(False)

    def forward(self, x_hat: Tensor, x: Tensor) -> Tensor:
        return (self.network(x_hat) - self.network(x)).abs().flatten(1).mean(1)
