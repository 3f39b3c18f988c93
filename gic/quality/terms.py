"""Perceptual terms of the loss: LPIPS and no-reference quality (DESIGN 6).

A config uses a subclass of :class:`PerceptualTerm` by its ``class_path``. All compute in single precision, even if the
codec trains in half precision.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gic.errors import ConfigError
from gic.quality.networks import LPIPSNetwork, build_pyiqa, lpips_network
from gic.quality.weights import named_files


class PerceptualTerm(nn.Module, ABC):
    """A term of the loss that measures the reconstruction.

    Args:
        weight: Factor of the term in the loss.

    Attributes:
        network: A fixed network, see :meth:`hold`.
    """

    network: Any

    def __init__(self, weight: float = 1.0) -> None:
        super().__init__()
        self.weight = weight

    @abstractmethod
    def forward(self, x_hat: Tensor, x: Tensor) -> Tensor:
        """Compare ``x_hat`` (B, 3, H, W), about [0, 1], with ``x``: (B,), lower is better, differentiable."""

    def hold(self, network: nn.Module) -> None:
        """Keep a fixed network: it moves between devices with the term, and neither learns nor is saved."""
        self.__dict__["network"] = network

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> PerceptualTerm:
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        if "network" in self.__dict__:
            self.__dict__["network"]._apply(fn)
        return self


class LocalContrast(PerceptualTerm):
    """Texture that is missing or too much: local contrast beside that of the original. It needs no weights.

    A picture is split into octaves, the bands of a Laplacian pyramid. In each band s is the root mean square of a
    channel over windows of 8 x 8 samples, and the term is the mean of ``|log((s_hat + c) / (s + c))|`` over windows,
    channels and octaves. An estimate of least squares is blurred where it is uncertain; here the blur costs, whatever
    the details are.

    Args:
        weight: Factor in the loss.
        octaves: Number of bands, from the finest.
        floor: c, the contrast that is not noticed, in units of images in [0, 1].

    Raises:
        ConfigError: If a value lies outside its range.
    """

    WINDOW = 8

    def __init__(self, weight: float = 1.0, octaves: int = 3, floor: float = 0.01) -> None:
        super().__init__(weight)
        if octaves < 1 or not floor > 0:
            raise ConfigError(f"octaves must be at least 1 and floor positive, not {octaves} and {floor}")
        self.octaves = octaves
        self.floor = floor

    def forward(self, x_hat: Tensor, x: Tensor) -> Tensor:
        """Difference of the contrasts of each image, (B,), 0 for identical images.

        Images have sides of ``8 * 2 ** (octaves - 1)`` pixels at least.
        """
        pair = torch.cat([x_hat.float(), x.float()])
        total = pair.new_zeros(len(x))
        with torch.autocast(x.device.type, enabled=False):
            for _ in range(self.octaves):
                coarse = F.avg_pool2d(pair, 2, ceil_mode=True, count_include_pad=False)
                band = pair - F.interpolate(coarse, size=pair.shape[-2:], mode="bilinear", align_corners=False)
                # The gradient of a root is infinite at 0.
                contrast = (F.avg_pool2d(band**2, self.WINDOW, self.WINDOW // 2) + 1e-8).sqrt() + self.floor
                s_hat, s = contrast.log().chunk(2)
                total = total + (s_hat - s).abs().flatten(1).mean(1)
                pair = coarse
        return total / self.octaves


class MaskedError(PerceptualTerm):
    """Squared error where it is seen: beside the original's own contrast, which hides it. It needs no weights.

    The term is the mean of ``(x_hat - x)^2 / (s^2 + c^2)``. ``s`` is the standard deviation of the original's channel
    in the calmest of the windows of 9 x 9 pixels that hold the pixel, so that a plain surface counts as plain up to
    its edge. LPIPS hardly minds a faint pattern on a plain surface; people do.

    Args:
        weight: Factor in the loss.
        floor: c, the contrast that hides nothing, in units of images in [0, 1].

    Raises:
        ConfigError: If ``floor`` is not positive.
    """

    WINDOW = 9

    def __init__(self, weight: float = 1.0, floor: float = 0.02) -> None:
        super().__init__(weight)
        if not 0 < floor < math.inf:
            raise ConfigError(f"floor must be positive, not {floor}")
        self.floor = floor

    def forward(self, x_hat: Tensor, x: Tensor) -> Tensor:
        """Masked error of each image, (B,), 0 for identical images of any size."""
        x_hat, x = x_hat.float(), x.float()
        with torch.autocast(x.device.type, enabled=False):
            # Windows end at the border. About the mean of the channel, so that squares of large numbers do not cancel.
            centred = x - x.mean((-2, -1), keepdim=True)
            mean, square = (
                F.avg_pool2d(v, self.WINDOW, 1, self.WINDOW // 2, count_include_pad=False)
                for v in (centred, centred**2)
            )
            variance = (square - mean**2).clamp_min(0)
            calmest = -F.max_pool2d(-variance, self.WINDOW, 1, self.WINDOW // 2)
            return ((x_hat - x) ** 2 / (calmest + self.floor**2)).flatten(1).mean(1)


NO_REFERENCE_CROPS: Mapping[str, int | None] = {
    "maniqa": 225,  # uses windows of 224; pyiqa enlarges images that are not larger than that
    "musiq": None,  # a pyramid of the whole image
    "niqe": None,  # these gather statistics over blocks of the whole image
    "ilniqe": None,
    "brisque": None,
    "piqe": None,
}
"""Side of the crop that a metric expects, in pixels; None is the whole image. Others get 224."""


class LPIPS(PerceptualTerm):
    """Learned perceptual distance to the original.

    Args:
        weight: Factor in the loss.
        net: Backbone, ``alex``, ``vgg`` or ``squeeze``.
        backbone: Local file of the backbone, see :func:`lpips_network`.
        moved: Compare both images :func:`moved` at random, so that the decoder does not fit the backbone's grid.
    """

    def __init__(
        self, weight: float = 1.0, net: LPIPSNetwork = "alex", backbone: str | None = None, moved: bool = False
    ) -> None:
        super().__init__(weight)
        self.metric = f"lpips_{net}"
        self.moved = moved
        self.hold(lpips_network(net, backbone))

    def forward(self, x_hat: Tensor, x: Tensor) -> Tensor:
        """Distance of each image, (B,), 0 for identical images."""
        with torch.autocast(x.device.type, enabled=False):
            x_hat, x = x_hat.float(), x.float()
            if self.moved:
                x_hat, x = moved(x_hat, x)
            distance: Tensor = self.network(2 * x_hat - 1, 2 * x - 1)
        return distance.flatten(1).mean(1)


class NoReference(PerceptualTerm):
    """A differentiable no-reference quality metric of pyiqa, -Q for metrics of which higher is better.

    Args:
        metric: Name in pyiqa, for example ``clipiqa``, ``maniqa`` or ``musiq``.
        weight: Factor in the loss, w_nr.
        weights: Local file of the metric's weights, in the form that pyiqa downloads (for ``clipiqa``: CLIP's
            RN50.pt, TorchScript); if left out, it is searched for, then downloaded.
        crop: Side of the random crop that is measured, in pixels; None is the whole image, ``auto`` the size that the
            metric expects, see :data:`NO_REFERENCE_CROPS`.

    Raises:
        ConfigError: If pyiqa has no such metric, it needs a reference, or its weights are not available.
    """

    def __init__(
        self,
        metric: str = "clipiqa",
        weight: float = 1.0,
        weights: str | None = None,
        crop: int | Literal["auto"] | None = "auto",
    ) -> None:
        super().__init__(weight)
        family = metric.split("-")[0]
        # One window of the crop, where maniqa would use 20 in the same place.
        options: dict[str, Any] = {"test_sample": 1} if family == "maniqa" else {}
        named = named_files({} if weights is None else {metric: weights})
        network, _ = build_pyiqa(metric, named, as_loss=True, **options)
        self.hold(network)
        if self.network.metric_mode != "NR":
            raise ConfigError(f"{metric} needs a reference; a no-reference metric is wanted here")
        self.metric = metric
        self.sign = 1.0 if self.network.lower_better else -1.0
        self.crop = NO_REFERENCE_CROPS.get(family, 224) if crop == "auto" else crop
        self._checked = False

    def forward(self, x_hat: Tensor, x: Tensor) -> Tensor:
        """Quality of each image with the sign of a loss, (B,).

        Raises:
            ConfigError: If the metric passes no gradient to the image, which is found at the first backward pass.
        """
        net: nn.Module = self.network.net
        image = x_hat.float().clamp(0, 1)
        window = image if self.crop is None else _random_crop(image, self.crop)
        with torch.autocast(x_hat.device.type, enabled=False):
            score: Tensor = net(window)
        if image.requires_grad and not self._checked:
            self._check_gradient(score, window)
        return self.sign * score.reshape(len(x_hat), -1).mean(1)

    def _check_gradient(self, score: Tensor, window: Tensor) -> None:
        gradient = None
        if score.requires_grad:
            (gradient,) = torch.autograd.grad(score.sum(), window, retain_graph=True, allow_unused=True)
        if gradient is None or not gradient.isfinite().all() or not gradient.any():
            raise ConfigError(
                f"{self.metric} passes no usable gradient to the image: it can measure and cannot be a loss; "
                "clipiqa, maniqa and musiq can"
            )
        self._checked = True


def _random_crop(image: Tensor, side: int) -> Tensor:
    """One random window for the whole batch; images smaller than it are enlarged first."""
    height, width = image.shape[-2:]
    if min(height, width) < side:
        scale = side / min(height, width)
        size = (max(side, round(height * scale)), max(side, round(width * scale)))
        image = F.interpolate(image, size=size, mode="bilinear", antialias=True)
        height, width = image.shape[-2:]
    top = int(torch.randint(height - side + 1, ()))
    left = int(torch.randint(width - side + 1, ()))
    return image[..., top : top + side, left : left + side]


def moved(*images: Tensor, shift: int = 8, scale: float = 1.4) -> tuple[Tensor, ...]:
    """Images shifted, mirrored and, half the time, resized, all alike at random (E-LPIPS, arXiv 1906.03973).

    A network of stride 4 has each pixel of a codec's block at a fixed place of its stride, and a decoder learns to fit
    that place: LPIPS falls, and rises again when the picture is moved by a pixel.

    Args:
        images: (B, 3, H, W) each, of one size.
        shift: Pixels cut off along each axis in total; a random part of them at the top and at the left.
        scale: Sides are resized by a factor between 1 / scale and scale, log-uniform; none to less than 64 pixels.

    Returns:
        The images, differentiable.
    """
    top, left = (int(torch.randint(shift + 1, ())) for _ in range(2))
    height, width = (side - shift for side in images[0].shape[-2:])
    flips = [axis for axis in (-2, -1) if torch.rand(()) < 0.5]
    resized = bool(torch.rand(()) < 0.5)
    factor = math.exp((2 * float(torch.rand(())) - 1) * math.log(scale))
    size = (max(round(height * factor), min(height, 64)), max(round(width * factor), min(width, 64)))
    out = []
    for image in images:
        part = image[..., top : top + height, left : left + width].flip(flips)
        if resized:
            part = F.interpolate(part, size=size, mode="bilinear", align_corners=False, antialias=factor < 1)
        out.append(part)
    return tuple(out)
