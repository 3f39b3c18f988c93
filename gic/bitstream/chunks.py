"""Chunks: what follows the first level of a progressive file (DESIGN 11; every field in docs/format.md).

    [tile] | number of elements | size | code | check

A chunk goes on where the last one of its tile ended, so that a file may end anywhere: the chunks before the end are
whole, and of the one that is cut the first elements are there. Its check is the lower half of the CRC-32 of all bytes
of the file before it but the checksum of the first level and the checks of other chunks, and so also notices chunks
that are missing, in another order or of another file. (A CRC-32 that went on over another would forget what was before:
that of any bytes followed by their own is the same number.)
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import accumulate
from typing import NamedTuple

from gic.bitstream import rans
from gic.bitstream.fields import Reader, varint
from gic.errors import FormatError, TruncatedError

MAX_REFINEMENTS = 15
"""Largest number of levels after the first; a level three times as fine for each."""
_CHECK = struct.Struct("<H")
_HEAD_CHECKSUM = 4  # bytes: the CRC-32 at the end of the first level
_NUMBERS = 18  # bytes: the longest that three numbers can be


class Chunk(NamedTuple):
    """Some elements of y of one tile, refined.

    Attributes:
        level: Which refinement it belongs to; 0 is the one after the first level.
        tile: Number of the tile.
        elements: Number of elements.
        data: Their code, or the first bytes of it.
        size: Number of bytes of the whole code.
    """

    level: int
    tile: int
    elements: int
    data: bytes
    size: int

    @property
    def cut(self) -> bool:
        """Whether the end of the code is missing."""
        return len(self.data) < self.size


@dataclass(frozen=True)
class Progressive:
    """What a progressive file holds after its first level.

    Attributes:
        refinements: Number of levels after the first in the whole file.
        chunks: Those that are there, in the order of the file.
        start: Bytes of header and first level.
        ends: Bytes at which each refinement ends, in the whole file.
        stops: Bytes at which each chunk ends.
        held: Bytes that could be used.
        lost: Why no more could be used, though there are more bytes; or empty.
    """

    refinements: int
    chunks: tuple[Chunk, ...]
    start: int = field(default=0, compare=False)
    ends: tuple[int, ...] = field(default=(), compare=False)
    stops: tuple[int, ...] = field(default=(), compare=False)
    held: int = field(default=0, compare=False)
    lost: str = field(default="", compare=False)

    @cached_property
    def of_tile(self) -> dict[int, list[Chunk]]:
        """Chunks of each tile that has some."""
        found: dict[int, list[Chunk]] = {}
        for chunk in self.chunks:
            found.setdefault(chunk.tile, []).append(chunk)
        return found

    @property
    def size(self) -> int:
        """Bytes of the whole file."""
        return self.ends[-1] if self.ends else self.start

    @property
    def useful(self) -> int:
        """Bytes without which nothing that is held would be lost: less than ``held`` where the last chunk is cut."""
        before = (self.start, *self.stops)
        if not self.chunks or not self.chunks[-1].cut:
            return min(before[-1], self.held)  # of the last check some bytes may be missing
        last = self.chunks[-1]
        usable = rans.usable(len(last.data), last.size)
        return self.held - len(last.data) + usable if usable else before[-2]

    @property
    def complete(self) -> int:
        """Number of refinements that are there from beginning to end."""
        return sum(end <= self.held for end in self.ends)


def pack_chunks(progressive: Progressive, tiled: bool) -> list[list[bytes]]:
    """Chunks of each refinement as bytes, without their checks.

    Raises:
        ValueError: If a chunk is cut, or the order is wrong.
    """
    levels: list[list[bytes]] = [[] for _ in range(progressive.refinements)]
    if len(levels) > MAX_REFINEMENTS or any(chunk.cut for chunk in progressive.chunks):
        raise ValueError("too many levels, or a chunk that is cut")
    last = 0
    for chunk in progressive.chunks:
        if chunk.level < last or chunk.elements < 1:
            raise ValueError("the chunks must be in the order of their levels, and none may be empty")
        last = chunk.level
        number = varint(chunk.tile) if tiled else b""
        levels[last].append(number + varint(chunk.elements) + varint(chunk.size) + chunk.data)
    return levels


def bytes_of(level: Sequence[bytes]) -> int:
    """Size of a refinement in the file, with the checks."""
    return sum(len(chunk) + _CHECK.size for chunk in level)


def append_chunks(head: bytes, levels: Sequence[Sequence[bytes]]) -> bytes:
    """A file from its header and first level, and the chunks of :func:`pack_chunks`."""
    out = bytearray(head)
    crc = zlib.crc32(head[:-_HEAD_CHECKSUM])
    for chunk in (chunk for level in levels for chunk in level):
        crc = zlib.crc32(chunk, crc)
        out += chunk + _CHECK.pack(crc & 0xFFFF)
    return bytes(out)


def read_chunks(data: bytes, start: int, sizes: Sequence[int], tiles: int, tiled: bool) -> Progressive:
    """Read the chunks of a file, as far as they are there and in order.

    Args:
        data: The file, or the first bytes of it.
        start: Where the chunks begin.
        sizes: Bytes of each refinement.
        tiles: Number of tiles.
        tiled: Whether chunks name their tile.
    """
    ends = tuple(accumulate(sizes, initial=start))[1:]
    chunks: list[Chunk] = []
    stops: list[int] = []
    crc, at, lost = zlib.crc32(data[: start - _HEAD_CHECKSUM]), start, ""
    size = ends[-1] if ends else start
    for level, end in enumerate(ends):
        while at < min(end, len(data)):
            reader = Reader(data[at : min(end, at + _NUMBERS)], "chunk")
            try:
                tile = reader.varint() if tiled else 0
                count, length = reader.varint(), reader.varint()
                if tile >= tiles or count < 1 or length < 1 or at + reader.at + length + _CHECK.size > end:
                    raise FormatError("its header is damaged")
                stop = at + reader.at + length + _CHECK.size
                code = data[at + reader.at : stop - _CHECK.size]
                if stop <= len(data):
                    crc = zlib.crc32(data[at : stop - _CHECK.size], crc)
                    if _CHECK.unpack(data[stop - _CHECK.size : stop])[0] != crc & 0xFFFF:
                        raise FormatError("its checksum does not match")
            except TruncatedError:  # within the numbers at the beginning of the chunk
                if len(data) >= end:
                    lost = _lost(len(chunks), at, len(data), "its header is damaged")
                break
            except FormatError as error:
                lost = _lost(len(chunks), at, len(data), str(error))
                break
            if code:
                chunks.append(Chunk(level, tile, count, code, length))
                stops.append(stop)
            at = min(stop, len(data))
        if at != end:
            break
    if not lost and len(data) > size:
        lost = f"{len(data) - size} bytes after the end of the file are not part of it"
    return Progressive(len(sizes), tuple(chunks), start, ends, tuple(stops), min(at, len(data)), lost)


def _lost(number: int, at: int, size: int, problem: str) -> str:
    return f"chunk {number + 1}, at byte {at}, is damaged ({problem}): {size - at} bytes are lost"
