"""Transparent colours, alpha and integers of every depth, against what the stored samples say."""

from __future__ import annotations

import io
import struct

import numpy as np
import pytest
from picture_files import bmp, chunk, encoded, png, tiff
from PIL import Image

from gic.errors import ImageError
from gic.pictures.load import load_rgb


def pixels(data: bytes | Image.Image) -> np.ndarray:
    return np.asarray(load_rgb(data).image).astype(int)


def samples(bits: int, channels: int) -> np.ndarray:
    return np.random.default_rng(bits).integers(0, 2**bits, (5, 19, channels))


GREY, RGB, PALETTE = 0, 2, 3


@pytest.mark.parametrize(
    ("bits", "colour_type"), [(1, GREY), (2, GREY), (4, GREY), (8, GREY), (16, GREY), (8, RGB), (16, RGB)]
)
def test_a_transparent_colour_is_white_and_all_others_stay(bits: int, colour_type: int) -> None:
    stored = samples(bits, 3 if colour_type == RGB else 1)
    key = stored[2, 3].copy()
    stored[0, :4] = key
    stored[1, 0] = key ^ 1  # differs in the last bit alone
    data = png(stored, bits, colour_type, chunk(b"tRNS", b"".join(struct.pack(">H", k) for k in key)))
    expected = np.broadcast_to(stored * 255 / (2**bits - 1), (*stored.shape[:2], 3)).copy()
    transparent = (stored == key).all(axis=2)
    expected[transparent] = 255
    assert 4 < transparent.sum() < transparent.size
    for source in (data, Image.open(io.BytesIO(data))):
        read = pixels(source)
        np.testing.assert_allclose(read, expected, atol=1)
        np.testing.assert_array_equal(read[transparent], 255)
    assert "alpha blended onto white" in load_rgb(data).notes


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
@pytest.mark.parametrize("opacity", ["one", "some"])
def test_transparent_entries_of_a_palette_are_blended_onto_white(bits: int, opacity: str) -> None:
    rng = np.random.default_rng(bits)
    stored = samples(bits, 1)
    palette = rng.integers(0, 256, (2**bits, 3))
    alpha = np.full(2**bits, 255)
    alpha[: 2 ** (bits - 1)] = 0 if opacity == "one" and bits == 1 else rng.integers(0, 256, 2 ** (bits - 1))
    if opacity == "one":
        alpha[:] = 255
        alpha[1] = 0
    chunks = [chunk(b"PLTE", palette.astype(np.uint8).tobytes()), chunk(b"tRNS", alpha.astype(np.uint8).tobytes())]
    shown = (palette * alpha[:, None] + 255 * (255 - alpha[:, None])) / 255
    np.testing.assert_allclose(pixels(png(stored, bits, PALETTE, *chunks)), shown[stored[..., 0]], atol=1)


def test_a_transparent_colour_that_no_pixel_has_changes_nothing() -> None:
    stored = np.full((2, 2, 3), 0x1234)
    assert (pixels(png(stored, 16, RGB, chunk(b"tRNS", struct.pack(">3H", 0x1235, 0x1234, 0x1234)))) == 0x12).all()


@pytest.mark.parametrize("dtype", [np.int32, np.uint32, np.int16, np.int8])
def test_integers_whose_white_is_unknown_are_refused(dtype: type) -> None:
    """Values of 8 bit in 32 were read as nearly black, and values below 0 of 8 bit as bright."""
    data = tiff(np.arange(120, dtype=dtype).reshape(10, 12, 1))
    with pytest.raises(ImageError, match=r"^a\.tif holds integers of 32 bit or with a sign.*save it with 8 bit"):
        load_rgb(data, name="a.tif")
    assert Image.open(io.BytesIO(data)).size == (12, 10)  # nothing else is wrong with the file


def test_32_bit_in_memory_is_refused() -> None:
    with pytest.raises(ImageError, match="32 bit"):
        load_rgb(Image.fromarray(np.arange(4, dtype=np.int32).reshape(2, 2)))


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("photometric", [0, 1])
def test_integers_are_scaled_by_the_bits_stored_and_not_by_the_values(dtype: type, photometric: int) -> None:
    stored = np.arange(200, dtype=dtype).reshape(10, 20, 1)
    expected = np.rint(stored / (255 if dtype is np.uint8 else 65535) * 255)
    expected = expected if photometric else 255 - expected
    np.testing.assert_array_equal(pixels(tiff(stored, photometric))[..., :1], expected)


def colours(alpha: int | None) -> np.ndarray:
    rng = np.random.default_rng(1)
    stored = rng.integers(0, 256, (4, 6, 4)).astype(np.uint8)
    if alpha is not None:
        stored[..., 3] = alpha
    return stored


BGRA = (0xFF0000, 0xFF00, 0xFF, 0xFF000000)


def test_a_bmp_whose_alpha_is_0_everywhere_is_opaque() -> None:
    stored = colours(0)
    data = bmp(stored[::-1].tobytes(), 6, 4, 32, BGRA)
    np.testing.assert_array_equal(pixels(data), stored[..., 2::-1])
    assert load_rgb(data).notes == ("alpha ignored, it is 0 everywhere",)


def test_a_bmp_with_some_alpha_is_blended() -> None:
    stored = colours(None)
    alpha = stored[..., 3:] / 255
    expected = stored[..., 2::-1] * alpha + 255 * (1 - alpha)
    np.testing.assert_allclose(pixels(bmp(stored[::-1].tobytes(), 6, 4, 32, BGRA)), expected, atol=1)


def test_alpha_of_a_16_bit_bmp_is_said_to_be_ignored() -> None:
    rows = np.full((2, 2), 0x7FFF, "<u2").tobytes()
    assert load_rgb(bmp(rows, 2, 2, 16, (0x7C00, 0x3E0, 0x1F, 0x8000))).notes == ("alpha of a 16 bit BMP ignored",)
    assert load_rgb(bmp(rows, 2, 2, 16, (0x7C00, 0x3E0, 0x1F, 0))).notes == ()


@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize("extra", [None, 0])
def test_a_fourth_channel_of_a_tiff_that_is_not_called_alpha_makes_nothing_white(bits: int, extra: int | None) -> None:
    stored = colours(0).astype(f"u{bits // 8}") * (257 if bits == 16 else 1)
    data = tiff(stored, 2, **({} if extra is None else {"tag_338": extra}))
    np.testing.assert_array_equal(pixels(data), colours(0)[..., :3])


def test_alpha_that_is_0_everywhere_is_white_where_the_format_knows_alpha() -> None:
    for file_format in ("PNG", "TIFF", "WEBP"):
        image = Image.fromarray(colours(0))
        assert (pixels(encoded(image, file_format)) == 255).all(), file_format
