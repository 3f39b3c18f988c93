"""Bytes to pictures: symbols, the latent y_q, the reverse flow, g_s (DESIGN 3, 7, 8).

bytes -> z -> exact prior -> symbols -> y_q -> reverse flow -> y_hat -> g_s -> tiles -> pixels
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from gic.bitstream.chunks import Progressive
from gic.bitstream.coder import Code, Prior, level_field, level_value
from gic.bitstream.container import GicFile
from gic.bitstream.refinement import STEP
from gic.bitstream.tables import dither_values
from gic.codec.engine import Engine, tile_codes
from gic.codec.tiling import HALO, Tile, share, tiles_of
from gic.errors import FormatError
from gic.method import sde
from gic.runtime.networks import FloatArray, Latent


class Symbols(NamedTuple):
    """What a file holds of one tile: z (1, N, h/4, w/4), the prior, y (1, M, h, w), and the level of y.

    The level is its code, or an array like y where a progressive file ends between two levels.
    """

    z: NDArray[np.int32]
    prior: Prior
    y: NDArray[np.int32]
    code: Code


def decode_symbols(engine: Engine, file: GicFile, index: int, place: Tile) -> Symbols:
    """Symbols and prior of one tile, from its payload alone, and from its chunks as far as they are there.

    Raises:
        FormatError: If the payload is found to be damaged. The first chunk that is found to be damaged ends the tile.
    """
    rows, columns = engine.latent_size(place)
    payload = file.payloads[index]
    shape = (1, engine.about.entropy_model.hyper_channels, rows // engine.hyper_stride, columns // engine.hyper_stride)
    z = engine.coder.decode_z(payload.z, shape)
    prior = engine.coder.prior(z)
    offsets = engine.offsets(file.quantizer, file.seed, index, (rows, columns))
    code = tile_codes(engine, file.regions, (file.width, file.height), place, first_code(file))
    y = engine.coder.decode_y(payload.y, prior, code, offsets)
    if file.progressive is None:
        return Symbols(z, prior, y, code)
    return Symbols(z, prior, *_refined(engine, file.progressive, index, prior, y, code))


def first_code(file: GicFile) -> int:
    """Code of the level of a file's payloads, where blocks have no offset."""
    return file.code if file.progressive is None else file.code + STEP * file.progressive.refinements


def _refined(
    engine: Engine, progressive: Progressive, index: int, prior: Prior, y: NDArray[np.int32], code: Code
) -> tuple[NDArray[np.int32], Code]:
    """Symbols of y with all that the chunks of a tile add, and their level."""
    chunks = progressive.of_tile.get(index, [])
    for level in range(progressive.refinements):
        refinement = engine.coder.refinement(prior, code - STEP, y)
        own = [chunk for chunk in chunks if chunk.level == level]
        done = sum(chunk.elements for chunk in own)
        finer = np.where(engine.coder.coded_mask(prior, code, False), 3 * y, 0)
        refined = np.zeros(y.size, bool)
        at, whole = 0, done == len(refinement)
        for chunk in own:
            try:
                if at + chunk.elements > len(refinement):
                    raise FormatError("a chunk has more elements than its level")
                found, symbols = refinement.decode(
                    chunk.data, at, at + chunk.elements, chunk.size if chunk.cut else None
                )
            except FormatError:
                whole = False
                break
            finer.flat[found], refined[found] = symbols, True
            at += chunk.elements
            whole = whole and len(found) == chunk.elements
        if not whole:
            if not refined.any():
                return y, code
            refined = refined.reshape(y.shape)
            return np.where(refined, finer, y), np.where(refined, code - STEP, code).astype(np.int32)
        y, code = finer, code - STEP
    return y, code


class Decoding:
    """Decodes one file to pixels, a row of tiles at a time."""

    def __init__(
        self,
        engine: Engine,
        file: GicFile,
        reconstruct: Callable[[Latent, Tile], FloatArray],
        progress: Callable[[int, int], None] | None,
    ) -> None:
        self.engine = engine
        self.file = file
        self.reconstruct = reconstruct
        self.progress = progress
        self.places = tiles_of(file.width, file.height, file.tile)
        self.columns = 1 + max(place.column for place in self.places)
        self.known: dict[int, tuple[FloatArray, ...]] = {}

    def _latents(self, index: int) -> tuple[FloatArray, ...]:
        """y_q, mu, sigma of a tile, and of a progressive file its levels; decoded at first use, (M, h, w) each."""
        if index not in self.known:
            _, prior, symbols, code = decode_symbols(self.engine, self.file, index, self.places[index])
            offsets = self.engine.offsets(
                self.file.quantizer, self.file.seed, index, (symbols.shape[2], symbols.shape[3])
            )
            u: FloatArray | float = 0.0
            if offsets is not None:
                # Elements that are not coded are mu.
                mask = self.engine.coder.coded_mask(prior, self.file.code, True)
                u = np.where(mask, dither_values(offsets), np.float32(0))
            q = level_value(code) if isinstance(code, int) else level_field(code)
            y_q = sde.dequantize(symbols.astype(np.float32), q, prior.mu, u)
            self.known[index] = (y_q[0], prior.mu[0], prior.sigma[0])
            if self.file.progressive is not None:
                self.known[index] += (np.broadcast_to(sde.level(q, y_q), y_q.shape)[0],)
        return self.known[index]

    def _window(self, index: int) -> tuple[Latent, int, int]:
        """Latents of a tile with a halo of its neighbours', and the halo's width at the top and left, in latents."""
        place = self.places[index]
        halo = HALO // self.engine.stride
        grid = []
        for row in (place.row - 1, place.row, place.row + 1):
            line = []
            for column in (place.column - 1, place.column, place.column + 1):
                near = row * self.columns + column
                if not (0 <= column < self.columns and 0 <= near < len(self.places)):
                    continue
                parts = np.stack(self._latents(near))
                if row < place.row:
                    parts = parts[:, :, -halo:]
                elif row > place.row:
                    parts = parts[:, :, :halo]
                if column < place.column:
                    parts = parts[..., -halo:]
                elif column > place.column:
                    parts = parts[..., :halo]
                line.append(parts)
            if line:
                grid.append(np.concatenate(line, -1))
        window = np.concatenate(grid, -2)
        y_q, mu, sigma = (t[None] for t in window[:3])
        q = np.full((1, 1, 1, 1), level_value(self.file.code), np.float32)
        if self.file.progressive is not None:
            field = window[3][None]
            q = field[:, :1, :1, :1] if (field == field.flat[0]).all() else field
        top, left = (halo if place.row > 0 else 0), (halo if place.column > 0 else 0)
        return Latent(y_q, mu, sigma, q), top, left

    def _pixels(self, index: int) -> tuple[FloatArray, int, int]:
        """Reconstruction of a tile and its surroundings, (3, h, w) float, and the position of its corner."""
        place = self.places[index]
        latents, top, left = self._window(index)
        x_hat = self.reconstruct(latents, place)[0].clip(0, 1)
        y0, x0 = place.top - top * self.engine.stride, place.left - left * self.engine.stride
        return x_hat[:, : self.file.height - y0, : self.file.width - x0], y0, x0

    def run(self) -> NDArray[np.uint8]:
        """All pixels, uint8 (3, H, W)."""
        # A damaged file fails here, before memory is allocated for the pixels that its header announces.
        first = self._pixels(0)
        if len(self.places) == 1:
            self._report(1)
            return _levels(first[0])
        out = np.empty((3, self.file.height, self.file.width), np.uint8)
        band_height = min(self.file.height, self.file.tile + 2 * HALO)
        band = np.zeros((3, band_height, self.file.width), np.float32)
        rows = len(self.places) // self.columns
        for row in range(rows):
            start = max(0, row * self.file.tile - HALO)
            for column in range(self.columns):
                index = row * self.columns + column
                x_hat, y0, x0 = first if index == 0 else self._pixels(index)
                weight = share(
                    self.places[index], y0, x0, (x_hat.shape[-2], x_hat.shape[-1]), self.file.width, self.file.height
                )
                target = band[:, y0 - start : y0 - start + x_hat.shape[-2], x0 : x0 + x_hat.shape[-1]]
                target += x_hat * weight
                self._report(index + 1)
            # Rows above the next border's cross-fade are final; the rest of the band moves up.
            border = (row + 1) * self.file.tile
            done = self.file.height if row + 1 == rows else border - HALO
            out[:, start:done] = _levels(band[:, : done - start])
            kept = band[:, done - start :].copy()
            band[:] = 0
            band[:, : kept.shape[1]] = kept
            for old in [i for i in self.known if i < row * self.columns]:
                del self.known[old]
        return out

    def _report(self, done: int) -> None:
        if self.progress is not None:
            self.progress(done, len(self.places))


def _levels(x: FloatArray) -> NDArray[np.uint8]:
    """From [0, 1] to the nearest of 256 levels."""
    pixels: NDArray[np.uint8] = np.round(x * np.float32(255)).astype(np.uint8)
    return pixels
