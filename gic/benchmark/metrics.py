"""The metrics of the benchmark: of single images, and of all images together (DESIGN 10).

Each says what it is (:class:`gic.benchmark.results.MetricInfo`): the network, the weights with their hash, the library
and its version. Images are uint8, so that what is measured is what a file decodes to. A metric that cannot be had is
named with the reason, never left out or replaced.
"""

from __future__ import annotations

import math
import re
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from gic import __version__
from gic.benchmark.results import MetricInfo
from gic.benchmark.ssimulacra2 import SMALLEST as SMALLEST_SSIMULACRA2
from gic.benchmark.ssimulacra2 import ssimulacra2
from gic.errors import ConfigError, DataError, GicError, MissingExtraError, require
from gic.images import as_float
from gic.metric_weights import (
    METRICS,
    MissingWeightsError,
    check_pyiqa_name,
    find,
    fingerprint,
    library_weights,
    named_files,
)
from gic.perceptual import LPIPSNetwork, build_lpips, build_pyiqa

PATCH = 256
"""Side of the patches that FID and KID compare, in pixels."""
BATCH = 16
"""Patches that go through a network together."""
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


@contextmanager
def _exactly(device: torch.device) -> Iterator[None]:
    """In single precision, whatever the codec runs in, and the same at every call."""
    cudnn = torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True, allow_tf32=False)
    with torch.no_grad(), torch.autocast(device.type, enabled=False), cudnn:
        yield


class ImageMetric(ABC):
    """A metric of one image.

    Attributes:
        higher_better: Its direction, for metrics that are not pyiqa's; :func:`higher_better` gives that of any metric.
        info: What it is.
        needs_reference: Whether it compares with the original.
        smallest: Shortest side of images for which it is defined, in pixels.
    """

    higher_better: ClassVar[bool]
    info: MetricInfo
    needs_reference: bool = True
    smallest: int = 1

    def __call__(self, x_hat: Tensor, x: Tensor) -> float | None:
        """Measure one image.

        Args:
            x_hat: Reconstruction, uint8 (3, H, W), on the metric's device.
            x: Original, alike; not looked at where no reference is needed.

        Returns:
            The value, None where it is not defined: for small images, and for PSNR of equal ones.

        Raises:
            DataError: If the metric fails on this image.
        """
        if min(x_hat.shape[-2:]) < self.smallest:
            return None
        try:
            with _exactly(x_hat.device):
                value = self.measure(x_hat, x)
        except torch.OutOfMemoryError:
            raise
        except (AssertionError, RuntimeError, ValueError, IndexError) as error:
            size = f"{x_hat.shape[-1]} x {x_hat.shape[-2]} pixels"
            raise DataError(f"{self.info.name} fails on an image of {size}: {error}") from error
        return value if math.isfinite(value) else None

    @abstractmethod
    def measure(self, x_hat: Tensor, x: Tensor) -> float:
        """The value of one image that is large enough."""


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
    """SSIMULACRA 2, see :mod:`gic.benchmark.ssimulacra2`."""

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


# --- sets -------------------------------------------------------------------------------------------------------------


def patches(image: Tensor) -> Tensor:
    """Patches of an image by HiFiC's protocol (Mentzer et al. 2020, A.7).

    Two grids of patches without overlap, the second shifted by half a patch in both directions; whole patches only, so
    that an image with a side below :data:`PATCH` has none.

    Args:
        image: uint8 (3, H, W).

    Returns:
        (N, 3, PATCH, PATCH).

    >>> len(patches(torch.zeros(3, 512, 768, dtype=torch.uint8)))
    8
    """
    grids = []
    for shift in (0, PATCH // 2):
        part = image[:, shift:, shift:]
        if min(part.shape[-2:]) >= PATCH:
            windows = part.unfold(1, PATCH, PATCH).unfold(2, PATCH, PATCH)  # (3, rows, columns, PATCH, PATCH)
            grids.append(windows.permute(1, 2, 0, 3, 4).reshape(-1, 3, PATCH, PATCH))
    return torch.cat(grids) if grids else image.new_empty((0, 3, PATCH, PATCH))


class InceptionFeatures:
    """Features of an image's patches from the Inception-v3 of FID, as torchmetrics runs it.

    Args:
        dimensions: 768 or 2048, the network's layer.
        named: Files that the user names, by key.
        device: Where it runs.
        download: Whether missing weights may be downloaded.

    Raises:
        ConfigError: If the weights cannot be had, or are zero below the layer.
    """

    def __init__(self, dimensions: Literal[768, 2048], named: Mapping[str, Path], device: str, download: bool) -> None:
        require("torch_fidelity")
        inception = require("torchmetrics.image.fid").NoTrainInceptionV3
        key = "fid" if dimensions == 2048 else "fid768"
        path = find(key, named)
        with library_weights(key, named, download) as files:
            files += [] if path is None else [path]
            network: nn.Module = inception(
                "inception-v3-compat",
                [str(dimensions)],
                feature_extractor_weights_path=None if path is None else str(path),
            )
        top = [values for name, values in network.named_parameters() if re.match(r"Mixed_7.*conv\.weight", name)]
        if dimensions == 2048 and not all(values.any() for values in top):
            raise ConfigError(
                f"{files[0]} is true up to the 768 features only and zero above: fid and kid need the whole network, "
                "fid768 and kid768 do not"
            )
        self.dimensions = dimensions
        self._network = network.to(device)
        self.identity = (
            f"Inception-v3 of FID, {dimensions} features, {fingerprint(files)}, "
            f"torchmetrics {version('torchmetrics')}, torch-fidelity {version('torch-fidelity')}, "
            f"patches {PATCH} x {PATCH}, two grids shifted by {PATCH // 2}"
        )

    def __call__(self, image: Tensor) -> NDArray[np.float32]:
        """Features (patches, dimensions) of an image, uint8 (3, H, W), on the extractor's device."""
        with _exactly(image.device):
            parts = [
                self._network(batch.contiguous()).float() for batch in torch.split(patches(image), BATCH) if len(batch)
            ]
        features = torch.cat(parts) if parts else torch.empty(0, self.dimensions)
        result: NDArray[np.float32] = features.cpu().numpy()
        return result


class SetMetric(ABC):
    """A distance between the distributions of the patches of all reconstructions and of all originals.

    Args:
        extractor: Features that it compares; metrics of one extractor share them.
    """

    higher_better: ClassVar[bool] = False
    distance: ClassVar[str]
    """Its name without the layer."""
    method: ClassVar[str]
    """How it is computed."""

    def __init__(self, extractor: InceptionFeatures) -> None:
        self.extractor = extractor
        layer = "" if extractor.dimensions == 2048 else str(extractor.dimensions)
        label = f"{self.distance.upper()}{'-' if layer else ''}{layer} ({PATCH}x{PATCH} patches)"
        identity = f"{self.method}; {extractor.identity}"
        self.info = MetricInfo(f"{self.distance}{layer}", label, self.higher_better, "set", identity)

    @property
    def features_identity(self) -> str:
        """What the features are; equal for metrics that share them."""
        return self.extractor.identity

    def features(self, image: Tensor) -> NDArray[np.float32]:
        """Features (patches, D) of an image, uint8 (3, H, W); none for an image with a side below :data:`PATCH`."""
        return self.extractor(image)

    @abstractmethod
    def value(self, features_x_hat: NDArray[np.float32], features_x: NDArray[np.float32]) -> float:
        """The distance, from the features of the patches of all images, each (N, D) with N >= 2."""


class FID(SetMetric):
    """Fréchet distance between the normal distributions with the mean and covariance of the features."""

    distance = "fid"
    method = "FID in float64"

    def value(self, features_x_hat: NDArray[np.float32], features_x: NDArray[np.float32]) -> float:
        """See :meth:`SetMetric.value`; 0 for equal sets."""
        return frechet_distance(_double(features_x_hat), _double(features_x))


class KID(SetMetric):
    """Squared maximum mean discrepancy with the kernel (a.b / D + 1)^3."""

    distance = "kid"
    method = "KID, unbiased, one estimate over all patches, cubic kernel, in float64"

    def value(self, features_x_hat: NDArray[np.float32], features_x: NDArray[np.float32]) -> float:
        """See :meth:`SetMetric.value`; 0 in expectation for equal distributions, so that it may be negative."""
        return squared_mmd(_double(features_x_hat), _double(features_x))


def _double(features: NDArray[np.float32]) -> Tensor:
    if len(features) < 2:
        raise DataError(f"FID and KID compare at least two patches of {PATCH} x {PATCH} pixels; there are fewer")
    return torch.from_numpy(features).double()


def frechet_distance(a: Tensor, b: Tensor) -> float:
    """Fréchet distance between normal distributions fitted to samples (N, D) and (M, D), float64.

    |mean a - mean b|^2 + tr(A + B - 2 (A B)^(1/2)), covariances A and B. With centred samples, A = F'F and B = G'G, the
    trace of the root is the sum of the singular values of F G': no root of a singular matrix is taken.

    >>> samples = torch.tensor([[0.0, 0.0], [2.0, 0.0], [0.0, 2.0], [2.0, 2.0]]).double()
    >>> round(frechet_distance(samples, samples + 1), 6)
    2.0
    """
    means, roots = [], []
    for samples in (a, b):
        mean = samples.mean(0)
        root = (samples - mean) / math.sqrt(len(samples) - 1)
        if len(root) > root.shape[1]:
            root = torch.linalg.qr(root, mode="r").R  # F'F = R'R
        means.append(mean)
        roots.append(root)
    shift = (means[0] - means[1]).square().sum()
    overlap = torch.linalg.svdvals(roots[0] @ roots[1].T).sum()
    return float(shift + roots[0].square().sum() + roots[1].square().sum() - 2 * overlap)


def squared_mmd(a: Tensor, b: Tensor) -> float:
    """Unbiased estimate of the squared maximum mean discrepancy of samples (N, D) and (M, D), cubic kernel, float64."""
    n, m = len(a), len(b)

    def kernel(left: Tensor, right: Tensor) -> Tensor:
        return (left @ right.T / a.shape[1] + 1) ** 3

    aa, bb = kernel(a, a), kernel(b, b)
    within = (aa.sum() - aa.trace()) / (n * (n - 1)) + (bb.sum() - bb.trace()) / (m * (m - 1))
    return float(within - 2 * kernel(a, b).mean())


# --- making -----------------------------------------------------------------------------------------------------------


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
