"""Regions of interest: a mask to the offsets of blocks (DESIGN 11)."""

from __future__ import annotations

import math

import torch
from torch.nn import functional as F

from gic.bitstream.container import LEVELS_PER_OCTAVE, MAX_REGION, REGION_STEP, TILE_UNIT
from gic.codec.pixels import ImageLike, read_pixels
from gic.errors import ConfigError, ImageError

ROI_STRENGTH = 2.0
"""Octaves of q between black and white."""
_OF_OCTAVE = LEVELS_PER_OCTAVE // REGION_STEP


def regions_of(mask: ImageLike, width: int, height: int, strength: float = ROI_STRENGTH) -> bytes:
    """Offsets of the blocks of an image, see :class:`gic.bitstream.container.GicFile`.

    Args:
        mask: White is finest; a block takes the brightest pixel in it.
        width: Of the image, in pixels.
        height: Of the image.
        strength: Octaves of q between black and white.

    Raises:
        ImageError: If the mask cannot be read, or has another size.
        ConfigError: If the strength lies outside its range.
    """
    limit = MAX_REGION / _OF_OCTAVE
    if not (math.isfinite(strength) and 0 < strength <= limit):
        raise ConfigError(
            f"the strength of a region must lie above 0 and not above {limit:g} octaves, not {strength:g}"
        )
    pixels = read_pixels(mask, False)[0]
    if pixels.shape[1:] != (height, width):
        raise ImageError(
            f"the mask has {pixels.shape[2]} x {pixels.shape[1]} pixels, the picture {width} x {height}: "
            "make it of the same size"
        )
    white = F.max_pool2d(pixels.float().mean(0)[None], TILE_UNIT, ceil_mode=True)[0] / 255
    return bytes(torch.round((1 - white) * strength * _OF_OCTAVE).to(torch.uint8).flatten().tolist())
