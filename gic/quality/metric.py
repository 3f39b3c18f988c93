"""What a metric is: of one image, or of all images together (DESIGN 10).

A subclass of :class:`ImageMetric` or :class:`SetMetric` is a metric wherever one can be named, by its ``class_path``.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
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
