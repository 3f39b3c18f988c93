"""The colour that AVIF, HEIF and JPEG 2000 files state in their boxes, which Pillow does not tell.

ISO/IEC 14496-12 and 23008-12, and 15444-1 annex I.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator


def stated_colour(data: bytes) -> tuple[int, ...]:
    """Colour of the main picture as ITU-T H.273 codes it: primaries, transfer, matrix, full range.

    Args:
        data: A whole file; it may be damaged.

    Returns:
        The four codes; empty if the file states none.
    """
    try:
        start, end = _find(data, b"meta", 0, len(data))
        start += 4  # version and flags
        at, _ = _find(data, b"pitm", start, end)
        (item,) = struct.unpack_from(">I" if data[at] else ">H", data, at + 4)
        properties = _find(data, b"iprp", start, end)
        known = list(_boxes(data, *_find(data, b"ipco", *properties)))
        for index in _properties_of(item, data, *_find(data, b"ipma", *properties)):
            kind, at, stop = known[index - 1]
            if kind == b"colr" and data[at : at + 4] == b"nclx" and stop - at >= 11:
                primaries, transfer, matrix, full = struct.unpack_from(">3HB", data, at + 4)
                return primaries, transfer, matrix, full >> 7
    except (IndexError, LookupError, struct.error):
        pass  # a damaged file: its decoder says so
    return ()


def jpeg2000_profile(data: bytes) -> bytes:
    """The ICC profile of a JPEG 2000 file; empty if it has none."""
    try:
        for kind, at, stop in _boxes(data, *_find(data, b"jp2h", 0, len(data))):
            if kind == b"colr" and data[at] in (2, 3):  # 1: sRGB, grey or sYCC, by a number
                return data[at + 3 : stop]
    except (IndexError, LookupError, struct.error):
        pass  # a damaged file, or one without boxes
    return b""


def _boxes(data: bytes, at: int, end: int) -> Iterator[tuple[bytes, int, int]]:
    """Kind, start and end of the contents of each box between two places."""
    while at + 8 <= end:
        size, kind = struct.unpack_from(">I4s", data, at)
        header = 8
        if size == 1:
            (size,), header = struct.unpack_from(">Q", data, at + 8), 16
        stop = end if size == 0 else at + size
        if (size != 0 and size < header) or stop > end:
            return
        yield kind, at + header, stop
        at = stop


def _find(data: bytes, kind: bytes, at: int, end: int) -> tuple[int, int]:
    """Start and end of the contents of the first box of a kind; a LookupError if there is none."""
    for found, start, stop in _boxes(data, at, end):
        if found == kind:
            return start, stop
    raise LookupError(kind)


def _properties_of(item: int, data: bytes, at: int, end: int) -> Iterator[int]:
    """Numbers, from 1, of the properties that the contents of an ``ipma`` box give to an item."""
    version, wide = data[at], data[at + 3] & 1
    (count,) = struct.unpack_from(">I", data, at + 4)
    at += 8
    for _ in range(count):
        if at >= end:
            return
        (owner,) = struct.unpack_from(">I" if version else ">H", data, at)
        at += 4 if version else 2
        properties = data[at]
        at += 1
        for _ in range(properties):
            number = struct.unpack_from(">H", data, at)[0] & 0x7FFF if wide else data[at] & 0x7F
            at += 2 if wide else 1
            if owner == item and number:
                yield number
