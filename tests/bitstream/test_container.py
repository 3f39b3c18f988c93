"""The container: what is packed is unpacked; whatever is damaged is refused with a text that says why."""

from __future__ import annotations

import struct
import zlib

import numpy as np
import pytest
from fuzz import EXTREMES, sealed, varint

from gic.bitstream import container as fileformat
from gic.bitstream.container import (
    MAX_METADATA,
    MAX_PIXELS,
    MAX_SIDE,
    GicFile,
    Metadata,
    Payload,
    pack,
    tile_count,
    unpack,
)
from gic.errors import FormatError

MODEL = b"model!"


def example(**fields: object) -> GicFile:
    usual = {"model_id": MODEL, "width": 40, "height": 30, "code": -7, "payloads": (Payload(b"zzz", b"yyyyy"),)}
    return GicFile(**{**usual, **fields})  # type: ignore[arg-type]


EXAMPLES = {
    "plain": example(),
    "dither": example(quantizer="dither", seed=2**32 - 1),
    "tiled": example(tile=64, width=130, payloads=tuple(Payload(b"z" * i, b"y" * 150 * i) for i in range(3))),
    "metadata": example(metadata=Metadata(b"exif" * 30, b"icc" * 100)),
    "icc alone": example(metadata=Metadata(b"", b"icc")),
    "all": example(quantizer="dither", tile=128, metadata=Metadata(b"exif", b"icc")),
    "grey": example(grey=True),
    "one pixel": example(width=1, height=1),
    "largest": example(width=MAX_SIDE, height=MAX_PIXELS // MAX_SIDE),
    "nothing coded": example(payloads=(Payload(b"", b""),)),
    "coarsest": example(code=2**15 - 1),
    "finest": example(code=-(2**15)),
}


def body(
    flags: int = 0,
    size: bytes = varint(40) + varint(30),
    optional: bytes = b"",
    rest: bytes = varint(3) + b"zzzyyyyy",
    version: int = 1,
    magic: bytes = b"GIC",
) -> bytes:
    """A file written field by field, with a checksum that holds."""
    return sealed(magic + bytes([version, flags]) + MODEL + size + struct.pack("<h", -7) + optional + rest + bytes(4))


@pytest.mark.parametrize("name", EXAMPLES)
def test_fields_come_back_as_they_were(name: str) -> None:
    assert unpack(pack(EXAMPLES[name])) == EXAMPLES[name]


def test_the_bytes_are_the_documented_ones() -> None:
    assert pack(EXAMPLES["plain"]) == body()
    head = b"GIC\x01\x03" + MODEL + b"\x82\x01\x1e" + struct.pack("<hI", -7, 5) + b"\x01"
    file = example(quantizer="dither", seed=5, tile=64, width=130, payloads=(Payload(b"z", b"yy"),) * 3)
    assert pack(file) == sealed(head + b"\x01\x02\x01\x02\x01" + b"zyy" * 3 + bytes(4))


@pytest.mark.parametrize("name", EXAMPLES)
def test_a_file_cut_anywhere_is_refused(name: str) -> None:
    data = pack(EXAMPLES[name])
    for end in range(min(len(data), 400)):
        with pytest.raises(FormatError):
            unpack(data[:end])
        if end > 4:  # also if someone mends the checksum, except that the last payload has no length
            try:
                found = unpack(sealed(data[:end]))
            except FormatError:
                continue
            assert found.payloads[-1] != EXAMPLES[name].payloads[-1] or found == EXAMPLES[name]


@pytest.mark.parametrize("name", EXAMPLES)
def test_every_flipped_bit_is_noticed(name: str) -> None:
    data = pack(EXAMPLES[name])
    for at in range(min(len(data), 300)):
        for bit in range(8):
            with pytest.raises(FormatError):
                unpack(data[:at] + bytes([data[at] ^ 1 << bit]) + data[at + 1 :])


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"", "begin with GIC"),
        (b"\x89PNG\r\n", "begin with GIC"),
        (body(magic=b"gic"), "begin with GIC"),
        (body(version=3), "version 3.*update gic"),
        (body(version=0), "version 0"),
        (b"GIC", "truncated"),
        (b"GIC\x01", "truncated"),
        (b"GIC\x07", "version 7"),
        (body()[:-1], "checksum"),
        (body() + b"\0", "checksum.*trailing"),
        (body()[:-1] + b"\0", "checksum"),
        (body(flags=0x18), "unknown flags 0x18.* later gic"),
        (body(flags=0x80), "unknown flags"),
        (body(size=varint(0) + varint(30)), "no pixels"),
        (body(size=varint(40) + varint(0)), "no pixels"),
        (body(size=varint(MAX_SIDE + 1) + varint(1)), "larger than the format allows"),
        (body(size=varint(1) + varint(MAX_SIDE + 1)), "larger than the format allows"),
        (body(size=varint(MAX_SIDE) + varint(MAX_PIXELS // MAX_SIDE + 1)), "larger than the format allows"),
        (body(size=varint(2**41) + varint(2**41)), "larger than the format allows"),
        (body(size=varint(40, surplus=1) + varint(30)), "shortest form"),
        (body(size=varint(40) + varint(30, surplus=3)), "shortest form"),
        (body(size=b"\xff" * 7 + varint(30)), "too long"),
        (body(rest=varint(3, surplus=1) + b"zzzyyyyy"), "shortest form"),
        (body(rest=varint(9) + b"zzzyyyyy"), "ends before"),
        (body(rest=b""), "truncated"),
        (body(flags=2, optional=varint(0)), "tiles of 0"),
        (body(flags=2, optional=varint(2**10 + 1)), "tiles of 65600"),
        (body(flags=2, optional=varint(1), size=varint(130) + varint(30), rest=b"\1\1"), "cannot hold 3 tiles"),
        (body(flags=2, optional=varint(1), size=varint(2**16) + varint(2**12)), "cannot hold 65536 tiles"),
        (body(flags=1, rest=b""), "truncated"),
        (body(flags=4, optional=varint(200)), "truncated"),
        (body(flags=4, optional=varint(5) + b"noise"), "metadata is damaged"),
        (body(flags=4, optional=varint(0)), "metadata is damaged"),
    ],
)
def test_malformed_files_are_refused_with_the_reason(data: bytes, said: str) -> None:
    with pytest.raises(FormatError, match=said):
        unpack(data)


@pytest.mark.parametrize(("width", "height"), [(2**16, 1), (1, 2**16), (2**16, 2**12), (2**14, 2**14)])
def test_the_largest_pictures_are_the_documented_ones(width: int, height: int) -> None:
    assert unpack(pack(example(width=width, height=height))) == example(width=width, height=height)
    for size in ((width + 1, height), (width, height + 1)):
        if max(size) > 2**16 or size[0] * size[1] > 2**28:
            with pytest.raises(FormatError, match="larger than the format allows"):
                unpack(body(size=varint(size[0]) + varint(size[1])))


def with_metadata(packed: bytes) -> bytes:
    return body(flags=4, optional=varint(len(packed)) + packed)


def test_metadata_that_unpacks_to_too_much_is_refused() -> None:
    assert unpack(with_metadata(zlib.compress(varint(1) + bytes(9)))).metadata == Metadata(b"\0", bytes(8))
    bomb = zlib.compress(varint(0) + bytes(MAX_METADATA + 1), 9)
    assert len(bomb) < 20_000
    for packed in (bomb, zlib.compress(bytes(2**27), 9)):
        with pytest.raises(FormatError, match="too large"):
            unpack(with_metadata(packed))
    largest = Metadata(bytes(MAX_METADATA - 5), bytes(5))
    assert unpack(pack(example(metadata=largest))).metadata == largest


def test_damaged_metadata_is_refused() -> None:
    good = zlib.compress(varint(4) + b"exificc")
    for packed in (good[:-1], good + b"x", zlib.compress(varint(40) + b"exif"), zlib.compress(b"")):
        with pytest.raises(FormatError, match="metadata"):
            unpack(with_metadata(packed))


@pytest.mark.parametrize(
    "fields",
    [
        {"model_id": b"short"},
        {"width": 0},
        {"height": MAX_SIDE + 1},
        {"tile": 32},
        {"tile": -64},
        {"seed": 2**32},
        {"payloads": ()},
        {"tile": 64, "width": 65},
        {"metadata": Metadata(bytes(MAX_METADATA), b"1")},
    ],
)
def test_the_encoder_s_mistakes_are_not_written(fields: dict[str, object]) -> None:
    with pytest.raises(ValueError):
        pack(example(**fields))


def test_headers_at_extremes_are_read_or_refused() -> None:
    """All pairs of extreme sizes, with every flag, over a payload of a few bytes; checksums hold."""
    read = 0
    for width in EXTREMES:
        for height in EXTREMES:
            for flags, tile in ((8, 0), (2, 1), (10, 16), (2, 2**12), (3, 2**35)):
                optional = bytes(4) * (flags & 1) + (varint(tile) if flags & 2 else b"")
                try:
                    file = unpack(body(flags, varint(width) + varint(height), optional, b"\1" * 9))
                except FormatError:
                    continue
                read += 1
                assert len(file.payloads) == tile_count(file.width, file.height, file.tile) <= 5
                assert file.width * file.height <= MAX_PIXELS
    assert read > 20


def test_random_bytes_behind_a_good_header_are_read_or_refused() -> None:
    rng = np.random.default_rng(0)
    for _ in range(3000):
        flags = int(rng.integers(0, 32))
        data = body(flags=flags, size=rng.bytes(int(rng.integers(1, 8))), rest=rng.bytes(int(rng.integers(0, 30))))
        try:
            file = unpack(data)
        except FormatError:
            continue
        assert unpack(pack(file)) == file


def test_the_container_knows_nothing_of_the_rest_of_gic() -> None:
    import ast
    from pathlib import Path

    tree = ast.parse(Path(fileformat.__file__).read_text())
    modules = {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert {m for m in modules if m and m.startswith("gic")} == {
        "gic.bitstream.chunks",
        "gic.bitstream.fields",
        "gic.errors",
    }
