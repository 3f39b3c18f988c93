"""Between Pillow's pictures and NumPy's arrays (3, H, W) of uint8."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from gic.errors import ImageError


def to_array(image: Image.Image) -> NDArray[np.uint8]:
    """Copy a picture into an array.

    Args:
        image: Pillow image of mode "RGB".

    Returns:
        Shape (3, H, W), uint8.

    Raises:
        ImageError: If the mode is not "RGB"; :func:`gic.pictures.load.load_rgb` brings any picture there.
    """
    if image.mode != "RGB":
        raise ImageError(f"expected an image of mode RGB, not {image.mode}: read it with gic.pictures.load.load_rgb")
    return np.array(image).transpose(2, 0, 1).copy()


def from_array(pixels: NDArray[np.uint8]) -> Image.Image:
    """Copy an array (3, H, W), uint8, into a Pillow image of mode "RGB"."""
    return Image.fromarray(np.ascontiguousarray(pixels.transpose(1, 2, 0)))
