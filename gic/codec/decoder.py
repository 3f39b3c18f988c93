"""Bytes to pictures: symbols, the latent y_q, the reverse flow, g_s (DESIGN 3, 7, 8).

bytes -> z -> exact prior -> symbols -> y_q -> reverse flow -> y_hat -> g_s -> tiles -> pixels
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from gic.bitstream.coder import Prior, level_value
from gic.bitstream.container import GicFile
from gic.bitstream.tables import dither_values
from gic.codec.engine import Engine
from gic.codec.tiling import HALO, Tile, share, tiles_of
from gic.method import sde


class Latent(NamedTuple):
    """A window of y_q, mu and sigma, each (1, M, h, w) on the codec's device, and the level (1,)."""

    y_q: Tensor
    mu: Tensor
    sigma: Tensor
    q: Tensor


def decode_symbols(
    engine: Engine, file: GicFile, index: int, place: Tile
) -> tuple[NDArray[np.int32], Prior, NDArray[np.int32]]:
    """Symbols and prior of one tile, from its payload alone: z, prior, y."""
    rows, columns = engine.latent_size(place)
    payload = file.payloads[index]
    shape = (1, engine.model.compressor.hyper_channels, rows // engine.hyper_stride, columns // engine.hyper_stride)
    z = engine.coder.decode_z(payload.z, shape)
    prior = engine.coder.prior(torch.from_numpy(z))
    offsets = engine.offsets(file.quantizer, file.seed, index, (rows, columns))
    return z, prior, engine.coder.decode_y(payload.y, prior, file.code, offsets)


class Decoding:
    """Decodes one file to pixels, a row of tiles at a time."""

    def __init__(
        self,
        engine: Engine,
        file: GicFile,
        reconstruct: Callable[[Latent, Tile], Tensor],
        progress: Callable[[int, int], None] | None,
    ) -> None:
        self.engine = engine
        self.file = file
        self.reconstruct = reconstruct
        self.progress = progress
        self.q = level_value(file.code)
        self.places = tiles_of(file.width, file.height, file.tile)
        self.columns = 1 + max(place.column for place in self.places)
        self.known: dict[int, tuple[Tensor, Tensor, Tensor]] = {}

    def _latents(self, index: int) -> tuple[Tensor, Tensor, Tensor]:
        """y_q, mu, sigma of a tile, decoded at first use, (M, h, w) each."""
        if index not in self.known:
            _, prior, symbols = decode_symbols(self.engine, self.file, index, self.places[index])
            offsets = self.engine.offsets(
                self.file.quantizer, self.file.seed, index, (symbols.shape[2], symbols.shape[3])
            )
            u: Tensor | float = 0.0
            if offsets is not None:
                # Elements that are not coded are mu.
                mask = torch.from_numpy(self.engine.coder.coded_mask(prior, self.file.code, True))
                u = torch.where(mask, torch.from_numpy(dither_values(offsets)), 0.0)
            y_q = sde.dequantize(torch.from_numpy(symbols).float(), self.q, prior.mu, u)
            self.known[index] = (y_q[0], prior.mu[0], prior.sigma[0])
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
                parts = torch.stack(self._latents(near))
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
                grid.append(torch.cat(line, dim=-1))
        window = torch.cat(grid, dim=-2)
        y_q, mu, sigma = (t[None].to(self.engine.device) for t in window)
        top, left = (halo if place.row > 0 else 0), (halo if place.column > 0 else 0)
        return Latent(y_q, mu, sigma, torch.tensor([self.q], device=self.engine.device)), top, left

    @torch.inference_mode()
    def _pixels(self, index: int) -> tuple[Tensor, int, int]:
        """Reconstruction of a tile and its surroundings, (3, h, w) float, and the position of its corner."""
        place = self.places[index]
        latents, top, left = self._window(index)
        x_hat = self.reconstruct(latents, place)[0].clamp(0, 1).cpu()
        y0, x0 = place.top - top * self.engine.stride, place.left - left * self.engine.stride
        return x_hat[:, : self.file.height - y0, : self.file.width - x0], y0, x0

    def run(self) -> Tensor:
        """All pixels, uint8 (3, H, W)."""
        # A damaged file fails here, before memory is allocated for the pixels that its header announces.
        first = self._pixels(0)
        if len(self.places) == 1:
            self._report(1)
            return torch.round(first[0] * 255).to(torch.uint8)
        out = torch.empty(3, self.file.height, self.file.width, dtype=torch.uint8)
        band_height = min(self.file.height, self.file.tile + 2 * HALO)
        band = torch.zeros(3, band_height, self.file.width)
        rows = len(self.places) // self.columns
        for row in range(rows):
            start = max(0, row * self.file.tile - HALO)
            for column in range(self.columns):
                index = row * self.columns + column
                x_hat, y0, x0 = first if index == 0 else self._pixels(index)
                weight = share(self.places[index], y0, x0, x_hat.shape[-2:], self.file.width, self.file.height)
                target = band[:, y0 - start : y0 - start + x_hat.shape[-2], x0 : x0 + x_hat.shape[-1]]
                target += x_hat * weight
                self._report(index + 1)
            # Rows above the next border's cross-fade are final; the rest of the band moves up.
            border = (row + 1) * self.file.tile
            done = self.file.height if row + 1 == rows else border - HALO
            out[:, start:done] = torch.round(band[:, : done - start] * 255).to(torch.uint8)
            kept = band[:, done - start :].clone()
            band.zero_()
            band[:, : kept.shape[1]] = kept
            for old in [i for i in self.known if i < row * self.columns]:
                del self.known[old]
        return out

    def _report(self, done: int) -> None:
        if self.progress is not None:
            self.progress(done, len(self.places))
