"""The metrics of the benchmark: of single images, and of all images together (DESIGN 10).

Each says what it is (:class:`gic.quality.metric.MetricInfo`): the network, the weights with their hash, the library
and its version. Images are uint8, so that what is measured is what a file decodes to. A metric that cannot be had is
named with the reason, never left out or replaced.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from gic.errors import ConfigError, GicError, MissingExtraError, require
from gic.pictures.tensors import as_float
from gic.quality.metric import ImageMetric, MetricInfo
from gic.quality.networks import LPIPSNetwork, build_lpips, build_pyiqa
from gic.quality.set_metrics import (
    FID,
    KID,
    InceptionFeatures,
    SetMetric,
)
from gic.quality.ssimulacra2 import SMALLEST as SMALLEST_SSIMULACRA2
from gic.quality.ssimulacra2 import ssimulacra2
from gic.quality.weights import (
    METRICS,
    MissingWeightsError,
    check_pyiqa_name,
    fingerprint,
    named_files,
)
from gic.version import __version__

PYIQA_LABELS = {
    "clipiqa": "CLIP-IQA",
    "ilniqe": "IL-NIQE",
    "topiq_nr": "TOPIQ-NR",
    "topiq_fr": "TOPIQ-FR",
    "pieapp": "PieAPP",
}
SMALLEST: Mapping[str, int] = {
    "lpips_alex": 31,
    "lpips_alex_moved": 33,
    "lpips_squeeze": 17,
    "lpips_vgg": 16,
    "dists": 16,
    "clipiqa": 32,
    "niqe": 96,
    "brisque": 16,
}
"""Shortest side of images, in pixels, for which a metric is defined."""
MOVED = 2
"""Rows and columns that ``lpips_alex_moved`` leaves out: half the stride of AlexNet's first layer."""
_NOT_OF_ONE_IMAGE = ("fid", "sfid", "fid_dinov2", "inception_score", "clipscore", "fgresq_pair")


class PSNR(ImageMetric):
    """Peak signal-to-noise ratio over all pixels and the three channels of 8-bit RGB."""

    higher_better = True
    info = MetricInfo("psnr", "PSNR", higher_better, "image", "psnr: mean squared error over 8-bit RGB, peak 255", "dB")

    def measure(self, x_hat: Tensor, x: Tensor) -> float:
        """The value in dB, infinite for equal images."""
        difference = x_hat.to(torch.int32) - x.to(torch.int32)
        error = float((difference * difference).sum(dtype=torch.int64)) / difference.numel()
        return 10 * math.log10(255**2 / error) if error else math.inf


class MSSSIM(ImageMetric):
    """Multi-scale structural similarity, mean over the channels of RGB; five scales need sides above 160 pixels."""

    higher_better = True
    smallest = 161

    def __init__(self) -> None:
        self._function = require("pytorch_msssim").ms_ssim
        identity = f"ms_ssim: pytorch-msssim {version('pytorch-msssim')}, 8-bit RGB, window 11, 5 scales"
        self.info = MetricInfo("ms_ssim", "MS-SSIM", self.higher_better, "image", identity)

    def measure(self, x_hat: Tensor, x: Tensor) -> float:
        """The value, 1 for equal images."""
        return float(self._function(x_hat[None].float(), x[None].float(), data_range=255))


class SSIMULACRA2(ImageMetric):
    """SSIMULACRA 2, see :mod:`gic.quality.ssimulacra2`."""

    higher_better = True
    smallest = SMALLEST_SSIMULACRA2
    info = MetricInfo(
        "ssimulacra2", "SSIMULACRA 2", higher_better, "image", f"ssimulacra2: version 2.1, gic {__version__}, float64"
    )

    def measure(self, x_hat: Tensor, x: Tensor) -> float:
        """The score, 100 for equal images."""
        return ssimulacra2(x_hat, x)


class LPIPSMetric(ImageMetric):
    """LPIPS, version 0.1.

    Args:
        net: Backbone.
        named: Files that the user names, by key.
        device: Where it runs.
        download: Whether missing weights may be downloaded.
        moved: Rows and columns left out at the top and at the left. AlexNet's first layer has a stride of 4: a decoder
            that learned to please it on that grid does not please it beside it.
    """

    higher_better = False

    def __init__(
        self, net: LPIPSNetwork, named: Mapping[str, Path], device: str, download: bool, moved: int = 0
    ) -> None:
        network, files = build_lpips(net, named, download)
        self._network = network.to(device)
        self._moved = moved
        name = f"lpips_{net}" + ("_moved" if moved else "")
        self.smallest = SMALLEST[name]
        identity = f"{name}: lpips {version('lpips')}, v0.1, backbone {fingerprint(files)}"
        label = f"LPIPS ({net})"
        if moved:
            identity += f", without the first {moved} rows and columns"
            label = f"LPIPS ({net}), moved"
        self.info = MetricInfo(name, label, self.higher_better, "image", identity)

    def measure(self, x_hat: Tensor, x: Tensor) -> float:
        """The distance, 0 for equal images."""
        pair = (2 * as_float(each[:, self._moved :, self._moved :])[None] - 1 for each in (x_hat, x))
        return float(self._network(*pair))


class PyiqaMetric(ImageMetric):
    """A metric of pyiqa as its library computes it.

    Args:
        name: Name in pyiqa.
        named: Files that the user names, by key.
        device: Where it runs.
        download: Whether missing weights may be downloaded.
    """

    def __init__(self, name: str, named: Mapping[str, Path], device: str, download: bool) -> None:
        network, files = build_pyiqa(name, named, download)
        self._network: Any = network.to(device)
        self.needs_reference = network.metric_mode == "FR"
        self.smallest = SMALLEST.get(name, 1)
        identity = f"{name}: pyiqa {version('pyiqa')}, {type(network.net).__name__}, {fingerprint(files)}"
        label = PYIQA_LABELS.get(name, name.upper())
        self.info = MetricInfo(name, label, higher_better(name), "image", identity)

    def measure(self, x_hat: Tensor, x: Tensor) -> float:
        """The score."""
        target, reference = as_float(x_hat)[None], as_float(x)[None]
        score: Tensor = self._network(target, reference) if self.needs_reference else self._network(target)
        return float(score)


_CLASSES: Mapping[str, type[ImageMetric | SetMetric]] = {
    "psnr": PSNR,
    "ms_ssim": MSSSIM,
    "ssimulacra2": SSIMULACRA2,
    "lpips_alex": LPIPSMetric,
    "lpips_alex_moved": LPIPSMetric,
    "lpips_squeeze": LPIPSMetric,
    "lpips_vgg": LPIPSMetric,
    "fid": FID,
    "kid": KID,
    "fid768": FID,
    "kid768": KID,
}
"""Metrics by name; all others are pyiqa's."""


def higher_better(name: str) -> bool:
    """Direction of a metric, without making it: its weights need not be at hand.

    Raises:
        ConfigError: If there is no such metric.
        MissingExtraError: If it is pyiqa's, which is not installed.

    >>> higher_better("psnr"), higher_better("fid768")
    (True, False)
    """
    if name in _CLASSES:
        return _CLASSES[name].higher_better
    check_metric_name(name)
    require("pyiqa")
    return not require("pyiqa.default_model_configs").DEFAULT_CONFIGS[name].get("lower_better", False)


def check_metric_name(name: str) -> None:
    """Make sure that there is such a metric.

    Raises:
        ConfigError: If there is not; the text gives near names.
    """
    if name in METRICS:
        return
    check_pyiqa_name(name)
    if name in _NOT_OF_ONE_IMAGE:
        raise ConfigError(f"{name} of pyiqa does not judge single images")


def make_metric(
    name: str,
    weights: Mapping[str, str] | None = None,
    device: str = "cpu",
    download: bool = True,
    extractors: dict[int, InceptionFeatures] | None = None,
) -> ImageMetric | SetMetric:
    """Make one metric.

    Args:
        name: One that ``gic weights`` lists, or a name in pyiqa.
        weights: Files that the user names, by the keys that ``gic weights`` lists.
        device: Where its networks run.
        download: Whether missing weights may be downloaded.
        extractors: Extractors made so far, by dimensions; they are shared, and a new one is added.

    Raises:
        ConfigError: If there is no such metric or its weights cannot be had.
        MissingExtraError: If a package is missing.
    """
    check_metric_name(name)
    named = named_files(weights)
    if name == "psnr":
        return PSNR()
    if name == "ms_ssim":
        return MSSSIM()
    if name == "ssimulacra2":
        return SSIMULACRA2()
    kind = _CLASSES.get(name)
    if kind is LPIPSMetric:
        net: Any = name.removeprefix("lpips_").removesuffix("_moved")
        return LPIPSMetric(net, named, device, download, MOVED if name.endswith("_moved") else 0)
    if kind is not None and issubclass(kind, SetMetric):
        extractors = {} if extractors is None else extractors
        dimensions: Literal[768, 2048] = 768 if name.endswith("768") else 2048
        if dimensions not in extractors:
            extractors[dimensions] = InceptionFeatures(dimensions, named, device, download)
        return kind(extractors[dimensions])
    return PyiqaMetric(name, named, device, download)


def make_metrics(
    names: Sequence[str], weights: Mapping[str, str] | None = None, device: str = "cpu"
) -> tuple[list[ImageMetric], list[SetMetric], dict[str, str]]:
    """Make metrics by name.

    Args:
        names: Names as :func:`make_metric` takes them.
        weights: Files that the user names, by the keys that ``gic weights`` lists.
        device: Where the networks run.

    Returns:
        Metrics of single images, metrics of all images, and why the others cannot be computed, by name.

    Raises:
        ConfigError: If a name is unknown, or a file that the user names is missing or wrong.
    """
    for name in names:
        check_metric_name(name)
    named = named_files(weights)
    images: list[ImageMetric] = []
    sets: list[SetMetric] = []
    missing: dict[str, str] = {}
    extractors: dict[int, InceptionFeatures] = {}
    for name in dict.fromkeys(names):
        try:
            metric = make_metric(name, weights, device, extractors=extractors)
        except GicError as error:
            unavailable = isinstance(error, (MissingWeightsError, MissingExtraError))
            if not unavailable and any(key in named for key in (name, *METRICS.get(name, ()))):
                raise
            missing[name] = str(error)
            continue
        if isinstance(metric, SetMetric):
            sets.append(metric)
        else:
            images.append(metric)
    return images, sets, missing
