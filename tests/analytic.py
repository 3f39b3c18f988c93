"""Distributions whose denoiser is known in closed form, a denoiser that is the same to the bit in any batch."""

from __future__ import annotations

import math

import numpy as np
import torch
from scipy import stats
from torch import Tensor

from gic.method.posterior import truncated_normal_mean

# --- an analytic case: a Laplacian and two Gaussians, with the exact denoiser -----------------------------

LAPLACE_WEIGHT, LAPLACE_SCALE = 0.5, 0.3
GAUSSIANS = ((0.3, 1.5, 0.25), (0.2, -1.2, 0.15))  # weight, mean, standard deviation


def draw_mixture(count: int, seed: int) -> Tensor:
    rng = np.random.default_rng(seed)
    component = rng.choice(3, count, p=[LAPLACE_WEIGHT, *(w for w, _, _ in GAUSSIANS)])
    y = rng.laplace(0.0, LAPLACE_SCALE, count)
    for i, (_, mean, deviation) in enumerate(GAUSSIANS, start=1):
        y = np.where(component == i, rng.normal(mean, deviation, count), y)
    return torch.from_numpy(y)


def mixture_density(y: float) -> float:
    p = LAPLACE_WEIGHT * stats.laplace.pdf(y, scale=LAPLACE_SCALE)
    return float(p + sum(w * stats.norm.pdf(y, m, s) for w, m, s in GAUSSIANS))


def mixture_denoiser(y_q: Tensor, q: Tensor) -> Tensor:
    """E[y | y_q] under uniform noise: the mixture's mean within the cell, in closed form."""
    low, high = y_q - q / 2, y_q + q / 2
    scale = LAPLACE_SCALE
    mass, moment = torch.zeros_like(y_q), torch.zeros_like(y_q)
    for sign in (-1.0, 1.0):  # the Laplacian's two sides, each mirrored to [0, inf)
        a, b = (sign * low, sign * high) if sign > 0 else (-high, -low)
        a, b = a.clamp_min(0), b.clamp_min(0)
        fall_a, fall_b = torch.exp(-a / scale), torch.exp(-b / scale)
        mass += LAPLACE_WEIGHT / 2 * (fall_a - fall_b)
        moment += sign * LAPLACE_WEIGHT / 2 * ((a + scale) * fall_a - (b + scale) * fall_b)
    for weight, mean, deviation in GAUSSIANS:
        a, b = (low - mean) / deviation, (high - mean) / deviation
        p = (torch.erf(b / math.sqrt(2)) - torch.erf(a / math.sqrt(2))) / 2
        density = (torch.exp(-a * a / 2) - torch.exp(-b * b / 2)) / math.sqrt(2 * math.pi)
        mass += weight * p
        moment += weight * (mean * p + deviation * density)
    return torch.clamp(moment / mass, low, high)


def gaussian_denoiser(y_q: Tensor, q: Tensor) -> Tensor:
    """E[y | y_q] for y ~ N(0, 1) and uniform noise."""
    one = torch.ones_like(y_q)
    return truncated_normal_mean(y_q, q, 0 * one, one)


def smooth_denoiser(y_q: Tensor, q: Tensor) -> Tensor:
    """Sums, products and quotients alone, which are the same to the last bit wherever in a tensor they are taken."""
    return y_q / (1 + y_q.abs()) / (1 + q * q / 12) + 0.1 * y_q


def batch(seed: int = 0, count: int = 4, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    y = 3 * torch.randn(count, 3, 4, 5, generator=generator, dtype=dtype)
    q = 0.5 * 2 ** (4 * torch.rand(count, generator=generator, dtype=dtype))
    return y, q


def generators(count: int, seed: int = 10) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(seed + i) for i in range(count)]
