"""The metrics of single images, and how metrics are made by name (DESIGN 10).

A metric that is not available is reported with the reason, never left out silently or replaced.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from importlib import import_module
from importlib.metadata import version
from typing import Any

import torch
from torch import Tensor

from gic.errors import ConfigError, GicError, MissingExtraError, require
from gic.pictures.tensors import as_float
from gic.quality.metric import ImageMetric, Metric, MetricInfo, NoValueError, Resources, SetMetric
from gic.quality.networks import LPIPSNetwork, build_lpips, build_pyiqa
from gic.quality.ssimulacra2 import ssimulacra2
from gic.quality.table import METRICS, Entry
from gic.quality.weights import MissingWeightsError, check_pyiqa_name, fingerprint, named_files
from gic.version import __version__

_NOT_OF_ONE_IMAGE = ("fid", "sfid", "fid_dinov2", "inception_score", "clipscore", "fgresq_pair")


def _info(name: str, identity: str, unit: str = "") -> MetricInfo:
    entry = METRICS[name]
    return MetricInfo(name, entry.label, entry.higher_better, "image", f"{name}: {identity}", unit)


class PSNR(ImageMetric):
    """Peak signal-to-noise ratio over all pixels and the three channels of 8-bit RGB."""

    info = _info("psnr", "mean squared error over 8-bit RGB, peak 255", "dB")

    def measure(self, x_hat: Tensor, x: Tensor) -> float:
        """The value in dB."""
        difference = x_hat.to(torch.int32) - x.to(torch.int32)
        error = float((difference * difference).sum(dtype=torch.int64)) / difference.numel()
        if not error:
            raise NoValueError("the picture equals its original, so that it is infinite")
        return 10 * math.log10(255**2 / error)


class MSSSIM(ImageMetric):
    """Multi-scale structural similarity, mean over the channels of RGB; five scales need sides above 160 pixels."""

    smallest = METRICS["ms_ssim"].smallest

    def start(self, resources: Resources) -> None:
        """Import the library."""
        self._function = require("pytorch_msssim").ms_ssim
        self.info = _info("ms_ssim", f"pytorch-msssim {version('pytorch-msssim')}, 8-bit RGB, window 11, 5 scales")

    def measure(self, x_hat: Tensor, x: Tensor) -> float:
        """The value, 1 for equal images."""
        return float(self._function(x_hat[None].float(), x[None].float(), data_range=255))


class SSIMULACRA2(ImageMetric):
    """SSIMULACRA 2, see :mod:`gic.quality.ssimulacra2`."""

    smallest = METRICS["ssimulacra2"].smallest
    info = _info("ssimulacra2", f"version 2.1, gic {__version__}, float64")

    def measure(self, x_hat: Tensor, x: Tensor) -> float:
        """The score, 100 for equal images."""
        return ssimulacra2(x_hat, x)


class LPIPS(ImageMetric):
    """LPIPS, version 0.1.

    Args:
        net: Backbone.
        moved: Rows and columns left out at the top and at the left. AlexNet's first layer has a stride of 4: a decoder
            that fits that grid alone scores worse off the grid.
    """

    def __init__(self, net: LPIPSNetwork = "alex", moved: int = 0) -> None:
        self._net, self._moved = net, moved
        self._name = f"lpips_{net}" + ("_moved" if moved else "")
        self.smallest = METRICS[self._name].smallest

    def start(self, resources: Resources) -> None:
        """Load the network."""
        network, files = build_lpips(self._net, resources.named, resources.download)
        self._network = network.to(resources.device)
        identity = f"lpips {version('lpips')}, v0.1, backbone {fingerprint(files)}"
        if self._moved:
            identity += f", without the first {self._moved} rows and columns"
        self.info = _info(self._name, identity)

    def measure(self, x_hat: Tensor, x: Tensor) -> float:
        """The distance, 0 for equal images."""
        pair = (2 * as_float(each[:, self._moved :, self._moved :])[None] - 1 for each in (x_hat, x))
        return float(self._network(*pair))


class Pyiqa(ImageMetric):
    """A metric of pyiqa as its library computes it.

    Args:
        metric: Name in pyiqa.
    """

    def __init__(self, metric: str) -> None:
        self._metric = metric
        self.smallest = METRICS[metric].smallest if metric in METRICS else 1
        self._varied = metric in METRICS and METRICS[metric].varied

    def start(self, resources: Resources) -> None:
        """Load the network."""
        name = self._metric
        network, files = build_pyiqa(name, resources.named, resources.download)
        self._network: Any = network.to(resources.device)
        self.needs_reference = network.metric_mode == "FR"
        identity = f"{name}: pyiqa {version('pyiqa')}, {type(network.net).__name__}, {fingerprint(files)}"
        entry = entry_of(name)
        self.info = MetricInfo(name, entry.label, entry.higher_better, "image", identity)

    def measure(self, x_hat: Tensor, x: Tensor) -> float:
        """The score."""
        if self._varied and bool((x_hat == x_hat[:, :1, :1]).all()):
            raise NoValueError("all pixels of the picture are equal")
        target, reference = as_float(x_hat)[None], as_float(x)[None]
        score: Tensor = self._network(target, reference) if self.needs_reference else self._network(target)
        return float(score)


# --- making -----------------------------------------------------------------------------------------------------------


def entry_of(name: str) -> Entry:
    """The table's entry of a metric, or one made from pyiqa's description.

    Raises:
        ConfigError: If there is no such metric; the text gives similar names.
        MissingExtraError: If it is pyiqa's, which is not installed.
    """
    if name in METRICS:
        return METRICS[name]
    check_metric_name(name)
    lower = require("pyiqa.default_model_configs").DEFAULT_CONFIGS[name].get("lower_better", False)
    return Entry("gic.quality.metrics.Pyiqa", name.upper(), not lower, {"metric": name})


def higher_better(name: str) -> bool:
    """Direction of a metric, without building it, so that its weights are not needed.

    Raises:
        ConfigError: If there is no such metric.
        MissingExtraError: If it is pyiqa's alone, which is not installed.

    >>> higher_better("psnr"), higher_better("fid768")
    (True, False)
    """
    return entry_of(name).higher_better


def check_metric_name(name: str) -> None:
    """Check that there is such a metric.

    Raises:
        ConfigError: If there is not; the text gives similar names.
    """
    if name in METRICS:
        return
    if "." in name:
        raise ConfigError(f"a metric of your own is named by its class: {{class_path: {name}}}, not {name!r}")
    check_pyiqa_name(name)
    if name in _NOT_OF_ONE_IMAGE:
        raise ConfigError(f"{name} of pyiqa does not judge single images")


def make_metric(
    metric: str | Metric,
    weights: Mapping[str, str] | None = None,
    device: str = "cpu",
    download: bool = True,
    shared: dict[Any, Any] | None = None,
) -> ImageMetric | SetMetric:
    """Make one metric, or start one that was made.

    Args:
        metric: A name that ``gic weights`` lists, a name in pyiqa, or a metric of your own.
        weights: Files that the user names, by the keys that ``gic weights`` lists.
        device: Where its networks run.
        download: Whether missing weights may be downloaded.
        shared: What the metrics of one run share, see :class:`gic.quality.metric.Resources`.

    Raises:
        ConfigError: If there is no such metric or its weights are not available.
        MissingExtraError: If a package is missing.
    """
    if isinstance(metric, str):
        entry = entry_of(metric)
        module, _, name = entry.class_path.rpartition(".")
        metric = getattr(import_module(module), name)(**entry.init_args)
    if not isinstance(metric, (ImageMetric, SetMetric)):
        raise ConfigError(f"a metric is a name, an ImageMetric or a SetMetric, not {type(metric).__name__}")
    metric.start(Resources(device, named_files(weights), download, {} if shared is None else shared))
    if not isinstance(getattr(metric, "info", None), MetricInfo):
        raise ConfigError(f"the metric {type(metric).__name__} has no description: give it an `info`, a MetricInfo")
    return metric


def make_metrics(
    metrics: Sequence[str | Metric], weights: Mapping[str, str] | None = None, device: str = "cpu"
) -> tuple[list[ImageMetric], list[SetMetric], dict[str, str]]:
    """Make metrics by name.

    Args:
        metrics: What :func:`make_metric` takes.
        weights: Files that the user names, by the keys that ``gic weights`` lists.
        device: Where the networks run.

    Returns:
        Metrics of single images, metrics of all images, and why the others cannot be computed, by name.

    Raises:
        ConfigError: If a name is unknown, or a file that the user names is missing or wrong.
    """
    for each in metrics:
        if isinstance(each, str):
            check_metric_name(each)
    named = named_files(weights)
    images: list[ImageMetric] = []
    sets: list[SetMetric] = []
    missing: dict[str, str] = {}
    shared: dict[Any, Any] = {}
    for each in dict.fromkeys(metrics):
        try:
            metric = make_metric(each, weights, device, shared=shared)
        except GicError as error:
            name = each if isinstance(each, str) else type(each).__name__
            keys = (name, *(METRICS[name].weights if name in METRICS else ()))
            unavailable = isinstance(error, (MissingWeightsError, MissingExtraError))
            if not unavailable and any(key in named for key in keys):
                raise
            missing[name] = str(error)
            continue
        if isinstance(metric, SetMetric):
            sets.append(metric)
        else:
            images.append(metric)
    return images, sets, missing
