"""The container of a ``.gic`` file: bytes to fields and back (DESIGN 8; every field is described in docs/format.md).

    version 1:  "GIC" | version | flags | model id | width, height | code | [seed] | [tile] | [metadata] | lengths
                | payloads | CRC
    version 2:  the same up to the CRC, of a coarse level; then chunks that refine it (gic.bitstream.chunks)

All numbers are little-endian; lengths and sizes are unsigned LEB128 varints in their shortest form. This module does
not decode the payloads. :func:`unpack` checks the whole file before anything is decoded: every length lies within the
file, the file ends where the lengths say, sizes are within limits, unused bits are zero.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

from gic.bitstream.chunks import MAX_REFINEMENTS, Progressive, append_chunks, bytes_of, pack_chunks, read_chunks
from gic.bitstream.fields import Reader, varint
from gic.errors import ConfigError, FormatError, TruncatedError

MAGIC = b"GIC"
VERSION, PROGRESSIVE_VERSION = 1, 2
SUFFIX = ".gic"
MODEL_ID_BYTES = 6
LEVELS_PER_OCTAVE = 1024
"""The code of a level is log2 q in units of 1 / LEVELS_PER_OCTAVE."""
MAX_SIDE = 1 << 16
"""Largest width and height, in pixels."""
MAX_PIXELS = 1 << 28
"""Largest width times height; the same as ``gic.pictures.load.load_rgb``'s."""
MAX_METADATA = 1 << 24
"""Largest size of the metadata after decompression, in bytes."""
TILE_UNIT = 64
"""Tile sides are multiples of this, in pixels; the side of the blocks that have a level of their own."""
REGION_STEP, MAX_REGION = 256, 40
"""Unit of the blocks' offsets, in codes (a quarter of an octave), and the largest offset, in this unit."""

_DITHER, _TILED, _METADATA, _GREY, _PROGRESSIVE, _REGIONS = 1, 2, 4, 8, 16, 32
_FIXED = struct.Struct(f"<3sBB{MODEL_ID_BYTES}s")
_CRC = struct.Struct("<I")


class Payload(NamedTuple):
    """Coded symbols of one tile.

    Attributes:
        z: Hyper-latent.
        y: Latent.
    """

    z: bytes
    y: bytes


class Metadata(NamedTuple):
    """Optional data stored beside the pixels.

    Attributes:
        exif: EXIF block as Pillow gives it, or empty.
        icc: ICC profile of the pixels, or empty for sRGB.
    """

    exif: bytes = b""
    icc: bytes = b""


NO_METADATA = Metadata()


@dataclass(frozen=True)
class GicFile:
    """All fields of a file.

    Attributes:
        model_id: First bytes of the hash of the weights.
        width: Of the original image, in pixels.
        height: Of the original image, in pixels.
        code: Of the level, an integer: ``q = 2^(code / LEVELS_PER_OCTAVE)``.
        quantizer: ``round`` or ``dither``.
        seed: Of the dither, 0 to 2^32 - 1; 0 with ``round``.
        tile: Side of a tile in pixels, a multiple of 64; 0 for an image coded in one piece.
        payloads: One for each tile, row by row.
        metadata: EXIF and ICC.
        grey: Whether red, green and blue are the same in every pixel of the original image.
        progressive: What a progressive file adds to ``payloads``, which then are those of its coarsest level.
        regions: How much coarser than the rest each block of 64 x 64 pixels is, in units of REGION_STEP codes, one byte
            for each, row by row; empty if none is. Only beside ``progressive``, which may have no refinements.
    """

    model_id: bytes
    width: int
    height: int
    code: int
    payloads: tuple[Payload, ...]
    quantizer: Literal["round", "dither"] = "round"
    seed: int = 0
    tile: int = 0
    metadata: Metadata = NO_METADATA
    grey: bool = False
    progressive: Progressive | None = None
    regions: bytes = b""

    @property
    def q(self) -> float:
        """Quantisation step, for display; decoders take :func:`gic.bitstream.coder.level_value`, which is exact."""
        return float(2.0 ** (self.code / LEVELS_PER_OCTAVE))

    @property
    def channels(self) -> int:
        """Channels of the decoded picture: 1 for a grey one, 3 for any other and beside an ICC profile."""
        return 1 if self.grey and not self.metadata.icc else 3

    @property
    def part(self) -> str:
        """How much of a progressive file is there, in words; empty if all of it is, and for other files."""
        p = self.progressive
        if p is None or (p.held == p.size and not p.lost):
            return ""
        q = self.levels[p.complete]
        partly = f", in part up to q {q / 3:.3f}" if p.useful > (p.start, *p.ends)[p.complete] else ""
        return f"{p.held} of {p.size} bytes, whole up to q {q:.3f}{partly}" + (f"; {p.lost}" if p.lost else "")

    @property
    def octaves(self) -> float:
        """How much coarser the coarsest block is than the finest may be: the log2 of the ratio of their steps."""
        return max(self.regions, default=0) * REGION_STEP / LEVELS_PER_OCTAVE

    @property
    def levels(self) -> tuple[float, ...]:
        """Quantisation steps of the levels of the whole file, the coarsest first, for display."""
        return tuple(self.q * 3**n for n in range(self.progressive.refinements if self.progressive else 0, -1, -1))


def tile_count(width: int, height: int, tile: int) -> int:
    """Number of tiles of side ``tile`` that cover an image; 1 if ``tile`` is 0."""
    return 1 if tile == 0 else -(-width // tile) * -(-height // tile)


def block_count(width: int, height: int) -> int:
    """Number of blocks of TILE_UNIT x TILE_UNIT pixels that cover an image."""
    return -(-width // TILE_UNIT) * -(-height // TILE_UNIT)


def _pack_metadata(metadata: Metadata) -> bytes:
    return zlib.compress(varint(len(metadata.exif)) + metadata.exif + metadata.icc, 9)


def pack(file: GicFile) -> bytes:
    """Write the fields as bytes.

    Raises:
        ValueError: If a field lies outside its range, which is an error of the encoder, not of the user.
    """
    _check_ranges(file)
    flags = _DITHER * (file.quantizer == "dither") | _TILED * (file.tile > 0) | _GREY * file.grey
    flags |= _METADATA * (file.metadata != NO_METADATA) | _PROGRESSIVE * (file.progressive is not None)
    flags |= _REGIONS * bool(file.regions)
    version = VERSION if file.progressive is None else PROGRESSIVE_VERSION
    out = bytearray(_FIXED.pack(MAGIC, version, flags, file.model_id))
    out += varint(file.width) + varint(file.height) + struct.pack("<h", file.code)
    if flags & _DITHER:
        out += struct.pack("<I", file.seed)
    if flags & _TILED:
        out += varint(file.tile // TILE_UNIT)
    if flags & _METADATA:
        metadata = _pack_metadata(file.metadata)
        out += varint(len(metadata)) + metadata
    lengths = [length for p in file.payloads for length in (len(p.z), len(p.y))]
    tail: list[list[bytes]] = []
    if file.progressive is None:
        lengths.pop()  # the last payload ends at the checksum
    else:
        tail = pack_chunks(file.progressive, file.tile > 0)
        out += bytes([len(tail)]) + b"".join(varint(bytes_of(level)) for level in tail)
    if file.regions:
        packed = _pack_regions(file.regions)
        out += varint(len(packed)) + packed
    out += b"".join(map(varint, lengths)) + b"".join(payload.z + payload.y for payload in file.payloads)
    return append_chunks(bytes(out) + _CRC.pack(zlib.crc32(out)), tail)


def _check_ranges(file: GicFile) -> None:
    if len(file.model_id) != MODEL_ID_BYTES:
        raise ValueError(f"the model id must have {MODEL_ID_BYTES} bytes")
    if (problem := size_problem(file.width, file.height)) is not None:
        raise ValueError(problem)
    if file.tile < 0 or file.tile % TILE_UNIT or not 0 <= file.seed < 1 << 32:
        raise ValueError(f"tile {file.tile} or seed {file.seed} out of range")
    if file.progressive is not None and file.quantizer != "round":
        raise ValueError("a progressive file takes the quantizer round")
    if file.regions and (
        file.progressive is None
        or len(file.regions) != block_count(file.width, file.height)
        or max(file.regions) > MAX_REGION
    ):
        raise ValueError("the offsets of the blocks do not fit to the file")
    if len(file.payloads) != tile_count(file.width, file.height, file.tile):
        raise ValueError(f"{len(file.payloads)} payloads for {tile_count(file.width, file.height, file.tile)} tiles")
    if len(file.metadata.exif) + len(file.metadata.icc) > MAX_METADATA:
        raise ValueError("the metadata is too large")


def size_problem(width: int, height: int) -> str | None:
    """Why an image of this size cannot be stored, or None if it can."""
    if min(width, height) < 1:
        return f"an image of {width} x {height} pixels has no pixels"
    if max(width, height) > MAX_SIDE or width * height > MAX_PIXELS:
        return f"an image of {width} x {height} pixels is larger than the format allows"
    return None


def unpack(data: bytes) -> GicFile:
    """Read the fields of a file and check that they are consistent.

    Args:
        data: A whole file; of a progressive one the first bytes suffice.

    Raises:
        FormatError: If this is not a ``.gic`` file, or it is damaged, truncated, of another version, or has trailing
            bytes; the text says which. Damage after the first level of a progressive file is no error:
            ``progressive.lost`` tells it.
    """
    if data[:3] != MAGIC[: max(len(data), 1)]:
        raise FormatError("this is no .gic file: it does not begin with GIC")
    if len(data) > 3 and data[3] not in (VERSION, PROGRESSIVE_VERSION):
        raise FormatError(
            f"the file has format version {data[3]}, this gic reads versions {VERSION} and {PROGRESSIVE_VERSION}: "
            "update gic"
        )
    if len(data) < _FIXED.size + _CRC.size:
        raise TruncatedError(f"the file is truncated: {len(data)} bytes are less than a header")
    progressive = data[3] == PROGRESSIVE_VERSION
    reader = Reader(data if progressive else _checked_body(data))
    _, _, flags, model_id = _FIXED.unpack(reader.take(_FIXED.size))
    known = _DITHER | _TILED | _METADATA | _GREY | (_PROGRESSIVE | _REGIONS if progressive else 0)
    if flags & ~known:
        raise FormatError(
            f"the header has unknown flags {flags:#04x}: it is damaged, or of a later gic, which reads it"
        )
    if progressive and (not flags & _PROGRESSIVE or flags & _DITHER):
        raise FormatError(f"the header is damaged: a file of version 2 with the flags {flags:#04x}")
    width, height = reader.varint(), reader.varint()
    if (problem := size_problem(width, height)) is not None:
        raise FormatError(f"the header is damaged: {problem}")
    (code,) = struct.unpack("<h", reader.take(2))
    seed = struct.unpack("<I", reader.take(4))[0] if flags & _DITHER else 0
    tile = reader.varint() * TILE_UNIT if flags & _TILED else 0
    if flags & _TILED and not 0 < tile <= MAX_SIDE:
        raise FormatError(f"the header is damaged: tiles of {tile} pixels")
    packed = reader.take(reader.varint()) if flags & _METADATA else None
    tiles = tile_count(width, height, tile)
    refinements, offsets = None, b""
    if progressive:
        sizes = _read_sizes(reader)
        offsets = reader.take(reader.varint()) if flags & _REGIONS else b""
        payloads, refinements = _read_first_level(reader, sizes, tiles, tile > 0)
    else:
        payloads = _read_payloads(reader, tiles)
    return GicFile(
        model_id=model_id,
        width=width,
        height=height,
        code=code,
        payloads=payloads,
        quantizer="dither" if flags & _DITHER else "round",
        seed=seed,
        tile=tile,
        metadata=NO_METADATA if packed is None else _read_metadata(packed),
        grey=bool(flags & _GREY),
        progressive=refinements,
        regions=_read_regions(offsets, block_count(width, height)) if flags & _REGIONS else b"",
    )


def _checked_body(data: bytes) -> bytes:
    """The file without its checksum, which is verified."""
    body, (crc,) = data[: -_CRC.size], _CRC.unpack(data[-_CRC.size :])
    if zlib.crc32(body) != crc:
        raise FormatError("the checksum does not match: the file is damaged, truncated or has trailing bytes")
    return body


def _read_metadata(packed: bytes) -> Metadata:
    inflate = zlib.decompressobj()
    try:
        raw = inflate.decompress(packed, MAX_METADATA + 10)  # with the varint
    except zlib.error as error:
        raise FormatError(f"the metadata is damaged: {error}") from error
    if not inflate.eof or inflate.unused_data:
        raise FormatError("the metadata is damaged or too large")
    inner = Reader(raw, "metadata")
    exif = inner.take(inner.varint())
    icc = raw[inner.at :]
    if len(exif) + len(icc) > MAX_METADATA:
        raise FormatError("the metadata is too large")
    return Metadata(exif, icc)


def _read_sizes(reader: Reader) -> list[int]:
    """Bytes of each refinement of a progressive file."""
    (refinements,) = reader.take(1)
    if refinements > MAX_REFINEMENTS:
        raise FormatError(f"the header is damaged: {refinements} levels")
    return [reader.varint() for _ in range(refinements)]


def _pack_regions(regions: bytes) -> bytes:
    deflate = zlib.compressobj(9, zlib.DEFLATED, -15)
    return deflate.compress(regions) + deflate.flush()


def _read_regions(packed: bytes, blocks: int) -> bytes:
    inflate = zlib.decompressobj(-15)
    try:
        regions = inflate.decompress(packed, blocks + 1)
    except zlib.error as error:
        raise FormatError(f"the offsets of the blocks are damaged: {error}") from error
    if len(regions) != blocks or not inflate.eof or inflate.unused_data or max(regions) > MAX_REGION:
        raise FormatError("the offsets of the blocks are damaged")
    return regions


def _read_first_level(
    reader: Reader, sizes: Sequence[int], tiles: int, tiled: bool
) -> tuple[tuple[Payload, ...], Progressive]:
    """The coarsest level of a progressive file, verified, and what follows it."""
    if 2 * tiles > len(reader.data) - reader.at:
        raise TruncatedError(f"the file is truncated: {len(reader.data)} bytes cannot hold {tiles} tiles")
    lengths = [reader.varint() for _ in range(2 * tiles)]
    start = reader.at + sum(lengths) + _CRC.size
    if start > len(reader.data):
        raise TruncatedError(
            f"the file is truncated: it has {len(reader.data)} bytes, and its header and first level take {start}"
        )
    payloads = tuple(Payload(reader.take(z), reader.take(y)) for z, y in zip(lengths[::2], lengths[1::2], strict=True))
    if zlib.crc32(reader.data[: reader.at]) != _CRC.unpack(reader.take(_CRC.size))[0]:
        raise FormatError("the checksum of the header and the first level does not match: the file is damaged")
    return payloads, read_chunks(reader.data, start, sizes, tiles, tiled)


def truncate(data: bytes, size: int) -> bytes:
    """The longest useful beginning of a progressive file of at most ``size`` bytes; no weights are needed.

    Raises:
        FormatError: If the file is damaged, or not progressive.
        ConfigError: If its header and first level take more bytes.
    """
    whole = unpack(data).progressive
    if whole is None:
        raise FormatError("only progressive files can be cut, which gic compress --progressive makes: this one is not")
    if size < whole.start:
        raise ConfigError(f"the header and the first level of this file take {whole.start} bytes: it cannot be shorter")
    cut = unpack(data[:size]).progressive
    assert cut is not None
    return data[: cut.useful]


def _read_payloads(reader: Reader, tiles: int) -> tuple[Payload, ...]:
    rest = len(reader.data) - reader.at
    if 2 * tiles - 1 > rest:
        raise FormatError(f"the file is truncated: {rest} bytes cannot hold {tiles} tiles")
    lengths = [reader.varint() for _ in range(2 * tiles - 1)]
    last = len(reader.data) - reader.at - sum(lengths)
    if last < 0:
        raise FormatError("the file is truncated: it ends before the data that its header announces")
    lengths.append(last)
    return tuple(Payload(reader.take(z), reader.take(y)) for z, y in zip(lengths[::2], lengths[1::2], strict=True))
