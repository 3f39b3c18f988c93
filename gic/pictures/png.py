"""PNG files before Pillow reads them: without the metadata that would stop it, and with what it does not tell.

A wrong checksum or a large text beside the pixels makes Pillow refuse the whole file. Such chunks are left out here, as
libpng and the browsers do, and each is told.
"""

from __future__ import annotations

import struct
import zlib
from typing import NamedTuple

from PIL import PngImagePlugin

SIGNATURE = b"\x89PNG\r\n\x1a\n"
MAX_PROFILE = 1 << 24
"""Largest size of an ICC profile, in bytes."""

_TEXT = (b"tEXt", b"zTXt", b"iTXt")
_LEAST = {b"gAMA": 4, b"cHRM": 32, b"sRGB": 1, b"pHYs": 9, b"acTL": 8, b"fcTL": 26, b"cICP": 4}  # bytes
_LEAST_TRNS = {0: 2, 2: 6, 3: 1}  # by colour type


class Png(NamedTuple):
    """A PNG file that Pillow can read if its pixels are whole.

    Attributes:
        data: The file, without what was left out.
        profile: An ICC profile that is larger than Pillow takes, else empty.
        cicp: Colour as ITU-T H.273 codes it (primaries, transfer, matrix, full range); empty if it is not stated so.
        notes: What was left out.
    """

    data: bytes
    profile: bytes
    cicp: tuple[int, ...]
    notes: tuple[str, ...]


def repair(data: bytes) -> Png:
    """Leave out of a PNG file what is damaged or too large beside its pixels.

    Raises:
        ValueError: If a checksum of the pixels is wrong.
    """
    view = memoryview(data)
    parts, notes = [view[: len(SIGNATURE)]], []
    profile, kind = b"", b""
    cicp: tuple[int, ...] = ()
    pixels, text = False, 0
    at = len(SIGNATURE)
    while at + 8 <= len(data) and kind != b"IEND":
        length, kind = struct.unpack_from(">I4s", data, at)
        end = at + 12 + length
        optional = bool(kind[0] & 0x20)
        name = kind.decode("ascii", "replace")
        if end > len(data) or not kind.isalpha():  # Pillow says what is missing, unless the pixels are whole
            parts += [] if pixels and optional else [view[at:]]
            kind = b""
            break
        whole = zlib.crc32(view[at + 4 : end - 4]) == int.from_bytes(view[end - 4 : end], "big")
        if kind == b"IDAT" and not whole:
            raise ValueError("the checksum of its pixel data is wrong")
        body = bytes(view[at + 8 : end - 4]) if optional else b""
        least = _LEAST_TRNS.get(data[25], 0) if kind == b"tRNS" else _LEAST.get(kind, 0)
        problem = ""
        if not whole and optional:
            problem = "with a wrong checksum"
        elif length < least:
            problem = "that is too short"
        elif kind in _TEXT:
            try:
                text += _text_bytes(kind, body)
                problem = (
                    f"beyond {limit >> 20} MiB of text" if text > (limit := PngImagePlugin.MAX_TEXT_MEMORY) else ""
                )
            except ValueError:
                problem = f"above {PngImagePlugin.MAX_TEXT_CHUNK >> 20} MiB"
        elif kind == b"iCCP":
            try:
                profile = _large_profile(body)
            except (ValueError, zlib.error):
                problem = f"that is damaged or above {MAX_PROFILE >> 20} MiB"
        elif kind == b"cICP":
            cicp = tuple(body[:4])
        if problem:
            notes.append(f"{name} chunk {problem} left out")
        elif not (kind == b"iCCP" and profile):
            parts.append(view[at:end])
        pixels |= kind == b"IDAT"
        at = end
    if kind != b"IEND":
        notes.append("the end of the file is missing, the pixels are whole")
    return Png(b"".join(parts), profile, cicp, tuple(notes))


def _text_bytes(kind: bytes, body: bytes) -> int:
    """Size of a text when unpacked.

    Raises:
        ValueError: If it is packed, and Pillow would not unpack it.
    """
    _, _, text = body.partition(b"\0")
    packed = kind == b"zTXt" or (kind == b"iTXt" and text[:1] not in (b"", b"\0"))
    if not packed:
        return len(text)
    if kind == b"iTXt":
        text = text[1:2] + text[2:].split(b"\0", 2)[-1]
    try:
        return len(_unpacked(text, PngImagePlugin.MAX_TEXT_CHUNK))
    except zlib.error:
        return 0  # Pillow takes it for empty


def _large_profile(body: bytes) -> bytes:
    """The ICC profile of an iCCP chunk if Pillow would refuse it for its size, else nothing."""
    packed = body.partition(b"\0")[2]
    profile = _unpacked(packed, MAX_PROFILE)
    return profile if len(profile) > PngImagePlugin.MAX_TEXT_CHUNK - 1 else b""


def _unpacked(packed: bytes, limit: int) -> bytes:
    """Unpack a byte for the method (0) and a zlib stream, of which nothing above a limit is unpacked.

    Raises:
        ValueError: If it is larger, or the method is another.
        zlib.error: If it is damaged.
    """
    if packed[:1] != b"\0":
        raise ValueError("packed in an unknown way")
    stream = zlib.decompressobj()
    data = stream.decompress(packed[1:], limit)
    if stream.unconsumed_tail:
        raise ValueError("too large")
    return data
