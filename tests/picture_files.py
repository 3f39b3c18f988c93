"""Picture files made byte by byte."""

from __future__ import annotations

import io
import struct
import zlib

import numpy as np
from PIL import Image


def encoded(image: Image.Image, file_format: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, file_format, **options)
    return buffer.getvalue()


def made_profile(device_class: bytes, space: bytes, connection: bytes, tags: dict[bytes, bytes]) -> bytes:
    """A minimal ICC profile of version 2."""
    name = b"made for a test\0"
    tags = {
        b"desc": b"desc" + bytes(4) + struct.pack(">I", len(name)) + name + bytes(78),
        b"wtpt": b"XYZ " + bytes(4) + struct.pack(">3i", 63190, 65536, 54061),
        **tags,
    }
    table, body = struct.pack(">I", len(tags)), b""
    for signature, data in tags.items():
        table += signature + struct.pack(">2I", 132 + 12 * len(tags) + len(body), len(data))
        body += data + bytes(-len(data) % 4)
    header = bytes(4) + b"lcms" + struct.pack(">I", 0x02400000) + device_class + space + connection
    header += struct.pack(">6H", 2024, 1, 1, 0, 0, 0) + b"acsp" + bytes(28)
    header += struct.pack(">3i", 63190, 65536, 54061)
    header = header.ljust(128, b"\0")
    profile = header + table + body
    return struct.pack(">I", len(profile)) + profile[4:]


def linear_grey_profile() -> bytes:
    return made_profile(
        b"mntr", b"GRAY", b"XYZ ", {b"kTRC": b"curv" + bytes(4) + struct.pack(">IH", 1, 256) + bytes(2)}
    )


def chunk(kind: bytes, data: bytes) -> bytes:
    """A chunk of a PNG."""
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(samples: np.ndarray, bits: int, colour_type: int, *chunks: bytes) -> bytes:
    """A PNG of samples (height, width, channels) as they are stored; ``chunks`` come before the pixels."""
    height, width, _ = samples.shape
    row = samples.reshape(height, -1)
    packed = row.astype(f">u{bits // 8}").view(np.uint8) if bits >= 8 else packed_bits(row, bits)
    rows = np.concatenate([np.zeros((height, 1), np.uint8), packed.reshape(height, -1)], axis=1)
    head = chunk(b"IHDR", struct.pack(">2I5B", width, height, bits, colour_type, 0, 0, 0))
    pixels = chunk(b"IDAT", zlib.compress(rows.tobytes())) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + head + b"".join(chunks) + pixels


def packed_bits(row: np.ndarray, bits: int) -> np.ndarray:
    each = row[..., None] >> np.arange(bits - 1, -1, -1) & 1
    return np.packbits(each.reshape(len(row), -1).astype(np.uint8), axis=1)


def with_chunks(file: bytes, *chunks: bytes, end: bool = False) -> bytes:
    """A PNG with more chunks, before its pixels or at its end."""
    at = file.index(b"IEND") - 4 if end else file.index(b"IDAT") - 4
    return file[:at] + b"".join(chunks) + file[at:]


def bmp(rows: bytes, width: int, height: int, bits: int, masks: tuple[int, int, int, int]) -> bytes:
    """A BMP with a version 4 header and colour masks."""
    head = struct.pack("<IiiHHIIiiII", 108, width, height, 1, bits, 3, len(rows), 2835, 2835, 0, 0)
    head += struct.pack("<4I", *masks) + b"BGRs" + bytes(48)
    return b"BM" + struct.pack("<IHHI", 14 + len(head) + len(rows), 0, 0, 14 + len(head)) + head + rows


def tiff(samples: np.ndarray, photometric: int = 1, **tags: int) -> bytes:
    """A TIFF, little-endian, of samples (height, width, channels) in their own type; extra tags as ``tag_338=2``."""
    height, width, channels = samples.shape
    kind = {"u": 1, "i": 2, "f": 3}[samples.dtype.kind]
    bits = samples.dtype.itemsize * 8
    entries: dict[int, list[int]] = {
        256: [width],
        257: [height],
        258: [bits] * channels,
        259: [1],
        262: [photometric],
        277: [channels],
        278: [height],
        279: [samples.nbytes],
        339: [kind] * channels,
        **{int(name[4:]): [value] for name, value in tags.items()},
    }
    entries[273] = [0]
    place = 8 + 2 + 12 * len(entries) + 4
    extra = b""
    body = struct.pack("<H", len(entries))
    data_at = place + sum(2 * len(v) for v in entries.values() if len(v) > 2)
    entries[273] = [data_at]
    for tag, values in sorted(entries.items()):
        size = 4 if tag in (273, 279) else 2
        value = b"".join(v.to_bytes(size, "little") for v in values)
        if len(value) > 4:
            body += struct.pack("<HHII", tag, 3, len(values), place + len(extra))
            extra += value
        else:
            body += struct.pack("<HHI", tag, 4 if size == 4 else 3, len(values)) + value.ljust(4, b"\0")
    pixels = samples.astype(samples.dtype.newbyteorder("<")).tobytes()
    return b"II*\0" + struct.pack("<I", 8) + body + bytes(4) + extra + pixels
