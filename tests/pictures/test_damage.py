"""Files that are damaged beside their pixels are read and say so; those whose pixels are damaged are refused."""

from __future__ import annotations

import contextlib
import io
import struct
import threading
import tracemalloc
import warnings
import zlib
from collections.abc import Callable

import numpy as np
import pytest
from picture_files import chunk, encoded, with_chunks
from PIL import Image, ImageCms, PngImagePlugin

from gic.errors import ImageError
from gic.pictures.load import load_rgb

LARGE = 2_000_000


def colours(height: int = 48, width: int = 64) -> Image.Image:
    rng = np.random.default_rng(0)
    return Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8)).resize((width, height))


PNG = encoded(colours(), "PNG")


def same(data: bytes) -> bool:
    return load_rgb(data).image.tobytes() == colours().tobytes()


def padded_profile(size: int) -> bytes:
    profile = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes() + bytes(size))
    profile[0:4] = struct.pack(">I", len(profile))
    return bytes(profile)


def text(kind: bytes, size: int) -> bytes:
    value = b"a" * size
    return {
        b"tEXt": chunk(kind, b"workflow\0" + value),
        b"zTXt": chunk(kind, b"workflow\0\0" + zlib.compress(value)),
        b"iTXt": chunk(kind, b"XML:com.adobe.xmp\0\1\0\0\0" + zlib.compress(value)),
    }[kind]


@pytest.mark.parametrize("kind", [b"zTXt", b"iTXt"])
@pytest.mark.parametrize("end", [False, True])
def test_a_png_with_a_large_text_is_read_without_it(kind: bytes, end: bool) -> None:
    data = with_chunks(PNG, text(kind, LARGE), end=end)
    assert same(data)
    assert load_rgb(data).notes == (f"{kind.decode()} chunk above 1 MiB left out",)


@pytest.mark.parametrize("kind", [b"tEXt", b"zTXt", b"iTXt"])
def test_ordinary_text_is_not_mentioned(kind: bytes) -> None:
    assert load_rgb(with_chunks(PNG, text(kind, 900_000))).notes == ()


def test_many_texts_together_are_bounded() -> None:
    data = with_chunks(PNG, *[text(b"zTXt", 1_000_000)] * 70)
    assert same(data)
    assert set(load_rgb(data).notes) == {"zTXt chunk beyond 64 MiB of text left out"}


@pytest.mark.parametrize(
    "bomb",
    [
        text(b"zTXt", 200_000_000),
        text(b"iTXt", 200_000_000),
        chunk(b"iCCP", b"x\0\0" + zlib.compress(bytes(200_000_000))),
    ],
    ids=["zTXt", "iTXt", "iCCP"],
)
def test_a_decompression_bomb_in_a_chunk_takes_no_memory(bomb: bytes) -> None:
    data = with_chunks(PNG, bomb)
    tracemalloc.start()
    assert same(data)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2**26


def test_a_large_icc_profile_is_used() -> None:
    swapped = padded_profile(LARGE).replace(b"rXYZ", b"????").replace(b"gXYZ", b"rXYZ").replace(b"????", b"gXYZ")
    loaded = load_rgb(with_chunks(PNG, chunk(b"iCCP", b"x\0\0" + zlib.compress(swapped))))
    np.testing.assert_allclose(np.asarray(loaded.image).astype(int), np.asarray(colours())[..., [1, 0, 2]], atol=2)
    assert load_rgb(encoded(colours(), "PNG", icc_profile=padded_profile(LARGE))).notes == ()
    kept = load_rgb(with_chunks(PNG, chunk(b"iCCP", b"x\0\0" + zlib.compress(swapped))), keep_profile=True)
    assert kept.icc == swapped


def test_exif_of_any_size_is_kept() -> None:
    exif = Image.Exif()
    exif[0x010E] = "d" * 100_000
    loaded = load_rgb(encoded(colours(), "PNG", exif=exif))
    assert loaded.notes == () and len(loaded.exif) > 100_000


def wrong_checksum(data: bytes, kind: bytes) -> bytes:
    at = data.index(kind)
    end = at + 4 + struct.unpack(">I", data[at - 4 : at])[0]
    return data[:end] + bytes([data[end] ^ 1]) + data[end + 1 :]


@pytest.mark.parametrize("kind", [b"tEXt", b"zTXt", b"iTXt", b"gAMA", b"tIME", b"eXIf", b"iCCP", b"tRNS"])
@pytest.mark.parametrize("end", [False, True])
def test_a_chunk_beside_the_pixels_with_a_wrong_checksum_is_left_out(kind: bytes, end: bool) -> None:
    data = wrong_checksum(with_chunks(PNG, chunk(kind, b"key\0value" * 3), end=end), kind)
    assert same(data)
    assert load_rgb(data).notes == (f"{kind.decode()} chunk with a wrong checksum left out",)


@pytest.mark.parametrize("kind", [b"gAMA", b"cHRM", b"sRGB", b"pHYs", b"acTL", b"fcTL", b"tRNS", b"cICP"])
def test_a_chunk_beside_the_pixels_that_is_too_short_is_left_out(kind: bytes) -> None:
    data = with_chunks(PNG, chunk(kind, b""))
    assert same(data)
    assert load_rgb(data).notes == (f"{kind.decode()} chunk that is too short left out",)


@pytest.mark.parametrize("kind", [b"IHDR", b"IDAT"])
def test_a_wrong_checksum_of_the_pixels_is_refused_with_the_reason(kind: bytes) -> None:
    with pytest.raises(ImageError, match=r"a\.png .*checksum") as caught:
        load_rgb(wrong_checksum(PNG, kind), name="a.png")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("progressive", [False, True])
@pytest.mark.parametrize("cut", [1, 2])
def test_a_jpeg_without_its_last_bytes_is_read(progressive: bool, cut: int) -> None:
    whole = encoded(colours(), "JPEG", progressive=progressive)
    for source in (whole[:-cut], Image.open(io.BytesIO(whole[:-cut]))):
        loaded = load_rgb(source)
        assert loaded.image.tobytes() == load_rgb(whole).image.tobytes()
        assert loaded.notes == ("the end of the file is missing, the pixels are whole",)


@pytest.mark.parametrize("progressive", [False, True])
@pytest.mark.parametrize("cut", [8, 12, 40, 400, 2000])
def test_a_jpeg_without_pixels_at_its_end_is_refused_with_the_reason(progressive: bool, cut: int) -> None:
    whole = encoded(colours(), "JPEG", progressive=progressive)
    with pytest.raises(ImageError, match=r"^a\.jpg is damaged or cut short: .*[Tt]runcated"):
        load_rgb(whole[:-cut], name="a.jpg")


@pytest.mark.parametrize("cut", [4, 8, 12, 14])
def test_a_png_without_its_last_chunk_is_read(cut: int) -> None:
    assert same(PNG[:-cut])
    assert load_rgb(PNG[:-cut]).notes == ("the end of the file is missing, the pixels are whole",)


@pytest.mark.parametrize("cut", [40, 400, 4000])
def test_a_png_without_pixels_at_its_end_is_refused_with_the_reason(cut: int) -> None:
    with pytest.raises(ImageError, match=r"^a\.png is damaged or cut short: .*[Tt]runcated"):
        load_rgb(PNG[:-cut], name="a.png")


def test_the_reason_of_pillow_is_shown() -> None:
    with pytest.raises(ImageError, match=r"a\.bmp .*Unsupported BMP header type \(7\)"):
        load_rgb(b"BM" + bytes(12) + struct.pack("<I", 7) + bytes(40), name="a.bmp")


def while_loading(file: bytes, act: Callable[[], None]) -> None:
    """Do something in another thread while load_rgb is reading a file."""
    failures: list[BaseException] = []

    class Slow(io.BytesIO):
        done = False

        def read(self, *size: int) -> bytes:
            if not self.done and threading.current_thread() is threading.main_thread():
                self.done = True
                thread = threading.Thread(target=guarded)
                thread.start()
                thread.join()
            return super().read(*size)

    def guarded() -> None:
        try:
            act()
        except BaseException as error:
            failures.append(error)

    slow = Slow(file)
    load_rgb(slow)
    assert slow.done
    if failures:
        raise failures[0]


@pytest.mark.parametrize("file_format", ["PNG", "JPEG", "GIF", "WEBP", "TIFF", "BMP", "PPM", "JPEG2000", "AVIF"])
def test_other_threads_keep_pillow_s_guard_against_bombs(file_format: str) -> None:
    bomb = b"BM" + struct.pack("<IHHI", 54, 0, 0, 54)
    bomb += struct.pack("<IiiHHIIiiII", 40, 60_000, 60_000, 1, 24, 0, 0, 0, 0, 0, 0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")

        def act() -> None:
            with pytest.raises(Image.DecompressionBombError):
                Image.open(io.BytesIO(bomb))

        while_loading(encoded(colours(), file_format), act)


def test_the_limit_of_pillow_counts_only_where_its_decoders_ask_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    for file_format in ("PNG", "JPEG", "BMP", "PPM", "AVIF", "JPEG2000"):
        assert load_rgb(encoded(colours(), file_format)).image.size == (64, 48)
    for file_format in ("WEBP", "TIFF"):
        try:
            load_rgb(encoded(colours(), file_format), name="a.x")  # some versions of Pillow ask it here
        except ImageError as error:
            assert str(error).startswith("a.x is too large for Pillow in its format, save it as PNG: ")


def test_other_threads_keep_pillow_s_limits_of_text() -> None:
    def act() -> None:
        with pytest.raises(ValueError, match="too large"):
            Image.open(io.BytesIO(with_chunks(PNG, text(b"zTXt", LARGE))))

    before = PngImagePlugin.MAX_TEXT_CHUNK, PngImagePlugin.MAX_TEXT_MEMORY
    while_loading(with_chunks(PNG, text(b"zTXt", LARGE)), act)
    assert before == (PngImagePlugin.MAX_TEXT_CHUNK, PngImagePlugin.MAX_TEXT_MEMORY)


@pytest.mark.parametrize(
    "options", [{}, {"progressive": True}, {"restart_marker_rows": 1}, {"restart_marker_blocks": 1}], ids=str
)
def test_a_jpeg_cut_anywhere_is_its_picture_or_refused(options: dict[str, object]) -> None:
    smooth = colours(6, 8).resize((96, 72), Image.Resampling.BICUBIC)
    whole = encoded(smooth, "JPEG", **options)
    expected = load_rgb(whole).image.tobytes()
    read = 0
    for cut in range(1, len(whole) - 650):
        try:
            loaded = load_rgb(whole[:-cut])
        except ImageError:
            continue
        read += 1
        assert loaded.image.tobytes() == expected, cut
    assert 2 <= read < 10


@pytest.mark.parametrize(
    ("file_format", "options"),
    [
        ("PNG", {}),
        ("GIF", {}),
        ("WEBP", {"lossless": True}),
        ("WEBP", {}),
        ("BMP", {}),
        ("PPM", {}),
        ("TIFF", {}),
        ("TIFF", {"compression": "tiff_lzw"}),
        ("TIFF", {"compression": "tiff_adobe_deflate"}),
        ("TIFF", {"compression": "jpeg"}),
        ("JPEG2000", {}),
        ("JPEG2000", {"tile_size": (16, 16)}),
        ("JPEG2000", {"no_jp2": True, "tile_size": (16, 16), "irreversible": True}),
        ("JPEG2000", {"no_jp2": True, "quality_layers": [40, 10], "irreversible": True}),
        ("AVIF", {}),
    ],
    ids=str,
)
def test_a_file_cut_anywhere_is_its_picture_or_refused(file_format: str, options: dict[str, object]) -> None:
    whole = encoded(colours(24, 32), file_format, **options)
    expected = load_rgb(whole).image.tobytes()
    for cut in range(1, len(whole), 1 + len(whole) // 300):
        with contextlib.suppress(ImageError):
            assert load_rgb(whole[:-cut]).image.tobytes() == expected, cut


def test_a_jpeg_2000_whose_last_part_reaches_to_the_end_is_read() -> None:
    whole = encoded(colours(), "JPEG2000")
    at = whole.rindex(b"\xff\x90\0\x0a") + 6
    box = whole.index(b"jp2c") - 4
    open_end = whole[:at] + bytes(4) + whole[at + 4 :]
    assert load_rgb(open_end).image.tobytes() == load_rgb(whole).image.tobytes()
    open_end = bytes(4).join((whole[:box], open_end[box + 4 : len(whole)]))  # a box without a length as well
    for cut in range(2, 2000, 37):
        with pytest.raises(ImageError):
            load_rgb(open_end[:-cut])
