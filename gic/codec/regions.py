"""Regions of interest: a mask to the offsets of blocks (DESIGN 11)."""

from __future__ import annotations

import io
import math
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from gic.bitstream.container import LEVELS_PER_OCTAVE, MAX_REGION, REGION_STEP, TILE_UNIT
from gic.codec.pixels import ImageLike, is_tensor, read_pixels
from gic.errors import ConfigError, ImageError, words_of

MaskLike = ImageLike | NDArray[Any]
"""A mask: any picture, or an array (H, W) of uint8 or bool."""
ROI_STRENGTH = 2.0
"""Octaves of q between black and white."""
_OF_OCTAVE = LEVELS_PER_OCTAVE // REGION_STEP


def regions_of(mask: MaskLike, width: int, height: int, strength: float = ROI_STRENGTH) -> bytes:
    """Offsets of the blocks of an image, see :class:`gic.bitstream.container.GicFile`.

    Args:
        mask: White is finest, transparent is black; a block takes the brightest pixel in it.
        width: Of the image, in pixels.
        height: Of the image.
        strength: Octaves of q between black and white.

    Raises:
        ImageError: If the mask cannot be read, or has another size.
        ConfigError: If the strength lies outside its range.
    """
    limit = MAX_REGION / _OF_OCTAVE
    if not (math.isfinite(strength) and 1 / _OF_OCTAVE <= strength <= limit):
        raise ConfigError(
            f"the strength of a region must lie in {1 / _OF_OCTAVE:g} to {limit:g} octaves, not {strength:g}"
        )
    pixels = _pixels(mask, (width, height))
    if pixels.shape[1:] != (height, width):
        raise ImageError(
            f"the mask has {pixels.shape[2]} x {pixels.shape[1]} pixels, the picture {width} x {height}: "
            "make it of the same size"
        )
    rows, columns = -(-height // TILE_UNIT), -(-width // TILE_UNIT)
    grey = np.zeros((rows * TILE_UNIT, columns * TILE_UNIT), np.float32)
    grey[:height, :width] = pixels.mean(0, dtype=np.float32)
    white = grey.reshape(rows, TILE_UNIT, columns, TILE_UNIT).max((1, 3)) / 255
    return bytes(np.round((1 - white) * strength * _OF_OCTAVE).astype(np.uint8).ravel())


def _pixels(mask: MaskLike, size: tuple[int, int]) -> NDArray[np.uint8]:
    """Pixels of a mask, uint8 (3, H, W); transparent ones are black if it has the ``size`` that it should have."""
    if isinstance(mask, np.ndarray) and mask.ndim == 2 and mask.dtype in (np.uint8, np.bool_):
        grey = mask if mask.dtype == np.uint8 else mask.astype(np.uint8) * 255
        mask = grey
    try:
        if isinstance(mask, (str, Path)):
            mask = Path(mask).read_bytes()
        elif not isinstance(mask, (np.ndarray, Image.Image, bytes)) and not is_tensor(mask):
            mask = mask.read()  # type: ignore[union-attr]  # an open file
        if isinstance(mask, bytes):
            with suppress(UnidentifiedImageError), Image.open(io.BytesIO(mask)) as opened:
                mask = _on_black(opened, size) or mask
        elif isinstance(mask, Image.Image):
            mask = _on_black(mask, size) or mask
        return read_pixels(mask, False)[0]
    except (ImageError, OSError, ValueError) as error:
        raise ImageError(f"the mask is no picture that can be read: {words_of(error)}") from error


def _on_black(image: Image.Image, size: tuple[int, int]) -> Image.Image | None:
    """An image with transparency on black; None if it has none, or another size, which is not decoded."""
    if not image.has_transparency_data or image.size != size:
        return None
    layer = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", size, (0, 0, 0, 255)), layer).convert("RGB")
