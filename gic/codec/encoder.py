"""Pictures to bytes: analysed once, coded at any level (DESIGN 5, 8).

pixels -> tiles -> g_a -> y -> h_a -> z (settled, gic.codec.skipped) -> exact prior -> symbols at level q -> bytes
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from gic.bitstream.chunks import MAX_REFINEMENTS, Chunk, Progressive
from gic.bitstream.coder import Code, Prior, level_code, level_field, level_value
from gic.bitstream.container import REGION_STEP, GicFile, Metadata, Payload, pack, unpack
from gic.bitstream.refinement import STEP, Refinement
from gic.bitstream.tables import SYMBOL_MAX, dither_values
from gic.codec.engine import Engine, tile_codes
from gic.codec.rate import nearest, one_target, shortfall, within
from gic.codec.skipped import settle
from gic.codec.tiling import HALO, Tile, tiles_of
from gic.errors import ConfigError
from gic.method import sde

DEFAULT_QUALITY = 50.0
"""Quality if no target is given."""

CHUNK_BYTES = 4096
"""Size that the chunks of a progressive file have, about."""


class Analysed(NamedTuple):
    """What the encoder computes for a tile, independent of the level.

    Attributes:
        y: Latent, float32 (1, M, h, w).
        z: Hyper-latent, int32 (1, N, h/4, w/4).
        prior: Exact prior of y.
        z_data: Coded z.
    """

    y: NDArray[np.float32]
    z: NDArray[np.int32]
    prior: Prior
    z_data: bytes


def analyse(
    engine: Engine,
    pixels: NDArray[np.uint8],
    tile: int,
    quantizer: Literal["round", "dither"] = "round",
    progress: Callable[[int, int], None] | None = None,
) -> list[Analysed]:
    """Latents and priors of all tiles of an image, uint8 (3, H, W), for all levels.

    Args:
        engine: The model.
        pixels: The image.
        tile: Side of its tiles in pixels; 0 for one piece.
        quantizer: ``round`` or ``dither``.
        progress: Called with the number of analysed tiles and of all tiles.

    Raises:
        ConfigError: If the model yields values that are not finite.
    """
    height, width = pixels.shape[-2:]
    places = tiles_of(width, height, tile)
    found = []
    for place in places:
        found.append(_analyse_tile(engine, pixels, place, quantizer))
        if progress is not None:
            progress(len(found), len(places))
    return found


def _analyse_tile(
    engine: Engine, pixels: NDArray[np.uint8], place: Tile, quantizer: Literal["round", "dither"]
) -> Analysed:
    height, width = pixels.shape[-2:]
    stride, unit = engine.stride, engine.multiple
    rows, columns = engine.latent_size(place)
    top, left = max(0, place.top - HALO), max(0, place.left - HALO)
    bottom = min(height, place.top + rows * stride + HALO)
    right = min(width, place.left + columns * stride + HALO)
    x = pixels[None, :, top:bottom, left:right].astype(np.float32) / np.float32(255)
    # Repeat the last row and column until the window holds all of the tile's latents.
    want_h = max(-(-(bottom - top) // unit) * unit, place.top - top + rows * stride)
    want_w = max(-(-(right - left) // unit) * unit, place.left - left + columns * stride)
    x = np.pad(x, ((0, 0), (0, 0), (0, want_h - (bottom - top)), (0, want_w - (right - left))), mode="edge")
    r, c = (place.top - top) // stride, (place.left - left) // stride
    y = np.ascontiguousarray(engine.networks.analysis(x)[:, :, r : r + rows, c : c + columns])
    z = np.round(engine.networks.hyper_analysis(y))
    if not (np.isfinite(y).all() and np.isfinite(z).all()):
        raise ConfigError("the model yields values that are not finite: its weights are damaged")
    start = z.clip(-SYMBOL_MAX, SYMBOL_MAX).astype(np.int32)
    symbols, prior = settle(
        engine.about.entropy_model, engine.coder, y, start, engine.finest, engine.coarsest, quantizer
    )
    return Analysed(y, symbols, prior, engine.coder.encode_z(symbols))


def quality_code(engine: Engine, quality: float) -> int:
    """Level code of a quality from 0 (``q_max``) to 100 (``q_min``).

    Raises:
        ConfigError: If the quality lies outside 0 to 100.
    """
    if not 0 <= quality <= 100:
        raise ConfigError(f"quality must lie in 0 to 100, not {quality:g}")
    return round(engine.coarsest + (engine.finest - engine.coarsest) * quality / 100)


class Encoding:
    """Encodes one image: analysed once, coded at any level.

    Made by :meth:`ImageCodec.encoding`; ``width`` and ``height`` are the image's, in pixels; ``notes`` list what was
    changed to make 8 bit sRGB of it, see :class:`gic.pictures.load.LoadedImage`.
    """

    def __init__(
        self,
        engine: Engine,
        pixels: NDArray[np.uint8],
        quantizer: Literal["round", "dither"],
        seed: int,
        tile: int,
        metadata: Metadata,
        notes: tuple[str, ...] = (),
        progressive: bool = False,
        regions: bytes = b"",
        progress: Callable[[int, int], None] | None = None,
    ) -> None:
        self.engine = engine
        self.height, self.width = pixels.shape[-2:]
        self.grey = np.array_equal(pixels[0], pixels[1]) and np.array_equal(pixels[1], pixels[2])
        self.notes = tuple(note for note in notes if not (self.grey and note.endswith("expanded to RGB")))
        self.quantizer = quantizer
        self.seed = seed if quantizer == "dither" else 0
        self.tile = tile
        self.metadata = metadata
        self.progressive = progressive
        self.regions = regions
        self.places = tiles_of(self.width, self.height, tile)
        self.tiles = analyse(engine, pixels, tile, quantizer, progress)
        self.offsets = [
            engine.offsets(quantizer, self.seed, i, (t.y.shape[2], t.y.shape[3])) for i, t in enumerate(self.tiles)
        ]

    @property
    def finest(self) -> int:
        """Code of the finest level."""
        return self.engine.finest

    @property
    def coarsest(self) -> int:
        """Code of the coarsest level."""
        return self.engine.coarsest

    def compress(
        self,
        *,
        q: float | None = None,
        bpp: float | None = None,
        max_bytes: int | None = None,
        quality: float | None = None,
        strict_rate: bool = True,
    ) -> bytes:
        """A whole ``.gic`` file at the given rate; arguments and errors as in :meth:`ImageCodec.compress`."""
        target = one_target(q=q, bpp=bpp, max_bytes=max_bytes, quality=quality)
        if target == "q":
            assert q is not None
            return self.at(level_code(self.engine.check_level(q)))
        if target == "bpp":
            assert bpp is not None
            data = nearest(self, bpp * self.width * self.height / 8)
            if strict_rate and (problem := self.shortfall(data, bpp)):
                raise ConfigError(problem)
            return data
        if target == "max_bytes":
            assert max_bytes is not None
            return within(self, max_bytes)
        return self.at(quality_code(self.engine, DEFAULT_QUALITY if quality is None else quality))

    def shortfall(self, data: bytes, bpp: float | None) -> str:
        """Why a file has not the ``bpp`` that it was made for: the model's range ends before; empty if it has."""
        if bpp is None:
            return ""
        return shortfall(self, data, unpack(data).code, bpp * self.width * self.height / 8)

    def _symbols(self, index: int, code: Code) -> NDArray[np.int32]:
        tile, offsets = self.tiles[index], self.offsets[index]
        u = 0.0 if offsets is None else dither_values(offsets)
        q = level_value(code) if isinstance(code, int) else level_field(code)
        k = sde.quantize(tile.y, q, tile.prior.mu, u).clip(-SYMBOL_MAX, SYMBOL_MAX)
        mask = self.engine.coder.coded_mask(tile.prior, code, offsets is not None)
        return np.where(mask, k, 0).astype(np.int32)

    def _file(self, code: int, payloads: tuple[Payload, ...], progressive: Progressive | None = None) -> GicFile:
        return GicFile(
            model_id=self.engine.model_id,
            width=self.width,
            height=self.height,
            code=code,
            payloads=payloads,
            quantizer=self.quantizer,
            seed=self.seed,
            tile=self.tile,
            metadata=self.metadata,
            grey=self.grey,
            progressive=progressive,
            regions=b"" if progressive is None else self._offsets(code),
        )

    def at(self, code: int) -> bytes:
        """The file at the level of a code."""
        coder = self.engine.coder
        if self.progressive or self.regions:
            return self._version_2(code)
        payloads = tuple(
            Payload(t.z_data, coder.encode_y(self._symbols(i, code), t.prior, code, self.offsets[i]))
            for i, t in enumerate(self.tiles)
        )
        return pack(self._file(code, payloads))

    def estimate(self, code: int) -> int:
        """Bytes of the file at the level of a code, from the tables alone."""
        coder = self.engine.coder
        payloads: list[Payload] = []
        levels: list[list[Chunk]] = [[] for _ in range(self._refinements(code))]
        for i, tile in enumerate(self.tiles):
            for level, (codes, symbols, refinement) in enumerate(self._levels(i, code), -1):
                if refinement is None:
                    bits = coder.bits_y(symbols, tile.prior, codes, self.offsets[i])
                    payloads.append(Payload(tile.z_data, _stand_in(bits)))
                elif len(refinement):
                    bits = float(refinement.lengths(symbols).sum())
                    count = max(1, round(bits / 8 / CHUNK_BYTES))
                    piece = _stand_in(bits / count)
                    levels[level] += [Chunk(level, i, math.ceil(len(refinement) / count), piece, len(piece))] * count
        chunks = tuple(chunk for level in levels for chunk in level)
        progressive = Progressive(len(levels), chunks) if self.progressive or self.regions else None
        return len(pack(self._file(code, tuple(payloads), progressive)))

    # --- files of version 2 ---------------------------------------------------------------------------------------

    def _version_2(self, code: int) -> bytes:
        payloads: list[Payload] = []
        pieces: list[list[tuple[int, Chunk]]] = [[] for _ in range(self._refinements(code))]
        for i, tile in enumerate(self.tiles):
            for level, (codes, symbols, refinement) in enumerate(self._levels(i, code), -1):
                if refinement is None:
                    payloads.append(Payload(tile.z_data, self.engine.coder.encode_y(symbols, tile.prior, codes)))
                else:
                    pieces[level] += _pieces(refinement, symbols, level, i)
        # The pieces of a tile follow each other by their value: sorting keeps their order.
        chunks = tuple(chunk for level in pieces for _, chunk in sorted(level, key=lambda piece: -piece[0]))
        return pack(self._file(code, tuple(payloads), Progressive(len(pieces), chunks)))

    def _offsets(self, code: int) -> bytes:
        """Offsets of the blocks, as far as the model's range allows where the finest level is that of ``code``."""
        limit = (self.coarsest - code) // REGION_STEP
        return np.minimum(np.frombuffer(self.regions, np.uint8), limit).astype(np.uint8).tobytes()

    def _refinements(self, code: int) -> int:
        """Number of levels before the one of ``code``, three times as coarse each, that the model's range has."""
        if not self.progressive:
            return 0
        coarsest = code + REGION_STEP * max(self._offsets(code), default=0)
        return min((self.coarsest - coarsest) // STEP, MAX_REFINEMENTS)

    def _levels(self, index: int, code: int) -> Iterator[tuple[Code, NDArray[np.int32], Refinement | None]]:
        """Levels of a tile, the coarsest first: codes, symbols, and what the level adds to the one before."""
        coder, prior, symbols = self.engine.coder, self.tiles[index].prior, None
        size, offsets = (self.width, self.height), self._offsets(code)
        for finer in range(code + STEP * self._refinements(code), code - 1, -STEP):
            codes = tile_codes(self.engine, offsets, size, self.places[index], finer)
            own, refinement = self._symbols(index, codes), None
            if symbols is not None:
                refinement = coder.refinement(prior, codes, symbols)
                # The levels' ratio is 3 to 1e-6: an element at the border of a cell may lie beyond it.
                known = coder.coded_mask(prior, codes + STEP, False)
                own = np.where(known, own.clip(3 * symbols - 1, 3 * symbols + 1), own)
            yield codes, own, refinement
            symbols = own


def _stand_in(bits: float) -> bytes:
    """As many bytes as a code of ``bits`` has: the coder's state starts with 2; of nothing none are written."""
    return bytes(math.ceil(bits / 8) + 2 if bits else 0)


def _pieces(refinement: Refinement, symbols: NDArray[np.int32], level: int, tile: int) -> Iterator[tuple[int, Chunk]]:
    """Chunks of a level of a tile, each with the value per bit of its first element."""
    if not len(refinement):
        return
    size = np.cumsum(refinement.lengths(symbols)) / 8
    count = max(1, round(float(size[-1]) / CHUNK_BYTES))
    edges = np.searchsorted(size, size[-1] * np.arange(count) / count).tolist()
    for start, stop in pairwise(sorted({*edges, len(refinement)})):
        data = refinement.encode(symbols, start, stop)
        yield int(refinement.value[start]), Chunk(level, tile, stop - start, data, len(data))
