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

from gic.errors import DataError, words_of


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
        enough: For kind ``set``: fewest patches whose value may be compared with values over other images.
    """

    name: str
    label: str
    higher_better: bool
    kind: Literal["image", "set"]
    identity: str
    unit: str = ""
    enough: int = 0

    def caution(self, patches: int) -> str:
        """What a value over so many patches must not be used for; empty if there are enough."""
        if patches >= self.enough:
            return ""
        return (
            f"{self.label} is over {patches} patch{'' if patches == 1 else 'es'}: below {self.enough} it must not be "
            "compared with values over other images"
        )


class NoValueError(Exception):
    """A metric is not defined for an image; the text says why."""


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


FAILURES = (ArithmeticError, AssertionError, LookupError, MemoryError, RuntimeError, TypeError, ValueError)
"""What libraries raise for images that their metrics are not defined for."""
MACHINE_FAILS = ("out of memory", "allocate memory", "CUDA error", "cuDNN")
"""In texts of errors that have nothing to do with the image."""


class ImageMetric(Metric):
    """A metric of one image.

    Attributes:
        needs_reference: Whether it compares with the original.
        smallest: Shortest side of images for which it is defined, in pixels.
    """

    needs_reference: bool = True
    smallest: int = 1

    def __call__(self, x_hat: Tensor, x: Tensor) -> float | None:
        """The value of one image; None where :meth:`judge` gives a reason."""
        value = self.judge(x_hat, x)
        return None if isinstance(value, str) else value

    def judge(self, x_hat: Tensor, x: Tensor) -> float | str:
        """Measure one image.

        Args:
            x_hat: Reconstruction, uint8 (3, H, W), on the metric's device.
            x: Original, like ``x_hat``; ignored by no-reference metrics.

        Returns:
            The value, finite; or why there is none for this image: it is too small, its pixels are all equal, ...

        Raises:
            DataError: If the machine fails, not the metric: it has too little memory, or its GPU stops.
        """
        height, width = x_hat.shape[-2:]
        if min(height, width) < self.smallest:
            return f"{width} x {height} pixels are too few: it takes sides of {self.smallest}"
        try:
            with exactly(x_hat.device):
                value = self.measure(x_hat, x)
        except NoValueError as reason:
            return str(reason)
        except FAILURES as error:
            text = words_of(error)[:200]
            if isinstance(error, MemoryError) or any(sign in text for sign in MACHINE_FAILS):
                raise DataError(f"{self.info.name} fails on an image of {width} x {height} pixels: {text}") from error
            return f"its computation fails: {text}"
        return value if math.isfinite(value) else f"its computation gives {value}"

    @abstractmethod
    def measure(self, x_hat: Tensor, x: Tensor) -> float:
        """The value of one image that is large enough.

        Raises:
            NoValueError: If there is none.
        """


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
