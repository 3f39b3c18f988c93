"""Images to bytes and back: padding, tiles, rate search, the reverse flow at decoding (DESIGN 5, 7, 8).

An image up to :data:`PIECE_PIXELS` is coded in one piece. A larger one is cut into tiles whose latents are disjoint and
coded apart, so that a tile can be decoded alone and no bits are spent twice; the transforms see a halo of the
neighbours on both sides, and reconstructions are cross-faded over the borders, so that no seam shows.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO, Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from gic import sde
from gic.compressor import DOWNSAMPLING, HYPER_DOWNSAMPLING
from gic.devices import automatic_device, check_device
from gic.entropy import OFFSETS, SYMBOL_MAX, EntropyCoder, Prior, dither_values, level_code, level_value
from gic.errors import ConfigError, FormatError, ImageError
from gic.fileformat import (
    MAX_METADATA,
    MODEL_ID_BYTES,
    NO_METADATA,
    TILE_UNIT,
    GicFile,
    Metadata,
    Payload,
    pack,
    size_problem,
    unpack,
)
from gic.images import load_rgb, to_image, to_tensor
from gic.layers import LowerBound
from gic.model import Codec
from gic.reverse import denoiser
from gic.skipped import settle

PIECE_PIXELS = 1 << 21
"""Largest padded image that is coded in one piece, in pixels (1920 x 1080 fits)."""
TILE = 1024
"""Side of a tile of larger images, in pixels."""
MAX_PIECE_PIXELS, MAX_TILE = 1 << 23, 1 << 11
"""Largest padded image in one piece and largest side of a tile on request: what a decoder must hold at once."""
HALO = 64
"""Context that the transforms see around a tile, in pixels."""
RAMP = 32
"""Half width of the cross-fade at a tile border, in pixels."""
DEFAULT_QUALITY = 50.0

ImageLike = Image.Image | Tensor | NDArray[np.uint8] | str | Path | bytes | BinaryIO


class Tile(NamedTuple):
    """Place of a tile: its column and row, and its box in pixels of the original image."""

    column: int
    row: int
    left: int
    top: int
    right: int
    bottom: int

    @property
    def latent_size(self) -> tuple[int, int]:
        """Height and width of the tile's y."""
        unit = DOWNSAMPLING * HYPER_DOWNSAMPLING
        height, width = -(-(self.bottom - self.top) // unit), -(-(self.right - self.left) // unit)
        return height * HYPER_DOWNSAMPLING, width * HYPER_DOWNSAMPLING


def tiles_of(width: int, height: int, tile: int) -> list[Tile]:
    """Tiles of an image, row by row; one that is the whole image if ``tile`` is 0."""
    if tile == 0:
        return [Tile(0, 0, 0, 0, width, height)]
    return [
        Tile(i, j, x, y, min(x + tile, width), min(y + tile, height))
        for j, y in enumerate(range(0, height, tile))
        for i, x in enumerate(range(0, width, tile))
    ]


class Analysed(NamedTuple):
    """What the encoder knows of a tile, whatever the level.

    Attributes:
        y: Latent, float32 (1, M, h, w), on the CPU.
        z: Hyper-latent, int32 (1, N, h/4, w/4).
        prior: Exact prior of y.
        z_data: Coded z.
    """

    y: Tensor
    z: NDArray[np.int32]
    prior: Prior
    z_data: bytes


class ImageCodec:
    """Compresses images to ``.gic`` files and back with one set of weights.

    Args:
        model: A trained codec.
        device: Where the networks run: ``auto``, ``cpu``, ``cuda``, ... Files do not depend on it.

    Example:
        >>> codec = gic.load("weights.safetensors")  # doctest: +SKIP
        >>> data = codec.compress("photo.png", bpp=0.25)  # doctest: +SKIP
        >>> codec.decompress(data, realism=0.8).save("decoded.png")  # doctest: +SKIP
    """

    def __init__(self, model: Codec, device: str | torch.device = "auto") -> None:
        try:
            self.device = check_device(torch.device(automatic_device() if device == "auto" else device))
            self.model = model.eval().to(self.device)
        except (RuntimeError, AssertionError) as error:  # what torch raises without such a device
            raise ConfigError(f"the device {device} cannot be used: {str(error).splitlines()[0]}") from error
        self.coder = EntropyCoder(model.compressor)
        self.model_id = model_id(model)
        self.finest, self.coarsest = level_code(model.q_min), level_code(model.q_max)

    # --- encoding -------------------------------------------------------------------------------------------------

    def compress(
        self,
        image: ImageLike,
        *,
        q: float | None = None,
        bpp: float | None = None,
        max_bytes: int | None = None,
        quality: float | None = None,
        quantizer: Literal["round", "dither"] | None = None,
        seed: int = 0,
        tile: int | None = None,
        keep_metadata: bool = False,
    ) -> bytes:
        """Compress one image; name at most one of ``q``, ``bpp``, ``max_bytes`` and ``quality``.

        Args:
            image: A path, bytes or open file of any picture Pillow reads, a Pillow image, a tensor (3, H, W), uint8
                or float in [0, 1], or an array (H, W, 3) uint8.
            q: Quantisation step, within the model's range.
            bpp: Target, in bits of the file per pixel of the image; the level that comes nearest is taken.
            max_bytes: Largest size of the file, in bytes; never exceeded.
            quality: 0 (smallest) to 100 (finest), linear in log q; 50 if nothing is named.
            quantizer: ``round`` or ``dither``, the model's default if left out.
            seed: Of the dither, 0 to 2^32 - 1.
            tile: Side of tiles in pixels, a multiple of 64 up to 2048; 0 forces one piece; chosen by size if left out.
            keep_metadata: Keep EXIF and the ICC profile in the file.

        Returns:
            A whole ``.gic`` file.

        Raises:
            ConfigError: If settings contradict each other, or the target cannot be reached with this model.
            ImageError: If the image cannot be read.
        """
        _one_target(q=q, bpp=bpp, max_bytes=max_bytes, quality=quality)  # before the work
        encoding = self.encoding(image, quantizer=quantizer, seed=seed, tile=tile, keep_metadata=keep_metadata)
        return encoding.compress(q=q, bpp=bpp, max_bytes=max_bytes, quality=quality)

    def encoding(
        self,
        image: ImageLike,
        *,
        quantizer: Literal["round", "dither"] | None = None,
        seed: int = 0,
        tile: int | None = None,
        keep_metadata: bool = False,
    ) -> Encoding:
        """Analyse an image once, to code it at several rates; the arguments are those of :meth:`compress`."""
        pixels, metadata, notes = _read_pixels(image, keep_metadata)
        height, width = pixels.shape[-2:]
        if (problem := size_problem(width, height)) is not None:
            raise ImageError(problem)
        tile = _tile_side(width, height) if tile is None else tile
        if tile < 0 or tile % TILE_UNIT:
            raise ConfigError(f"the side of tiles must be a multiple of {TILE_UNIT}, not {tile}")
        if (problem := _piece_problem(width, height, tile)) is not None:
            raise ConfigError(problem)
        quantizer = quantizer or self.model.quantizer
        if quantizer not in ("round", "dither"):
            raise ConfigError(f"quantizer must be round or dither, not {quantizer!r}")
        if len(metadata.exif) + len(metadata.icc) > MAX_METADATA:
            raise ConfigError(f"the picture's EXIF and ICC profile exceed {MAX_METADATA} bytes: leave out the metadata")
        return Encoding(self, pixels, quantizer, _check_seed(seed), tile, metadata, notes)

    def quality_code(self, quality: float) -> int:
        """Level code of a quality from 0 (``q_max``) to 100 (``q_min``).

        Raises:
            ConfigError: If the quality lies outside 0 to 100.
        """
        if not 0 <= quality <= 100:
            raise ConfigError(f"quality must lie in 0 to 100, not {quality:g}")
        return round(self.coarsest + (self.finest - self.coarsest) * quality / 100)

    @torch.inference_mode()
    def analyse(self, pixels: Tensor, tile: int, quantizer: Literal["round", "dither"] = "round") -> list[Analysed]:
        """Latents and priors of all tiles of an image, uint8 (3, H, W): all that any level needs."""
        height, width = pixels.shape[-2:]
        return [self._analyse_tile(pixels, place, quantizer) for place in tiles_of(width, height, tile)]

    def _analyse_tile(self, pixels: Tensor, place: Tile, quantizer: Literal["round", "dither"]) -> Analysed:
        height, width = pixels.shape[-2:]
        rows, columns = place.latent_size
        top, left = max(0, place.top - HALO), max(0, place.left - HALO)
        bottom = min(height, place.top + rows * DOWNSAMPLING + HALO)
        right = min(width, place.left + columns * DOWNSAMPLING + HALO)
        x = pixels[:, top:bottom, left:right].to(self.device).float()[None] / 255
        # Repeat the last row and column until the window holds all of the tile's latents.
        unit = self.model.compressor.multiple
        want_h = max(-(-(bottom - top) // unit) * unit, place.top - top + rows * DOWNSAMPLING)
        want_w = max(-(-(right - left) // unit) * unit, place.left - left + columns * DOWNSAMPLING)
        x = F.pad(x, (0, want_w - (right - left), 0, want_h - (bottom - top)), mode="replicate")
        r, c = (place.top - top) // DOWNSAMPLING, (place.left - left) // DOWNSAMPLING
        y = self.model.compressor.analysis(x)[:, :, r : r + rows, c : c + columns].contiguous()
        z = torch.round(self.model.compressor.hyper_analysis(y)).cpu()
        if not (bool(torch.isfinite(y).all()) and bool(torch.isfinite(z).all())):
            raise ConfigError("the model yields values that are not finite: its weights are damaged")
        y, z = y.cpu(), z.clamp(-SYMBOL_MAX, SYMBOL_MAX)
        z, prior = settle(self.model.compressor, self.coder, y, z, self.finest, self.coarsest, quantizer)
        symbols = z.numpy().astype(np.int32)
        return Analysed(y, symbols, prior, self.coder.encode_z(symbols))

    # --- decoding -------------------------------------------------------------------------------------------------

    def decompress(
        self,
        data: bytes,
        *,
        realism: float | None = None,
        steps: int | None = None,
        sampler: sde.Sampler | None = None,
        seed: int = 0,
        progress: Callable[[int, int], None] | None = None,
    ) -> Image.Image:
        """Decompress one file to a Pillow image, with the metadata the file carries in ``info``.

        Args:
            data: A whole ``.gic`` file.
            realism: r in [0, 1]: 0 is closest to the original, 1 looks most like a photograph; 1 if left out.
            steps: Steps of the reverse flow, the model's default if left out.
            sampler: Sampler of the reverse flow, the model's default if left out.
            seed: Of stochastic samplers; files decode alike with the same seed.
            progress: Called with the number of finished tiles and of all tiles.

        Raises:
            FormatError: If the file is damaged or was made with other weights.
            ConfigError: If a setting lies outside its range.
        """
        file = self.open(data)
        image = to_image(self._decode(file, realism, steps, sampler, seed, progress))
        if file.metadata.icc:
            image.info["icc_profile"] = file.metadata.icc
        if file.metadata.exif:
            image.info["exif"] = file.metadata.exif
        return image

    def decompress_tensor(
        self,
        data: bytes,
        *,
        realism: float | None = None,
        steps: int | None = None,
        sampler: sde.Sampler | None = None,
        seed: int = 0,
    ) -> Tensor:
        """Like :meth:`decompress`, to a tensor (3, H, W), uint8, on the CPU."""
        return self._decode(self.open(data), realism, steps, sampler, seed, None)

    def _decode(
        self,
        file: GicFile,
        realism: float | None,
        steps: int | None,
        sampler: sde.Sampler | None,
        seed: int,
        progress: Callable[[int, int], None] | None,
    ) -> Tensor:
        r = 1.0 if realism is None else realism
        if not 0 <= r <= 1:
            raise ConfigError(f"realism must lie in [0, 1], not {r:g}")
        if steps is not None and steps < 1:
            raise ConfigError(f"steps must be at least 1, not {steps}")
        if sampler is not None and sampler not in sde.SAMPLERS:
            raise ConfigError(f"there is no sampler {sampler!r}: choose one of {', '.join(sde.SAMPLERS)}")
        _check_seed(seed)

        def reconstruct(latents: Latent, place: Tile) -> Tensor:
            y_hat = sde.reverse(
                denoiser(self.model.reverse, latents.mu, latents.sigma, r),
                latents.y_q,
                latents.q,
                realism=r,
                steps=steps or self.model.steps,
                sampler=sampler or self.model.sampler,
                rho=self.model.rho,
                generator=torch.Generator().manual_seed(seed * 1_000_003 + place.row * 4099 + place.column),
            )
            return self.model.compressor.synthesise(y_hat, r)

        return _Decoding(self, file, reconstruct, progress).run()

    def open(self, data: bytes) -> GicFile:
        """Read a file's fields and prove that it was made with this model at a level it knows.

        Raises:
            FormatError: If not.
        """
        file = unpack(data)
        if file.model_id != self.model_id:
            raise FormatError(
                f"the file was made with model {file.model_id.hex()}, these weights are model {self.model_id.hex()}: "
                "name the weights it was made with"
            )
        if not self.finest <= file.level <= self.coarsest:
            raise FormatError(f"the header is damaged: level {file.level} lies outside the model's range")
        if (problem := _piece_problem(file.width, file.height, file.tile)) is not None:
            raise FormatError(f"the header is damaged: {problem}")
        return file

    def decode_symbols(
        self, file: GicFile, index: int, place: Tile
    ) -> tuple[NDArray[np.int32], Prior, NDArray[np.int32]]:
        """Symbols and prior of one tile, from its payload alone: z, prior, y."""
        rows, columns = place.latent_size
        payload = file.payloads[index]
        shape = (1, self.model.compressor.hyper_channels, rows // HYPER_DOWNSAMPLING, columns // HYPER_DOWNSAMPLING)
        z = self.coder.decode_z(payload.z, shape)
        prior = self.coder.prior(torch.from_numpy(z))
        offsets = self.offsets(file.quantizer, file.seed, index, (rows, columns))
        return z, prior, self.coder.decode_y(payload.y, prior, file.level, offsets)

    def offsets(self, quantizer: str, seed: int, index: int, size: tuple[int, int]) -> NDArray[np.uint8] | None:
        """Offset numbers of the dither of a tile, (1, M, h, w); None for rounding."""
        if quantizer == "round":
            return None
        shape = (1, self.model.compressor.coded_channels, *size)
        # Philox' raw output is fixed for ever, unlike NumPy's distributions; each byte yields one number.
        count = math.prod(shape)
        raw = np.random.Philox(key=[seed, 0], counter=[0, 0, 0, index]).random_raw(-(-count // 8))
        numbers = np.asarray(raw, dtype="<u8").view(np.uint8)[:count] % OFFSETS
        return numbers.astype(np.uint8).reshape(shape)


class Latent(NamedTuple):
    """A window of the decoder's knowledge, each (1, M, h, w) on the codec's device, and the level (1,)."""

    y_q: Tensor
    mu: Tensor
    sigma: Tensor
    q: Tensor


class Encoding:
    """One image on its way to a file: analysed once, coded at any level.

    Made by :meth:`ImageCodec.encoding`; ``width`` and ``height`` are the image's, in pixels, ``notes`` what was changed
    to make 8 bit sRGB of it, see :class:`gic.images.LoadedImage`.
    """

    def __init__(
        self,
        codec: ImageCodec,
        pixels: Tensor,
        quantizer: Literal["round", "dither"],
        seed: int,
        tile: int,
        metadata: Metadata,
        notes: tuple[str, ...] = (),
    ) -> None:
        self.codec = codec
        self.notes = notes
        self.height, self.width = pixels.shape[-2:]
        self.quantizer = quantizer
        self.seed = seed if quantizer == "dither" else 0
        self.tile = tile
        self.metadata = metadata
        self.tiles = codec.analyse(pixels, tile, quantizer)
        self.offsets = [
            codec.offsets(quantizer, self.seed, i, (t.y.shape[2], t.y.shape[3])) for i, t in enumerate(self.tiles)
        ]

    def compress(
        self,
        *,
        q: float | None = None,
        bpp: float | None = None,
        max_bytes: int | None = None,
        quality: float | None = None,
    ) -> bytes:
        """A whole ``.gic`` file at the rate named; arguments and errors are those of :meth:`ImageCodec.compress`."""
        target = _one_target(q=q, bpp=bpp, max_bytes=max_bytes, quality=quality)
        if target == "q":
            assert q is not None
            return self.at(level_code(self.codec.model.check_level(q)))
        if target == "bpp":
            assert bpp is not None
            return self.nearest(bpp * self.width * self.height / 8)
        if target == "max_bytes":
            assert max_bytes is not None
            return self.within(max_bytes)
        return self.at(self.codec.quality_code(DEFAULT_QUALITY if quality is None else quality))

    def _symbols(self, index: int, level: int) -> NDArray[np.int32]:
        tile, offsets = self.tiles[index], self.offsets[index]
        u = 0.0 if offsets is None else torch.from_numpy(dither_values(offsets))
        k = sde.quantize(tile.y, level_value(level), tile.prior.mu, u).clamp(-SYMBOL_MAX, SYMBOL_MAX)
        mask = self.codec.coder.coded_mask(tile.prior, level, offsets is not None)
        return np.where(mask, k.numpy(), 0).astype(np.int32)

    def _file(self, level: int, payloads: tuple[Payload, ...]) -> GicFile:
        return GicFile(
            model_id=self.codec.model_id,
            width=self.width,
            height=self.height,
            level=level,
            payloads=payloads,
            quantizer=self.quantizer,
            seed=self.seed,
            tile=self.tile,
            metadata=self.metadata,
        )

    def at(self, level: int) -> bytes:
        """The file at a level."""
        coder = self.codec.coder
        payloads = tuple(
            Payload(t.z_data, coder.encode_y(self._symbols(i, level), t.prior, level, self.offsets[i]))
            for i, t in enumerate(self.tiles)
        )
        return pack(self._file(level, payloads))

    def estimate(self, level: int) -> int:
        """Bytes of the file at a level, from the tables alone."""
        payloads = []
        for i, tile in enumerate(self.tiles):
            bits = self.codec.coder.bits_y(self._symbols(i, level), tile.prior, level, self.offsets[i])
            # The coder's state starts with 2 bytes; where nothing is coded, nothing is written.
            payloads.append(Payload(tile.z_data, bytes(math.ceil(bits / 8) + 2 if bits else 0)))
        return len(pack(self._file(level, tuple(payloads))))

    def _search(self, target_bytes: float) -> int:
        """Finest level whose estimate does not exceed the target, by bisection over log q."""
        fine: int = self.codec.finest
        coarse: int = self.codec.coarsest
        while fine < coarse:
            middle = (fine + coarse) // 2
            if self.estimate(middle) > target_bytes:
                fine = middle + 1
            else:
                coarse = middle
        return coarse

    def nearest(self, target_bytes: float) -> bytes:
        """The file whose size is nearest to the target."""
        if not (math.isfinite(target_bytes) and target_bytes > 0):
            raise ConfigError("bpp must be a positive number")
        level = self._search(target_bytes)
        # The estimate crosses the target between this level and the one before.
        files = [self.at(code) for code in (level, level - 1) if code >= self.codec.finest]
        best = min(files, key=lambda data: abs(len(data) - target_bytes))
        for end, name in ((self.codec.coarsest, "coarsest"), (self.codec.finest, "finest")):
            if level == end and abs(len(best) - target_bytes) > 0.02 * target_bytes:
                raise ConfigError(
                    f"{target_bytes:.0f} bytes ({target_bytes * 8 / self.width / self.height:.4f} bpp) cannot be "
                    f"reached: at the {name} level of this model the image takes {len(best)} bytes "
                    f"({len(best) * 8 / self.width / self.height:.4f} bpp)"
                )
        return best

    def within(self, max_bytes: int) -> bytes:
        """The finest file of at most ``max_bytes``."""
        level = self._search(max_bytes)
        data = self.at(level)
        while len(data) > max_bytes and level < self.codec.coarsest:
            level += 1
            data = self.at(level)
        if len(data) > max_bytes:
            raise ConfigError(
                f"the image does not fit in {max_bytes} bytes: at the coarsest level of this model it takes {len(data)}"
            )
        return data


class _Decoding:
    """One file on its way to pixels, a row of tiles at a time."""

    def __init__(
        self,
        codec: ImageCodec,
        file: GicFile,
        reconstruct: Callable[[Latent, Tile], Tensor],
        progress: Callable[[int, int], None] | None,
    ) -> None:
        self.codec = codec
        self.file = file
        self.reconstruct = reconstruct
        self.progress = progress
        self.q = level_value(file.level)
        self.places = tiles_of(file.width, file.height, file.tile)
        self.columns = 1 + max(place.column for place in self.places)
        self.known: dict[int, tuple[Tensor, Tensor, Tensor]] = {}

    def _latents(self, index: int) -> tuple[Tensor, Tensor, Tensor]:
        """y_q, mu, sigma of a tile, decoded at first use, (M, h, w) each."""
        if index not in self.known:
            _, prior, symbols = self.codec.decode_symbols(self.file, index, self.places[index])
            offsets = self.codec.offsets(
                self.file.quantizer, self.file.seed, index, (symbols.shape[2], symbols.shape[3])
            )
            u: Tensor | float = 0.0
            if offsets is not None:
                # Elements that are not coded sit on mu itself.
                mask = torch.from_numpy(self.codec.coder.coded_mask(prior, self.file.level, True))
                u = torch.where(mask, torch.from_numpy(dither_values(offsets)), 0.0)
            y_q = sde.dequantize(torch.from_numpy(symbols).float(), self.q, prior.mu, u)
            self.known[index] = (y_q[0], prior.mu[0], prior.sigma[0])
        return self.known[index]

    def _window(self, index: int) -> tuple[Latent, int, int]:
        """Latents of a tile with a halo of its neighbours', and the halo's width at the top and left, in latents."""
        place = self.places[index]
        halo = HALO // DOWNSAMPLING
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
        y_q, mu, sigma = (t[None].to(self.codec.device) for t in window)
        top, left = (halo if place.row > 0 else 0), (halo if place.column > 0 else 0)
        return Latent(y_q, mu, sigma, torch.tensor([self.q], device=self.codec.device)), top, left

    @torch.inference_mode()
    def _pixels(self, index: int) -> tuple[Tensor, int, int]:
        """Reconstruction of a tile and its surroundings, (3, h, w) float, and the position of its corner."""
        place = self.places[index]
        latents, top, left = self._window(index)
        x_hat = self.reconstruct(latents, place)[0].clamp(0, 1).cpu()
        y0, x0 = place.top - top * DOWNSAMPLING, place.left - left * DOWNSAMPLING
        return x_hat[:, : self.file.height - y0, : self.file.width - x0], y0, x0

    def run(self) -> Tensor:
        """All pixels, uint8 (3, H, W)."""
        # A damaged file fails here, before memory is taken for all the pixels that its header claims.
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
                weight = self._weight(self.places[index], y0, x0, x_hat.shape[-2:])
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

    def _weight(self, place: Tile, y0: int, x0: int, size: torch.Size) -> Tensor:
        """Share of a tile's reconstruction in the picture: 1 inside, a ramp over each border with a neighbour."""

        def ramp(start: int, count: int, low: int, high: int, total: int) -> Tensor:
            at = torch.arange(start, start + count) + 0.5
            rise = ((at - low + RAMP) / (2 * RAMP)).clamp(0, 1) if low > 0 else torch.ones(count)
            fall = ((high + RAMP - at) / (2 * RAMP)).clamp(0, 1) if high < total else torch.ones(count)
            return rise * fall

        rows = ramp(y0, size[0], place.top, place.bottom, self.file.height)
        columns = ramp(x0, size[1], place.left, place.right, self.file.width)
        return rows[:, None] * columns[None, :]

    def _report(self, done: int) -> None:
        if self.progress is not None:
            self.progress(done, len(self.places))


# --- helpers ----------------------------------------------------------------------------------------------------------


def model_id(model: Codec) -> bytes:
    """First bytes of a hash over the names, shapes and float32 values of all parameters and of all bounds."""
    digest = hashlib.sha256()
    tensors = dict(model.state_dict())
    for name, module in model.named_modules():
        if isinstance(module, LowerBound):  # constants, which weights of version 0.4 and earlier hold
            tensors[f"{name}.bound"] = torch.tensor([module.bound if module.on_file is None else module.on_file])
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.detach().cpu().float().contiguous().numpy().astype("<f4").tobytes())
    return digest.digest()[:MODEL_ID_BYTES]


def _one_target(**targets: float | None) -> str | None:
    named = [name for name, value in targets.items() if value is not None]
    if len(named) > 1:
        raise ConfigError(f"name only one of q, bpp, max_bytes and quality, not {' and '.join(named)}")
    return named[0] if named else None


def _padded_pixels(width: int, height: int) -> int:
    return -(-width // TILE_UNIT) * -(-height // TILE_UNIT) * TILE_UNIT**2


def _tile_side(width: int, height: int) -> int:
    return 0 if _padded_pixels(width, height) <= PIECE_PIXELS else TILE


def _piece_problem(width: int, height: int, tile: int) -> str | None:
    """Why an image cannot be coded with tiles of this side, or None if it can."""
    if tile > MAX_TILE:
        return f"tiles of {tile} pixels are larger than {MAX_TILE}"
    if tile == 0 and _padded_pixels(width, height) > MAX_PIECE_PIXELS:
        return f"an image of {width} x {height} pixels is too large for one piece: it takes tiles"
    return None


def _check_seed(seed: int) -> int:
    if not 0 <= seed < 1 << 32:
        raise ConfigError(f"seed must lie in 0 to 2^32 - 1, not {seed}")
    return seed


def _read_pixels(image: ImageLike, keep_metadata: bool) -> tuple[Tensor, Metadata, tuple[str, ...]]:
    """Pixels as uint8 (3, H, W), what is to travel beside them, and notes on what was changed."""
    if isinstance(image, np.ndarray):
        if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8:
            raise ImageError(f"an array must be uint8 (H, W, 3), not {image.dtype} {image.shape}")
        image = torch.from_numpy(np.ascontiguousarray(image)).permute(2, 0, 1)
    if isinstance(image, Tensor):
        if image.dim() != 3 or image.shape[0] != 3:
            raise ImageError(f"a tensor must have the shape (3, H, W), not {tuple(image.shape)}")
        if image.dtype == torch.uint8:
            return image.cpu(), NO_METADATA, ()
        if not image.is_floating_point() or not bool(torch.isfinite(image).all()):
            raise ImageError("a tensor must be uint8, or float in [0, 1] without NaN")
        return torch.round(image.detach().float().cpu().clamp(0, 1) * 255).to(torch.uint8), NO_METADATA, ()
    if not isinstance(image, (bytes, str, Path, Image.Image)) and not hasattr(image, "read"):
        raise ImageError(
            "an image is a path, bytes, an open file, a Pillow image, an array (H, W, 3) or a tensor (3, H, W), "
            f"not {type(image).__name__}"
        )
    loaded = load_rgb(image, keep_profile=keep_metadata)
    metadata = Metadata(loaded.exif, loaded.icc) if keep_metadata else NO_METADATA
    return to_tensor(loaded.image), metadata, loaded.notes
