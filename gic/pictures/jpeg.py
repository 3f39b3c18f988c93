"""Whether the pixels of a JPEG (ITU-T T.81) or JPEG 2000 (ITU-T T.800) are all there, which Pillow does not tell."""

from __future__ import annotations

import io
import struct
from collections import Counter

from PIL import Image

_END = b"\xff\xd9"
# What may stand between the last byte of a file and its end without a trace if the pixels are whole: coded data, and
# the restart markers 0 to 7, each with coded data behind it.
_PADDINGS = (b"", b"\x55" * 64, b"\xaa" * 64, b"".join(bytes([0xFF, 0xD0 + n % 8]) + b"\x55" * 16 for n in range(16)))


def without_end(data: bytes) -> Image.Image | None:
    """Read a JPEG whose end marker is missing; None if pixels are missing too, or it is damaged in another way.

    What is decoded from a file that is cut short depends on the bytes that follow; what is decoded from one whose
    pixels are whole does not.
    """
    data = data.rstrip(b"\xff")
    if not _has_all_scans(data):
        return None
    pictures = []
    for padding in _PADDINGS:
        picture: Image.Image = Image.OPEN["JPEG"][0](io.BytesIO(data + padding + _END), "")
        try:
            picture.load()
        except OSError:
            return None
        pictures.append(picture)
    return pictures[0] if len({picture.tobytes() for picture in pictures}) == 1 else None


def _has_all_scans(data: bytes) -> bool:
    """Whether each of the 64 coefficients of each component has a scan with its last bit."""
    wanted, given = set(), set()
    at = 2
    while (at := data.find(b"\xff", at)) >= 0 and at + 10 < len(data):
        kind = data[at + 1]
        if kind in (0x00, 0x01, 0xFF) or 0xD0 <= kind <= 0xD8:  # no marker with a length
            at += 1 if kind == 0xFF else 2
            continue
        if kind in (0xC0, 0xC1, 0xC2):  # the frame
            wanted = {(c, k) for c in data[at + 10 : at + 10 + 3 * data[at + 9] : 3] for k in range(64)}
        elif kind == 0xDA:  # a scan
            end = at + 5 + 2 * data[at + 4]
            first, last, bits = data[end : end + 3].ljust(3, b"\xff")
            if bits & 15 == 0:
                given |= {(c, k) for c in data[at + 5 : end : 2] for k in range(first, last + 1)}
        at += 2 + int.from_bytes(data[at + 2 : at + 4], "big")
    return bool(wanted) and wanted <= given


def lacks_tiles(data: bytes) -> bool:
    """Whether parts of tiles are missing from a JPEG 2000 file: its decoder makes them black or coarse."""
    try:
        at = data.index(b"\xff\x4f\xff\x51") + 2  # the codestream and its first segment, the size
        right, bottom, _, _, width, height, left, top = struct.unpack_from(">8I", data, at + 6)
        tiles = -(-(right - left) // width) * -(-(bottom - top) // height)
        while data[at : at + 2] != b"\xff\x90":  # the first part of a tile
            at += 2 + struct.unpack_from(">H", data, at + 2)[0]
        found, stated = Counter[int](), Counter[int]()
        while data[at : at + 2] == b"\xff\x90":
            tile, size, _, parts = struct.unpack_from(">HI2B", data, at + 4)
            found[tile] += 1
            stated[tile] = max(stated[tile], parts)
            if size == 0:  # to the end
                return _END not in data[at:]
            at += size
    except (ValueError, ZeroDivisionError, struct.error):
        return True
    if data[at : at + 2] == _END:
        return False
    return at > len(data) or len(found) < tiles or any(found[tile] < stated[tile] for tile in stated)
