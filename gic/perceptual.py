"""Perceptual terms of the loss: LPIPS and no-reference quality (DESIGN 6).

The metrics' networks come from lpips and pyiqa, which are imported when a term is made. Their weights are what those
libraries download, or local files.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gic.errors import ConfigError, require
from gic.losses import PerceptualTerm

LPIPSNetwork = Literal["alex", "vgg", "squeeze"]


def lpips_network(net: LPIPSNetwork = "alex", backbone: str | None = None) -> nn.Module:
    """LPIPS as published (version 0.1), frozen.

    Args:
        net: Backbone.
        backbone: File with torchvision's ``features.*`` of the backbone (a state dict); if left out, torchvision
            downloads it.

    Returns:
        Network that maps two images (B, 3, H, W) in [-1, 1] to (B, 1, 1, 1).

    Raises:
        ConfigError: If the file is missing or does not hold that backbone, or the download fails.
        MissingExtraError: If lpips is not installed.
    """
    lpips = require("lpips")
    if backbone is None:
        try:
            network = lpips.LPIPS(net=net, verbose=False)
        except (OSError, RuntimeError) as error:
            raise ConfigError(
                f"the backbone of LPIPS ({net}) could not be downloaded ({error}): name a local file as `backbone`"
            ) from error
    else:
        network = lpips.LPIPS(net=net, pnet_rand=True, verbose=False)
        _load_backbone(network.net, Path(backbone))
    return _freeze(network)


def _load_backbone(network: nn.Module, path: Path) -> None:
    """Fill the slices of lpips' backbone, whose layers keep torchvision's numbers, from ``features.*``."""
    if not path.is_file():
        raise ConfigError(f"no file {path}: it should hold the features of LPIPS' backbone")
    state = torch.load(path, map_location="cpu", weights_only=True)
    wanted = {}
    for name in network.state_dict():
        layer = name.split(".", 1)[1]  # slice1.0.weight -> 0.weight
        source = f"features.{layer}"
        if source not in state:
            raise ConfigError(f"{path} does not hold this backbone: {source} is missing")
        wanted[name] = state[source]
    try:
        network.load_state_dict(wanted, strict=True)
    except RuntimeError as error:
        raise ConfigError(f"{path} does not hold this backbone: {error}") from error


def _freeze(network: Any) -> nn.Module:
    frozen: nn.Module = network.eval().requires_grad_(False)
    return frozen


class LPIPS(PerceptualTerm):
    """Learned perceptual distance to the original.

    Args:
        weight: Factor in the loss.
        net: Backbone, ``alex``, ``vgg`` or ``squeeze``.
        backbone: Local file of the backbone, see :func:`lpips_network`.
    """

    def __init__(self, weight: float = 1.0, net: LPIPSNetwork = "alex", backbone: str | None = None) -> None:
        super().__init__(weight)
        self.network = lpips_network(net, backbone)

    def __call__(self, x_hat: Tensor, x: Tensor) -> Tensor:
        """Distance of each image, (B,), 0 for identical images."""
        self.network.to(x.device)
        distance: Tensor = self.network(2 * x_hat - 1, 2 * x - 1)
        return distance.flatten(1).mean(1)


class NoReference(PerceptualTerm):
    """A differentiable no-reference quality metric of pyiqa, -Q for metrics of which higher is better.

    Args:
        metric: Name in pyiqa, for example ``clipiqa``, ``maniqa`` or ``musiq``.
        weight: Factor in the loss, w_nr.
        weights: Local file of the metric's weights; if left out, pyiqa downloads them.
        crop: Side of the random crop that is judged, in pixels; None judges the whole image.

    Raises:
        ConfigError: If pyiqa has no such metric, it needs a reference, or its weights cannot be had.
    """

    def __init__(
        self, metric: str = "clipiqa", weight: float = 1.0, weights: str | None = None, crop: int | None = 224
    ) -> None:
        super().__init__(weight)
        pyiqa = require("pyiqa")
        if metric not in pyiqa.list_models():
            import difflib

            near = ", ".join(difflib.get_close_matches(metric, pyiqa.list_models(), 3)) or "see pyiqa.list_models()"
            raise ConfigError(f"pyiqa has no metric {metric!r}; near: {near}")
        options = {} if weights is None else {"pretrained_model_path": weights}
        try:
            self.network = pyiqa.create_metric(metric, as_loss=True, device="cpu", **options)
        except (OSError, RuntimeError) as error:
            raise ConfigError(f"the weights of {metric} cannot be had ({error}): name a local file") from error
        if self.network.metric_mode != "NR":
            raise ConfigError(f"{metric} needs a reference; a no-reference metric is wanted here")
        self.sign = 1.0 if self.network.lower_better else -1.0
        self.crop = crop
        _freeze(self.network)

    def __call__(self, x_hat: Tensor, x: Tensor) -> Tensor:
        """Quality of each image with the sign of a loss, (B,)."""
        self.network.to(x_hat.device)
        net: nn.Module = self.network.net
        image = x_hat.clamp(0, 1)
        if self.crop is not None:
            image = _random_crop(image, self.crop)
        score: Tensor = net(image)
        return self.sign * score.reshape(len(x_hat), -1).mean(1)


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
