"""Numbers for two pictures: PSNR by NumPy, and what PyTorch computes where it is installed."""

from __future__ import annotations

import math
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from gic.errors import install_command
from gic.quality.table import METRICS
from gic.quality.weights import missing_files

if TYPE_CHECKING:
    from gic.quality.metric import ImageMetric

_ROWS = 256  # rows of pixels that are compared at a time


def psnr(image: Image.Image, original: Image.Image) -> float | None:
    """Peak signal-to-noise ratio of two pictures of mode "RGB", in dB; None where they are equal."""
    width, height = original.size
    total = 0
    for top in range(0, height, _ROWS):
        box = (0, top, width, min(height, top + _ROWS))
        a, b = (np.asarray(each.crop(box)).astype(np.int32) for each in (image, original))
        total += int(np.square(a - b).sum(dtype=np.int64))
    return 10 * math.log10(255**2 * 3 * width * height / total) if total else None


class Judges:
    """The metrics that PyTorch computes, as far as they can be computed here.

    Attributes:
        names: Those that can.
        advice: What to install for the others, in one line; empty if there are none.
    """

    def __init__(self) -> None:
        self.names: list[str] = []
        self._made: dict[str, ImageMetric] = {}
        wanted = []
        if find_spec("torch") is None:
            wanted.append(f"SSIMULACRA 2 needs PyTorch: {install_command('torch')}")
        else:
            self.names.append("ssimulacra2")
        if not self.names or find_spec("lpips") is None:
            wanted.append(f"LPIPS needs more: {install_command('train')}")
        elif missing_files(["lpips_alex"]):
            wanted.append("LPIPS needs its weights: gic weights lpips_alex --download")
        else:
            self.names.append("lpips_alex")
        self.advice = "; ".join(wanted)

    @property
    def described(self) -> list[dict[str, Any]]:
        """Name, label and direction of each metric, for the page; PSNR comes first."""
        names = ["psnr", *self.names]
        return [{"name": n, "label": METRICS[n].label, "higher": METRICS[n].higher_better} for n in names]

    def measure(self, name: str, image: Image.Image, original: Image.Image) -> float | None:
        """A metric of two pictures of mode "RGB"; None where it has no value for them.

        Raises:
            GicError: If its weights cannot be used, or a package is missing.
        """
        import torch

        from gic.pictures.arrays import to_array
        from gic.quality.metrics import make_metric

        if name not in self._made:
            self._made[name] = make_metric(name, download=False)  # type: ignore[assignment]  # of one image
        x_hat, x = (torch.from_numpy(to_array(each)) for each in (image, original))
        with torch.no_grad():
            return self._made[name](x_hat, x)
