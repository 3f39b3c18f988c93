"""SSIMULACRA 2, version 2.1, by the algorithm of libjxl's tool ``ssimulacra2``.

Jon Sneyers' metric (Cloudinary, 2022, 2023) compares two images in the colour space XYB at six scales: SSIM, edges that
only the reconstruction has (ringing, blocks) and edges that only the original has (blur). The weights of the 108 means
were fitted to opinions of people on compressed photographs. Values follow those of libjxl 0.11's tool, which
computes in single precision. The package ``ssimulacra2`` of PyPI (0.3.0) is not used: its borders differ from the
tool's, and it leaves out the last scale of small images.
"""

from __future__ import annotations

import math
from functools import cache

import torch
from torch import Tensor
from torch.nn import functional as F

SMALLEST = 8
"""Shortest side of images that have a scale at all, in pixels."""
SCALES = 6
SIGMA = 1.5
"""Width of the blur, in pixels of each scale."""
_C2 = 0.0009
_ABSORBANCE = (
    (0.30, 0.622, 0.078),
    (0.23, 0.692, 0.078),
    (0.24342268924547819, 0.20476744424496821, 0.5518098665095536),
)
_BIAS = 0.0037930732552754493
# Constants of libjxl (BSD-3-Clause). Rows: X, Y, B - Y, each at six scales; columns: the means of the maps of SSIM, of
# new edges and of lost ones, then their 4-norms.
_WEIGHTS = (
    (0.0, 0.0007376606707406586, 0.0, 0.0, 0.0007793481682867309, 0.0),
    (0.0, 0.0004371155730107379, 0.0, 1.1041726426657346, 0.00066284834129271, 0.00015231632783718752),
    (0.0, 0.0016406437456599754, 0.0, 1.8422455520539298, 11.441172603757666, 0.0),
    (0.0007989109436015163, 0.000176816438078653, 0.0, 1.8787594979546387, 10.94906990605142, 0.0),
    (
        0.0007289346991508072,
        0.9677937080626833,
        0.0,
        0.00014003424285435884,
        0.9981766977854967,
        0.00031949755934435053,
    ),
    (0.0004550992113792063, 0.0, 0.0, 0.0013648766163243398, 0.0, 0.0),
    (0.0, 0.0, 0.0, 7.466890328078848, 0.0, 17.445833984131262),
    (0.0006235601634041466, 0.0, 0.0, 6.683678146179332, 0.00037724407979611296, 1.027889937768264),
    (225.20515300849274, 0.0, 0.0, 19.213238186143016, 0.0011401524586618361, 0.001237755635509985),
    (176.39317598450694, 0.0, 0.0, 24.43300999870476, 0.28520802612117757, 0.0004485436923833408),
    (0.0, 0.0, 0.0, 34.77906344483772, 44.835625328877896, 0.0),
    (0.0, 0.0, 0.0, 0.0, 0.0, 0.0),
    (0.0, 0.0008680556573291698, 0.0, 0.0, 0.0, 0.0),
    (0.0, 0.0005313191874358747, 0.0, 0.00016533814161379112, 0.0, 0.0),
    (0.0, 0.0, 0.0, 0.0004179171803251336, 0.0017290828234722833, 0.0),
    (0.0020827005846636437, 0.0, 0.0, 8.826982764996862, 23.19243343998926, 0.0),
    (
        95.1080498811086,
        0.9863978034400682,
        0.9834382792465353,
        0.0012286405048278493,
        171.2667255897307,
        0.9807858872435379,
    ),
    (0.0, 0.0, 0.0, 0.0005130064588990679, 0.0, 0.00010854057858411537),
)


def ssimulacra2(x_hat: Tensor, x: Tensor) -> float:
    """Compare a reconstruction with its original.

    Args:
        x_hat: Reconstruction, sRGB, uint8 (3, H, W), sides at least :data:`SMALLEST`.
        x: Original, like ``x_hat``.

    Returns:
        The score: 100 for equal images, 90 for no visible difference side by side, 70, 50 and 30 for high, medium and
        low quality, without a lower bound.
    """
    pair = _linear(torch.arange(256, device=x.device).double() / 255)[torch.stack([x, x_hat]).long()]
    scales = []
    for scale in range(SCALES):
        if min(pair.shape[-2:]) < SMALLEST:
            break
        if scale:
            pair = _halved(pair)
        scales.append(_means(_xyb(pair)))
    parts = torch.stack(scales, dim=1).reshape(-1)  # channel, scale, norm and map; fewer scales take the first weights
    weights = torch.tensor(_WEIGHTS, dtype=torch.float64).reshape(-1)[: len(parts)]
    error = 0.9562382616834844 * float(parts.cpu() @ weights)
    error = 2.326765642916932 * error - 0.020884521182843837 * error**2 + 6.248496625763138e-05 * error**3
    return 100.0 - 10.0 * error**0.6276336467831387 if error > 0 else 100.0


def _linear(srgb: Tensor) -> Tensor:
    return torch.where(srgb <= 0.04045, srgb / 12.92, ((srgb + 0.055) / 1.055).pow(2.4))


def _halved(image: Tensor) -> Tensor:
    """Means of 2 x 2 pixels; the last row and column count twice where a side is odd."""
    height, width = image.shape[-2:]
    return F.avg_pool2d(F.pad(image, (0, width % 2, 0, height % 2), mode="replicate"), 2)


def _xyb(linear: Tensor) -> Tensor:
    """XYB of linear sRGB (N, 3, H, W), shifted and scaled so that it is positive and B is B - Y."""
    mixed = torch.einsum("ij,njhw->nihw", torch.tensor(_ABSORBANCE).to(linear), linear) + _BIAS
    red, green, blue = (mixed.clamp_min(0) ** (1 / 3) - _BIAS ** (1 / 3)).unbind(1)
    x, y = (red - green) / 2, (red + green) / 2
    return torch.stack([14 * x + 0.42, y + 0.01, blue - y + 0.55], dim=1)


@cache
def _kernel() -> Tensor:
    """Half of the blur's kernel from its middle: a Gaussian of three cosines (Charalampidis 2016; k = 1, 3, 5)."""
    radius = round(3.2795 * SIGMA + 0.2546)  # (57)
    omega = torch.tensor([1.0, 3.0, 5.0], dtype=torch.float64) * math.pi / (2 * radius)
    sign = torch.tensor([1.0, -1.0, 1.0], dtype=torch.float64)
    p = sign / torch.tan(omega / 2)  # (37)
    r = sign * p**2 / torch.sin(omega)  # (44)
    rho = torch.exp(-(SIGMA**2) * omega**2 / 2) / radius  # (50)
    cross = torch.linalg.cross(p, r)
    zeta = torch.stack([cross[0] / cross[2], cross[1] / cross[2], torch.ones((), dtype=torch.float64)])  # (52)
    wanted = torch.stack([torch.ones((), dtype=torch.float64), rho.new_tensor(radius**2 - SIGMA**2), zeta @ rho])
    beta = torch.linalg.solve(torch.stack([p, r, zeta]), wanted)  # (53)
    at = torch.arange(radius, dtype=torch.float64)
    half: Tensor = (beta[:, None] * torch.cos(omega[:, None] * at)).sum(0)
    return half


def _blur(image: Tensor) -> Tensor:
    """Blur (N, C, H, W), zeros around it."""
    kernel: list[float] = _kernel().tolist()
    for axis in (-1, -2):
        blurred = kernel[0] * image
        for step, weight in enumerate(kernel[1:], 1):
            length = image.shape[axis] - step
            if length > 0:
                blurred.narrow(axis, step, length).add_(image.narrow(axis, 0, length), alpha=weight)
                blurred.narrow(axis, 0, length).add_(image.narrow(axis, step, length), alpha=weight)
        image = blurred
    return image


def _means(xyb: Tensor) -> Tensor:
    """Means and 4-norms of the three maps of each channel, (3, 2, 3): channel, norm, map."""
    image, other = xyb
    mu, other_mu, square, other_square, product = _blur(
        torch.stack([image, other, image * image, other * other, image * other])
    )
    alike = 1 - (mu - other_mu) ** 2
    structure = (2 * (product - mu * other_mu) + _C2) / (square - mu**2 + (other_square - other_mu**2) + _C2)
    edges = (1 + (other - other_mu).abs()) / (1 + (image - mu).abs()) - 1
    maps = torch.stack([1 - alike * structure, edges, -edges], dim=1).clamp_min(0)
    return torch.stack([maps.mean((2, 3)), maps.square().square().mean((2, 3)) ** 0.25], dim=1)
