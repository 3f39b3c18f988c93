"""Damaged ``.gic`` files of every kind, and what decoding them may do."""

from __future__ import annotations

import base64
import struct
import zlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest
from small import picture

from gic.bitstream.container import Metadata, _pack_regions, pack, unpack
from gic.codec import encoder
from gic.codec.image_codec import ImageCodec
from gic.errors import FormatError

EXTREMES = (0, 1, 2, 63, 64, 65, 127, 128, 2**14, 2**18, 2**18 + 1, 2**21, 2**28, 2**32 - 1, 2**35, 2**42 - 1)


def sealed(data: bytes) -> bytes:
    """The file with checksums that hold: in its last four bytes, or of a progressive file wherever they lie."""
    if data[3:4] == b"\2":
        return sealed_progressive(data)
    body = data[:-4]
    return body + struct.pack("<I", zlib.crc32(body))


def sealed_progressive(data: bytes) -> bytes:
    """The same of a progressive file, as far as its numbers make sense."""
    at = 11

    def number() -> int:
        nonlocal at
        value = shift = 0
        while True:
            value |= (data[at] & 0x7F) << shift
            shift += 7
            at += 1
            if data[at - 1] < 0x80:
                return value

    try:
        flags, width, height = data[4], number(), number()
        at += 6 if flags & 1 else 2
        tile = 64 * number() if flags & 2 else 2**42
        if flags & 4:
            size = number()
            at += size
        tiles = -(-width // tile) * -(-height // tile) if tile else 0
        at += 1
        [number() for _ in range(data[at - 1])]
        if flags & 32:
            size = number()
            at += size
        payloads = sum(number() for _ in range(min(2 * tiles, len(data))))
        at += payloads
    except IndexError:
        return data
    if at + 4 > len(data):
        return data
    crc = zlib.crc32(data[:at])
    out, begin = data[:at] + struct.pack("<I", crc), at + 4
    try:
        while (at := begin) < len(data):
            if flags & 2:
                number()
            number()
            size = number()
            at += size
            if at + 2 > len(data):
                break
            crc = zlib.crc32(data[begin:at], crc)
            out += data[begin:at] + struct.pack("<H", crc & 0xFFFF)
            begin = at + 2
    except IndexError:
        pass
    return out + data[begin:]


def varint(value: int, surplus: int = 0) -> bytes:
    """LEB128, with ``surplus`` bytes more than needed."""
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    for _ in range(surplus):
        out[-1] |= 0x80
        out.append(0)
    return bytes(out)


def originals(codec: ImageCodec) -> list[bytes]:
    """Valid files with every optional field."""
    small = picture(40, 30)
    files = [
        codec.compress(small, q=1.0, quantizer="round"),
        codec.compress(small, q=4.0, quantizer="dither", seed=7),
        codec.compress(picture(70, 66, "noise"), q=4.0, tile=64),
        codec.compress(picture(1, 1), q=1.0),
        codec.compress(small[:1].expand(3, -1, -1), q=2.0),
    ]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(encoder, "CHUNK_BYTES", 30)  # several for each level
        files += [
            codec.compress(small, q=0.6, progressive=True),
            codec.compress(picture(100, 66, "noise"), q=0.8, tile=64, progressive=True),
            codec.compress(picture(70, 80), q=0.5, progressive=True),
            codec.compress(picture(70, 80), q=0.6, roi=picture(70, 80, "noise") // 2, progressive=True),
        ]
    return [*files, pack(replace(unpack(files[0]), metadata=Metadata(b"exif" * 9, b"icc" * 9)))]


def crafted(codec: ImageCodec, rng: np.random.Generator, payload: bytes) -> bytes:
    """A file built field by field, each now and then at an extreme."""

    def number(usual: int) -> bytes:
        if rng.random() < 0.75:
            return varint(usual)
        return varint(int(rng.choice(EXTREMES)), surplus=int(rng.random() < 0.1))

    version = int(rng.choice([1, 1, 2]))
    flags = (
        int(rng.integers(0, 16)) | int(rng.choice([16, 16, 48])) * (version - 1)
        if rng.random() < 0.9
        else int(rng.integers(0, 256))
    )
    model = codec.model_id if rng.random() < 0.97 else rng.bytes(6)
    low, high = (codec.finest, codec.coarsest + 1) if rng.random() < 0.8 else (-(2**15), 2**15)
    level = int(rng.integers(low, high))
    out = b"GIC" + bytes([version, flags]) + model + number(40) + number(30) + struct.pack("<h", level)
    if flags & 1:
        out += rng.bytes(4)
    if flags & 2:
        out += number(1)
    if flags & 4:
        plain = number(5) + rng.bytes(int(rng.integers(0, 40)))
        packed = zlib.compress(plain) if rng.random() < 0.7 else rng.bytes(20)
        out += number(len(packed)) + packed
    if version == 2:
        out += bytes([levels := int(rng.choice([0, 1, 2, 2, 3, 15, 16, 255]))])
        out += b"".join(number(len(payload) // 2) for _ in range(levels))
    if version == 2 and flags & 32:
        offsets = _pack_regions(bytes(int(rng.choice([1, 1, 1, 2, 10**6]))))
        out += number(len(offsets)) + offsets
    for _ in range(int(rng.choice([1, 1, 1, 0, 3, 7]))):
        out += number(len(payload) // 3)
    return sealed(out + payload + b"crc.")


def mutations(codec: ImageCodec, count: int, seed: int) -> Iterator[bytes]:
    """Damaged files, the same for the same seed."""
    rng = np.random.default_rng(seed)
    files = originals(codec)
    chunked = [data for data in files if data[3] == 2]
    for number in range(count):
        data = files[int(rng.integers(len(files)))]
        damaged = bytearray(data)
        at = int(rng.integers(len(data)))
        match number % 9:
            case 0:
                del damaged[at:]
            case 1:
                for _ in range(int(rng.integers(1, 5))):
                    damaged[int(rng.integers(len(data)))] ^= 1 << int(rng.integers(8))
            case 2:
                other = files[int(rng.integers(len(files)))]
                damaged[at:] = other[int(rng.integers(len(other))) :]
            case 3:
                damaged[at : at + int(rng.integers(0, 6))] = rng.bytes(int(rng.integers(0, 6)))
            case 4:
                at = int(rng.integers(11, 24))
                damaged[at : at + 1] = varint(int(rng.choice(EXTREMES)))
            case 5:
                damaged[30:-4] = rng.bytes(int(rng.integers(0, 2 * len(data))))
            case 6:
                damaged = bytearray(crafted(codec, rng, data[20:-4]))
            case 7:  # chunks of a progressive file
                data = chunked[int(rng.integers(len(chunked)))]
                start = unpack(data).progressive.start  # type: ignore[union-attr]
                damaged = bytearray(data)
                for _ in range(int(rng.integers(1, 4))):
                    damaged[int(rng.integers(start, len(data)))] ^= 1 << int(rng.integers(8))
            case _:
                damaged += rng.bytes(int(rng.integers(1, 9)))
        # A checksum that holds lets the damage through to what lies behind it.
        yield sealed(bytes(damaged)) if rng.random() < 0.7 and len(damaged) > 4 else bytes(damaged)


def fuzz(codec: ImageCodec, count: int, seed: int = 0) -> Counter[str]:
    """Decode ``count`` damaged files.

    Returns:
        How many were refused, decoded, and decoded although they differ from every original.

    Raises:
        AssertionError: If one gives neither a picture of the right size nor a FormatError with a text; its bytes are
            in the message.
    """
    outcome: Counter[str] = Counter()
    for data in mutations(codec, count, seed):
        try:
            image = codec.decompress(data, sampler="mean")
        except FormatError as error:
            outcome["refused"] += 1
            assert len(str(error)) > 15, error
        except Exception as error:
            raise AssertionError(f"{type(error).__name__}: {error} on {base64.b85encode(data)!r}") from error
        else:
            outcome["decoded"] += 1
            file = unpack(data)
            assert image.size == (file.width, file.height), base64.b85encode(data)
    return outcome
