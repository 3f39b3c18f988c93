"""Base classes of metrics: of one image, or of all images together (DESIGN 10).

Each has a :class:`MetricInfo`: the network, the weights with their hash, the library and its version.
Images are uint8, as a file decodes to. A subclass of :class:`ImageMetric` or
:class:`SetMetric` can be used wherever a metric is named, by its ``class_path``::

    class Loudness(ImageMetric):
        info = MetricInfo("loudness", "Loudness", False, "image", "mine 1.0")
        needs_reference = False

        def measure(self, x_hat, x):
            return float(x_hat.float().std())
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from gic.errors import DataError


@dataclass(frozen=True)
class MetricInfo:
    """A metric and what identifies it (DESIGN 10).

    Attributes:
        name: For keys and files, for example ``lpips_alex``.
        label: For people, for example ``LPIPS (alex)``.
        higher_better: Its direction.
        kind: ``image``: one value for each image, averaged; ``set``: one value for all images together.
        identity: Network, weights (file and hash), patch size, library and version.
        unit: For example ``dB``; empty for none.
    """

    name: str
    label: str
    higher_better: bool
    kind: Literal["image", "set"]
    identity: str
    unit: str = ""


@contextmanager
def exactly(device: torch.device) -> Iterator[None]:
    """Compute in single precision, independent of the codec's, and deterministically."""
    cudnn = torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True, allow_tf32=False)
    with torch.no_grad(), torch.autocast(device.type, enabled=False), cudnn:
        yield


@dataclass(frozen=True)
class Resources:
    """What a metric may need to start.

    Attributes:
        device: Where its networks run.
        named: Files of weights that the user names, by key.
        download: Whether missing weights may be downloaded.
        shared: Objects that metrics of one run share, such as feature extractors, by key.
    """

    device: str = "cpu"
    named: Mapping[str, Path] = field(default_factory=dict)
    download: bool = True
    shared: dict[Any, Any] = field(default_factory=dict)


class Metric(ABC):
    """Base class of metrics.

    Attributes:
        info: Description of the metric; set at the latest by :meth:`start`.
    """

    info: MetricInfo

    def start(self, resources: Resources) -> None:  # noqa: B027
        """Load networks, if there are any. Called once, before the first image.

        Raises:
            ConfigError: If the weights are not available.
            MissingExtraError: If a package is missing.
        """


class ImageMetric(Metric):
    """A metric of one image.

    Attributes:
        needs_reference: Whether it compares with the original.
        smallest: Shortest side of images for which it is defined, in pixels.
    """

    needs_reference: bool = True
    smallest: int = 1

    def __call__(self, x_hat: Tensor, x: Tensor) -> float | None:
        """Measure one image.

        Args:
            x_hat: Reconstruction, uint8 (3, H, W), on the metric's device.
            x: Original, like ``x_hat``; ignored by no-reference metrics.

        Returns:
            The value, None where it is not defined: for small images, and for PSNR of equal ones.

        Raises:
            DataError: If the metric fails on this image.
        """
        if min(x_hat.shape[-2:]) < self.smallest:
            return None
        try:
            with exactly(x_hat.device):
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


class SetMetric(Metric):
    """A distance between the distributions of features of all reconstructions and of all originals.

    Attributes:
        features_identity: Identifies the features; metrics with equal identities share them. Set by :meth:`start`.
    """

    features_identity: str

    @abstractmethod
    def features(self, image: Tensor) -> NDArray[np.float32]:
        """Features (N, D) of an image, uint8 (3, H, W), on the metric's device; N may be 0 for small images."""

    @abstractmethod
    def value(self, features_x_hat: NDArray[np.float32], features_x: NDArray[np.float32]) -> float:
        """The distance, from the features of all images, each (N, D) with N >= 2."""
