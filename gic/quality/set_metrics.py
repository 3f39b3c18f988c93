"""Metrics of all images together: FID and KID on patches, by HiFiC's protocol (DESIGN 10)."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import ClassVar, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from gic.errors import ConfigError, DataError, require
from gic.quality.metric import MetricInfo, Resources, SetMetric, exactly
from gic.quality.table import METRICS
from gic.quality.weights import find, fingerprint, library_weights

PATCH = 256
"""Side of the patches that FID and KID compare, in pixels."""
BATCH = 16
"""Patches in one batch of the network."""


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
        ConfigError: If the weights are not available, or are zero below the layer.
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
                f"{files[0]} holds weights up to the 768 features and zeros above: fid and kid need the whole network, "
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
        with exactly(image.device):
            parts = [
                self._network(batch.contiguous()).float() for batch in torch.split(patches(image), BATCH) if len(batch)
            ]
        features = torch.cat(parts) if parts else torch.empty(0, self.dimensions)
        result: NDArray[np.float32] = features.cpu().numpy()
        return result


class _OfPatches(SetMetric):
    """A distance between the patches of all reconstructions and of all originals.

    Args:
        dimensions: 768 or 2048, the layer whose features it compares.
    """

    kind: ClassVar[str]
    """Its name without the layer."""
    method: ClassVar[str]
    """How it is computed."""
    enough: int
    """See :class:`gic.quality.metric.MetricInfo`."""

    def __init__(self, dimensions: Literal[768, 2048] = 2048) -> None:
        self.dimensions = dimensions

    def start(self, resources: Resources) -> None:
        """Load the network, or share the one of another metric."""
        key = (InceptionFeatures, self.dimensions)
        if key not in resources.shared:
            resources.shared[key] = InceptionFeatures(
                self.dimensions, resources.named, resources.device, resources.download
            )
        self.extractor: InceptionFeatures = resources.shared[key]
        name = self.kind + ("" if self.dimensions == 2048 else str(self.dimensions))
        label = f"{METRICS[name].label} ({PATCH}x{PATCH} patches)"
        identity = f"{self.method}; {self.extractor.identity}"
        self.info = MetricInfo(name, label, METRICS[name].higher_better, "set", identity, enough=self.enough)
        self.features_identity = self.extractor.identity

    def features(self, image: Tensor) -> NDArray[np.float32]:
        """Features (patches, D) of an image, uint8 (3, H, W); none for an image with a side below :data:`PATCH`."""
        return self.extractor(image)


class FID(_OfPatches):
    """Fréchet distance between the normal distributions with the mean and covariance of the features."""

    kind = "fid"
    method = "FID in float64"

    def __init__(self, dimensions: Literal[768, 2048] = 2048) -> None:
        super().__init__(dimensions)
        self.enough = dimensions  # with fewer patches than features, the covariance has no full rank

    def value(self, features_x_hat: NDArray[np.float32], features_x: NDArray[np.float32]) -> float:
        """See :meth:`gic.quality.metric.SetMetric.value`; 0 for equal sets."""
        return frechet_distance(_double(features_x_hat), _double(features_x))


class KID(_OfPatches):
    """Squared maximum mean discrepancy with the kernel (a.b / D + 1)^3."""

    kind = "kid"
    method = "KID, unbiased, one estimate over all patches, cubic kernel, in float64"
    enough = 100
    """A patch and its reconstruction are no independent samples, which lowers the value: that of Kodak patches as JPEG
    of quality 10 by about 7 % with 100 patches, by 27 % with 25; with 2 it is negative."""

    def value(self, features_x_hat: NDArray[np.float32], features_x: NDArray[np.float32]) -> float:
        """See :class:`gic.quality.metric.SetMetric`; 0 in expectation for equal sets, so that it may be negative."""
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
