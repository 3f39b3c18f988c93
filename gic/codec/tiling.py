"""How a picture is cut up: one piece, or tiles with a halo around each and a cross-fade over their borders.

An image of up to :data:`PIECE_PIXELS` is coded in one piece. A larger one is cut into tiles whose latents are disjoint
and coded apart, so that a tile can be decoded alone and no bits are spent twice; the transforms see a halo of the
neighbours on both sides, and reconstructions are cross-faded over the borders, so that no seam shows.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from gic.bitstream.container import TILE_UNIT

PIECE_PIXELS = 1 << 21
"""Largest padded image that is coded in one piece, in pixels (1920 x 1080 fits)."""
TILE = 1024
"""Side of a tile of larger images, in pixels."""
MAX_PIECE_PIXELS, MAX_TILE = 1 << 23, 1 << 11
"""Largest padded image in one piece and largest side of a tile on request: they bound the decoder's memory."""
HALO = 64
"""Context that the transforms see around a tile, in pixels."""
RAMP = 32
"""Half width of the cross-fade at a tile border, in pixels."""


class Tile(NamedTuple):
    """Place of a tile: its column and row, and its box in pixels of the original image."""

    column: int
    row: int
    left: int
    top: int
    right: int
    bottom: int


def tiles_of(width: int, height: int, tile: int) -> list[Tile]:
    """Tiles of an image, row by row; one that is the whole image if ``tile`` is 0."""
    if tile == 0:
        return [Tile(0, 0, 0, 0, width, height)]
    return [
        Tile(i, j, x, y, min(x + tile, width), min(y + tile, height))
        for j, y in enumerate(range(0, height, tile))
        for i, x in enumerate(range(0, width, tile))
    ]


def tile_side(width: int, height: int) -> int:
    """Side of the tiles that an image of this size is cut into, in pixels; 0 for one piece."""
    return 0 if _padded_pixels(width, height) <= PIECE_PIXELS else TILE


def piece_problem(width: int, height: int, tile: int) -> str | None:
    """Why an image cannot be coded with tiles of this side, or None if it can."""
    if tile > MAX_TILE:
        return f"tiles of {tile} pixels are larger than {MAX_TILE}"
    if tile == 0 and _padded_pixels(width, height) > MAX_PIECE_PIXELS:
        return f"an image of {width} x {height} pixels is too large for one piece: it takes tiles"
    return None


def _padded_pixels(width: int, height: int) -> int:
    return -(-width // TILE_UNIT) * -(-height // TILE_UNIT) * TILE_UNIT**2


def share(place: Tile, top: int, left: int, size: tuple[int, int], width: int, height: int) -> NDArray[np.float32]:
    """Share of a tile's reconstruction in the picture: 1 inside, a ramp over each border with a neighbour.

    Args:
        place: The tile.
        top: Row of the picture at which its reconstruction, with the halo, begins.
        left: Column at which it begins.
        size: Height and width of the reconstruction (h, w), in pixels.
        width: Of the picture, in pixels.
        height: Of the picture.

    Returns:
        (h, w) in [0, 1]; the shares of all tiles sum up to 1 at every pixel.
    """

    def ramp(start: int, count: int, low: int, high: int, total: int) -> NDArray[np.float32]:
        at = np.arange(start, start + count) + 0.5
        rise = ((at - low + RAMP) / (2 * RAMP)).clip(0, 1) if low > 0 else np.ones(count)
        fall = ((high + RAMP - at) / (2 * RAMP)).clip(0, 1) if high < total else np.ones(count)
        return (rise * fall).astype(np.float32)

    rows = ramp(top, size[0], place.top, place.bottom, height)
    columns = ramp(left, size[1], place.left, place.right, width)
    return rows[:, None] * columns[None, :]
