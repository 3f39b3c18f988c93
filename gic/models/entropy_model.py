"""Entropy models: the factorised prior of z, and the Gaussian or Laplace prior of y at any level q (DESIGN 5)."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gic.models.layers import LowerBound
from gic.models.ranges import LIKELIHOOD_MIN, SCALE_MIN, SCALE_MIN_LAPLACE


class FactorizedPrior(nn.Module):
    """Learned density of integers, one for each channel (Balle et al. 2018, arXiv 1802.01436, appendix 6.1).

    CompressAI's entropy bottleneck with its median fixed at 0, so that z_hat consists of integers. Everything that
    coding needs is computed from the weights when they are loaded.

    Args:
        channels: N, channels of z.
        filters: Widths of the layers between a value and its cumulative logit.
        slope: Slope of the logits at the start, the same in every channel; a larger slope is a narrower distribution.
            If left out it is 1/2, and each channel has a random offset.
    """

    def __init__(self, channels: int, filters: Sequence[int] = (3, 3, 3, 3), slope: float | None = None) -> None:
        super().__init__()
        self.channels = channels
        self.matrices, self.biases, self.factors = nn.ParameterList(), nn.ParameterList(), nn.ParameterList()
        # Narrow at first: z is of order one then, and a wide distribution costs bits until training narrows it.
        scale = (slope or 0.5) ** (-1 / (len(filters) + 1))
        for rows, columns in zip((*filters, 1), (1, *filters), strict=True):
            self.matrices.append(
                nn.Parameter(torch.full((channels, rows, columns), math.log(math.expm1(1 / scale / rows))))
            )
            self.biases.append(nn.Parameter(torch.rand(channels, rows, 1) - 0.5))
        for rows in filters:
            self.factors.append(nn.Parameter(torch.zeros(channels, rows, 1)))
        self.likelihood_lower_bound = LowerBound(LIKELIHOOD_MIN)
        if slope is not None:
            with torch.no_grad():
                self.biases[-1] -= self._logits_cumulative(torch.zeros(channels, 1, 1))

    def _logits_cumulative(self, values: Tensor) -> Tensor:
        """Logits of the distribution functions at values (C, 1, n)."""
        for i, (matrix, bias) in enumerate(zip(self.matrices, self.biases, strict=True)):
            values = torch.matmul(F.softplus(matrix), values) + bias
            if i < len(self.factors):
                values = values + torch.tanh(self.factors[i]) * torch.tanh(values)
        return values

    def forward(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Latent z (B, C, ...), noisy in training mode and rounded otherwise, and its probabilities, at least 1e-9."""
        across = z.transpose(0, 1).contiguous()  # so that the noise does not depend on the layout
        values = across.reshape(self.channels, 1, -1)
        values = values + (torch.rand_like(values) - 0.5) if self.training else torch.round(values)
        p = torch.sigmoid(self._logits_cumulative(values + 0.5)) - torch.sigmoid(self._logits_cumulative(values - 0.5))
        p = self.likelihood_lower_bound(p)
        return values.reshape(across.shape).transpose(0, 1), p.reshape(across.shape).transpose(0, 1)


class LevelPrior(nn.Module, ABC):
    """Conditional distribution about mu of a latent that is already at level q, on any grid offset."""

    SCALE_MIN: float
    """Smallest sigma / q; below, sigma counts as this times q."""

    def __init__(self) -> None:
        super().__init__()
        self.lower_bound_scale = LowerBound(self.SCALE_MIN)
        self.likelihood_lower_bound = LowerBound(LIKELIHOOD_MIN)

    def forward(self, y_q: Tensor, q: Tensor, mu: Tensor, sigma: Tensor) -> Tensor:
        """Probability of the cell of width q around ``y_q`` (DESIGN 5).

        Valid for both quantisers: under ``dither`` the cell is the one shifted by u.

        Args:
            y_q: Latent at level q, (B, M, h, w).
            q: Level, (B, 1, 1, 1) or a field like ``y_q``, > 0, in units of y.
            mu: Prior mean, like ``y_q``.
            sigma: Prior standard deviation, like ``y_q``; at least :attr:`SCALE_MIN` times q counts.

        Returns:
            Likelihoods, like ``y_q``, in [1e-9, 1].
        """
        scale = self.lower_bound_scale(sigma / q)
        distance = torch.abs(y_q / q - mu / q)
        return self.likelihood_lower_bound(self.mass(distance, scale))  # type: ignore[no-any-return]

    @abstractmethod
    def mass(self, distance: Tensor, scale: Tensor) -> Tensor:
        """Probability of a cell of width 1 whose centre lies ``distance`` >= 0 from mu, at a standard deviation."""


class LevelGaussian(LevelPrior):
    """N(mu, sigma^2)."""

    SCALE_MIN = SCALE_MIN

    def mass(self, distance: Tensor, scale: Tensor) -> Tensor:
        """See :meth:`LevelPrior.mass`."""
        return (torch.erfc((distance - 0.5) / scale * 2**-0.5) - torch.erfc((distance + 0.5) / scale * 2**-0.5)) / 2


class LevelLaplace(LevelPrior):
    """The Laplace distribution of mean mu and standard deviation sigma.

    Coefficients are spread more widely than a Gaussian of their standard deviation, which is known only from z: with
    the same sigma this codes them with fewer bits.
    """

    SCALE_MIN = SCALE_MIN_LAPLACE

    def mass(self, distance: Tensor, scale: Tensor) -> Tensor:
        """See :meth:`LevelPrior.mass`."""
        rate = math.sqrt(2) / scale  # the density falls as exp(-rate |x|)
        # The cell holds mu up to a distance of 1/2, and lies on one side of it beyond.
        near = torch.exp(-rate * (distance + 0.5)) + torch.exp(-rate * (0.5 - distance).clamp_min(0.0))
        far = torch.exp(-rate * (distance - 0.5).clamp_min(0.0)) * -torch.expm1(-rate)
        return torch.where(distance < 0.5, 1 - near / 2, far / 2)
