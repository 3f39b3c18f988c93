"""Chunks of a progressive file: written and read in order, and as far as they are there and whole."""

from __future__ import annotations

import struct
import zlib
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from fuzz import EXTREMES, varint

from gic.bitstream.chunks import MAX_REFINEMENTS, Chunk, Progressive
from gic.bitstream.container import GicFile, Metadata, Payload, pack, truncate, unpack
from gic.errors import ConfigError, FormatError, TruncatedError

CHUNKS = (
    Chunk(0, 2, 5, b"\1abcdefgh", 9),
    Chunk(0, 0, 300, b"\2" + bytes(199), 200),
    Chunk(0, 2, 1, b"\3", 1),
    Chunk(1, 1, 2**20, b"\4abcdef", 7),
    Chunk(1, 0, 77, b"\5abcde", 6),
)


def progressive_file(tiled: bool = True, chunks: tuple[Chunk, ...] = CHUNKS, levels: int = 2, **more) -> GicFile:
    """A file of 2 x 2 tiles or of one, whose payloads nobody decodes."""
    if not tiled:
        chunks = tuple(chunk._replace(tile=0) for chunk in chunks)
    payloads = tuple(Payload(bytes([i] * (3 + i)), b"y" * (5 - i)) for i in range(4 if tiled else 1))
    tile = 64 if tiled else 0
    return GicFile(b"modell", 100, 90, -700, payloads, tile=tile, progressive=Progressive(levels, chunks), **more)


FILES = {
    "tiled": progressive_file(),
    "one piece": progressive_file(False),
    "metadata": progressive_file(False, metadata=Metadata(b"exif" * 9, b"icc" * 9), grey=True),
    "no refinement": progressive_file(chunks=(), levels=0),
    "an empty level": progressive_file(chunks=tuple(c._replace(level=2 * c.level) for c in CHUNKS), levels=4),
    "many levels": progressive_file(chunks=tuple(c._replace(level=i) for i, c in enumerate(CHUNKS)), levels=15),
}


@pytest.fixture(params=FILES)
def file(request: pytest.FixtureRequest) -> GicFile:
    return FILES[request.param]


def read(data: bytes) -> Progressive:
    found = unpack(data).progressive
    assert found is not None
    return found


# --- there and back -------------------------------------------------------------------------------------------


def test_a_file_is_read_as_it_was_written(file: GicFile) -> None:
    data = pack(file)
    assert data[:5] == b"GIC\2" + bytes([data[4]]) and data[4] & 16
    assert unpack(data) == file and pack(unpack(data)) == data
    found = read(data)
    assert found.size == found.held == found.useful == len(data) and found.lost == ""
    assert found.complete == found.refinements == len(found.ends)
    assert len(found.stops) == len(found.chunks) and sorted(found.stops) == list(found.stops)
    assert found.start == (len(data) if not found.chunks else found.start)
    head = pack(replace(file, progressive=Progressive(0, ())))
    assert found.start >= len(head) and set(found.ends) <= {found.start, *found.stops}


def test_the_checks_are_those_of_all_bytes_before_them_but_other_checks() -> None:
    data = pack(FILES["tiled"])
    found = read(data)
    plain, begin = data[: found.start - 4], found.start
    assert zlib.crc32(data[: found.start - 4]) == struct.unpack("<I", data[found.start - 4 : found.start])[0]
    for stop in found.stops:
        plain += data[begin : stop - 2]
        begin = stop
        assert zlib.crc32(plain) & 0xFFFF == struct.unpack("<H", data[stop - 2 : stop])[0]


@pytest.mark.parametrize(
    "damaged",
    [
        Progressive(MAX_REFINEMENTS + 1, ()),
        Progressive(2, CHUNKS[::-1]),
        Progressive(2, (CHUNKS[0]._replace(elements=0),)),
        Progressive(2, (CHUNKS[0]._replace(data=b"\1"),)),
    ],
)
def test_chunks_that_are_not_whole_or_in_order_are_not_written(damaged: Progressive) -> None:
    with pytest.raises(ValueError, match=r"chunk|levels"):
        pack(replace(FILES["tiled"], progressive=damaged))
    with pytest.raises(ValueError, match="quantizer round"):
        pack(replace(FILES["tiled"], quantizer="dither"))


# --- beginnings -----------------------------------------------------------------------------------------------


def test_every_beginning_is_an_error_before_the_end_of_the_first_level_and_a_file_after_it(file: GicFile) -> None:
    data = pack(file)
    whole = read(data)
    for size in range(len(data)):
        if size < whole.start:
            with pytest.raises(TruncatedError if size > 2 else FormatError, match=r"truncated|no \.gic file"):
                unpack(data[:size])
            continue
        found = read(data[:size])
        assert found.lost == "" and found.refinements == whole.refinements and found.ends == whole.ends
        assert found.size == len(data) and found.start <= found.held <= size and found.useful <= found.held
        before = sum(stop <= size for stop in whole.stops)
        assert found.chunks[:before] == whole.chunks[:before] and len(found.chunks) <= before + 1
        for chunk, other in zip(found.chunks[before:], whole.chunks[before:], strict=False):
            assert other.data.startswith(chunk.data) and chunk[:3] == other[:3] and chunk.size == other.size
        assert found.complete == sum(end <= size for end in whole.ends)


def test_a_cut_file_is_no_longer_than_asked_and_holds_all_that_is_of_use(file: GicFile) -> None:
    data = pack(file)
    whole = read(data)
    for size in range(len(data) + 3):
        if size < whole.start:
            with pytest.raises(ConfigError, match=f"take {whole.start} bytes: it cannot be shorter"):
                truncate(data, size)
            continue
        cut = truncate(data, size)
        assert len(cut) <= size and data.startswith(cut)
        assert truncate(cut, size) == cut == truncate(data[: max(size, whole.start)], size)
        assert len(cut) >= max(end for end in (whole.start, *whole.stops) if end <= size)
    assert truncate(data, len(data)) == truncate(data + b"more", 10**9) == data


def test_only_progressive_files_can_be_cut() -> None:
    plain = replace(FILES["one piece"], progressive=None)
    with pytest.raises(FormatError, match="only progressive files can be cut"):
        truncate(pack(plain), 40)
    with pytest.raises(FormatError, match=r"damaged|truncated"):
        truncate(pack(FILES["tiled"])[:20] + b"x" * 300, 200)


# --- damage ---------------------------------------------------------------------------------------------------


def test_damage_anywhere_keeps_the_chunks_before_it_and_is_told(file: GicFile) -> None:
    data = pack(file)
    whole = read(data)
    for at in range(len(data)):
        damaged = data[:at] + bytes([data[at] ^ 0x41]) + data[at + 1 :]
        if at < whole.start:
            with pytest.raises(FormatError):
                unpack(damaged)
            continue
        number = sum(stop <= at for stop in whole.stops)
        found = read(damaged)
        begin = (whole.start, *whole.stops)[number]
        assert found.chunks == whole.chunks[:number] and found.held == found.useful == begin
        assert found.lost.startswith(f"chunk {number + 1}, at byte {begin}, is damaged (")
        assert found.lost.endswith(f": {len(data) - begin} bytes are lost") and "\n" not in found.lost
        assert truncate(damaged, len(damaged)) == data[:begin]


def test_chunks_that_are_missing_doubled_or_in_another_order_are_found() -> None:
    data = pack(FILES["tiled"])
    whole = read(data)
    begins = (whole.start, *whole.stops)
    parts = [data[a:b] for a, b in pairwise(begins)]
    head = data[: whole.start]
    for order in ([1, 0, 2, 3, 4], [0, 2, 1, 3, 4], [0, 2, 3, 4], [0, 1, 1, 2, 3, 4], [0, 1, 2, 4, 3], [1, 2, 3, 4]):
        same = next((i for i, number in enumerate(order) if number != i), len(order))
        found = read(head + b"".join(parts[number] for number in order))
        assert found.chunks == whole.chunks[:same]
        assert f"chunk {same + 1}, at byte {begins[same]}, is damaged" in found.lost
    other = pack(replace(FILES["tiled"], width=101))  # the same chunks behind another header
    assert read(other[: whole.start] + data[whole.start :]).chunks == ()


def test_bytes_after_the_end_are_told_and_left_out(file: GicFile) -> None:
    data = pack(file)
    found = read(data + b"abc")
    assert found.lost == "3 bytes after the end of the file are not part of it"
    assert found.held == found.useful == len(data) and found.chunks == read(data).chunks


def resealed(head: bytes, chunks: bytes) -> bytes:
    """A first level with a checksum that holds, and bytes after it."""
    return head + struct.pack("<I", zlib.crc32(head)) + chunks


@pytest.mark.parametrize("value", [0, 16, 17, 255])
def test_a_number_of_levels_that_does_not_fit_is_refused_or_told(value: int) -> None:
    data = pack(FILES["one piece"])
    at = 15  # after magic, version, flags, model, two sides of one byte and the code
    assert data[at] == 2
    damaged = resealed(data[:at] + bytes([value]) + data[at + 1 : read(data).start - 4], b"")
    if value > MAX_REFINEMENTS:
        with pytest.raises(FormatError, match=f"the header is damaged: {value} levels"):
            unpack(damaged)
    else:
        with pytest.raises(FormatError):
            unpack(damaged)


@pytest.mark.parametrize("flags", [0, 1, 2, 17, 32, 48, 64, 128, 255])
def test_flags_that_do_not_fit_are_refused(flags: int) -> None:
    data = pack(FILES["one piece"])
    start = read(data).start
    head = data[:4] + bytes([flags]) + data[5 : start - 4]
    with pytest.raises(FormatError, match=r"flags|damaged"):
        unpack(resealed(head, data[start:]))
    plain = pack(replace(FILES["one piece"], progressive=None))
    body = plain[:4] + bytes([plain[4] | 16]) + plain[5:-4]
    with pytest.raises(FormatError, match="unknown flags"):
        unpack(body + struct.pack("<I", zlib.crc32(body)))


@pytest.mark.parametrize("value", EXTREMES)
def test_sizes_of_levels_may_be_anything(value: int) -> None:
    """They say where a level ends: more than there is reads as a beginning, less as damage."""
    data = pack(FILES["one piece"])
    whole = read(data)
    sizes = varint(whole.ends[0] - whole.start) + varint(whole.ends[1] - whole.ends[0])
    assert data[16 : 16 + len(sizes)] == sizes
    head = data[:16] + varint(value) + sizes[2:] + data[16 + len(sizes) : whole.start - 4]
    try:
        found = read(resealed(head, data[whole.start :]))
    except FormatError as error:
        assert value >= 2**35 and "too long" in str(error)
    else:
        assert found.lost or (found.size > len(data) and {chunk.level for chunk in found.chunks} == {0})


@pytest.mark.parametrize("number", EXTREMES)
@pytest.mark.parametrize("field", [0, 1, 2])
def test_numbers_of_a_chunk_may_be_anything(field: int, number: int) -> None:
    """Also where its check holds."""
    data = pack(FILES["tiled"])
    whole = read(data)
    numbers = [varint(2), varint(5), varint(9)]
    numbers[field] = varint(number)
    chunk = b"".join(numbers) + b"\1abcdefgh"
    check = struct.pack("<H", zlib.crc32(data[: whole.start - 4] + chunk) & 0xFFFF)
    found = read(data[: whole.start] + chunk + check + data[whole.stops[0] :])
    for chunk in found.chunks:
        assert chunk.tile < 4 and chunk.elements > 0 and chunk.size > 0 and len(chunk.data) <= len(data)


def test_a_file_of_many_small_chunks_is_not_copied_for_each() -> None:
    copied = 0

    class Counted(bytes):
        """Bytes that count what is taken of them."""

        def __getitem__(self, key):
            nonlocal copied
            part = super().__getitem__(key)
            copied += len(part) if isinstance(key, slice) else 1
            return part

    data = Counted(pack(progressive_file(False, (Chunk(0, 0, 1, b"\1", 1),) * 5000, 1)))
    assert len(read(data).chunks) == 5000
    assert copied < 10 * len(data)


def test_any_bytes_after_the_first_level_do_no_harm() -> None:
    rng = np.random.default_rng(0)
    for name in ("tiled", "one piece", "many levels"):
        data = pack(FILES[name])
        start = read(data).start
        for _ in range(200):
            size = int(rng.integers(0, 300))
            found = read(data[:start] + rng.bytes(size))
            assert found.start <= found.useful <= found.held <= start + size
