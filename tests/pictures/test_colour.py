"""Colour stated in other ways than by an ICC profile, against the formulas of ITU-R BT.709, 2020 and 2100."""

from __future__ import annotations

import contextlib
import functools
import io
import itertools
import struct

import numpy as np
import pytest
from picture_files import chunk, encoded, png, with_chunks
from PIL import Image, ImageCms

from gic.errors import ImageError
from gic.pictures import boxes
from gic.pictures.load import LoadedImage, load_rgb

TO_709 = {
    9: np.array([[1.6605, -0.5876, -0.0728], [-0.1246, 1.1329, -0.0083], [-0.0182, -0.1006, 1.1187]]),  # BT.2087
    12: np.array([[1.2249, -0.2247, 0.0], [-0.0420, 1.0419, 0.0], [-0.0197, -0.0786, 1.0979]]),
}
SRGB_XY = (31270, 32900, 64000, 33000, 30000, 60000, 15000, 6000)
P3_XY = (31270, 32900, 68000, 32000, 26500, 69000, 15000, 6000)


def srgb(light: np.ndarray) -> np.ndarray:
    """Light in [0, 1] as values of sRGB, 0 to 255."""
    light = np.clip(light, 0, 1)
    return 255 * np.where(light <= 0.0031308, 12.92 * light, 1.055 * light ** (1 / 2.4) - 0.055)


def srgb_light(v: np.ndarray) -> np.ndarray:
    return np.where(v <= 0.04045, v / 12.92, ((v + 0.055) / 1.055) ** 2.4)


def tone(x: np.ndarray) -> np.ndarray:
    x = np.minimum(x, 1000 / 203)
    return x * (1 + x / (1000 / 203) ** 2) / (1 + x)


def pq_light(v: np.ndarray) -> np.ndarray:
    p = v ** (1 / 78.84375)
    return 10_000 * (np.maximum(p - 0.8359375, 0) / (18.8515625 - 18.6875 * p)) ** (1 / 0.1593017578125) / 203


def hlg_light(v: np.ndarray) -> np.ndarray:
    scene = np.where(v <= 0.5, v * v / 3, (np.exp((v - 0.55991073) / 0.17883277) + 0.28466892) / 12)
    return 1000 * scene**1.2 / 203


def stored() -> np.ndarray:
    """Grey steps and colours that BT.709 can show."""
    grey = np.repeat(np.linspace(0, 255, 18).round()[:, None], 3, axis=1)
    colours = np.array(list(itertools.product((120, 150, 180), repeat=3)))
    return np.concatenate([grey, colours])[None].astype(int)


def cicp(*codes: int) -> bytes:
    return chunk(b"cICP", bytes(codes))


def gama(value: int) -> bytes:
    return chunk(b"gAMA", struct.pack(">I", value))


def chrm(values: tuple[int, ...]) -> bytes:
    return chunk(b"cHRM", struct.pack(">8I", *values))


def icc(profile: bytes) -> bytes:
    import zlib

    return chunk(b"iCCP", b"x\0\0" + zlib.compress(profile))


@functools.cache  # profiles have their time in them
def swapped() -> bytes:
    """sRGB with red and green exchanged."""
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    return profile.replace(b"rXYZ", b"????").replace(b"gXYZ", b"rXYZ").replace(b"????", b"gXYZ")


def read(*chunks: bytes, samples: np.ndarray | None = None) -> tuple[np.ndarray, LoadedImage]:
    samples = stored() if samples is None else samples
    loaded = load_rgb(png(samples, 8, 2 if samples.shape[2] == 3 else 0, *chunks))
    return np.asarray(loaded.image).astype(int), loaded


@pytest.mark.parametrize("primaries", [9, 12])
@pytest.mark.parametrize(
    ("transfer", "light"),
    [(13, srgb_light), (1, srgb_light), (4, lambda v: v**2.2), (8, lambda v: v), (16, pq_light), (18, hlg_light)],
)
def test_coded_colour_is_converted_by_the_formulas(primaries: int, transfer: int, light) -> None:
    values, loaded = read(cicp(primaries, transfer, 0, 1))
    linear = light(stored() / 255)
    linear = tone(linear) if transfer in (16, 18) else linear
    expected = srgb(linear @ TO_709[primaries].T)
    np.testing.assert_allclose(values, expected, atol=3)  # 8 bit in and out, and matrices of four digits
    (note,) = loaded.notes
    assert note.startswith("colour stated by cICP (") and ("tone mapped" in note) == (transfer in (16, 18))


@pytest.mark.parametrize("transfer", [16, 18])
def test_the_tone_map_rises_from_black_to_white(transfer: int) -> None:
    ramp = np.arange(256)[None, :, None]
    values, loaded = read(cicp(9, transfer, 0, 1), samples=ramp)
    assert (values == values[..., :1]).all()
    level = values[0, :, 0]
    assert level[0] == 0 and level[-1] == 255 and (np.diff(level) >= 0).all()
    assert "tone mapped" in " ".join(loaded.notes)


def test_narrow_range_is_widened() -> None:
    values, loaded = read(cicp(1, 13, 0, 0), samples=np.array([16, 126, 235, 255])[None, :, None])
    np.testing.assert_allclose(values[0, :, 0], [0, 128, 255, 255], atol=2)
    assert "cICP" in loaded.notes[-1]


@pytest.mark.parametrize("gamma", [1.0, 0.5, 1 / 1.8])
@pytest.mark.parametrize("channels", [1, 3])
def test_gamma_is_converted(gamma: float, channels: int) -> None:
    values, loaded = read(gama(round(gamma * 100_000)), samples=stored()[..., :channels])
    expected = np.broadcast_to(srgb((stored()[..., :channels] / 255) ** (1 / gamma)), values.shape)
    np.testing.assert_allclose(values, expected, atol=2)
    assert loaded.notes[-1] == "colour stated by gAMA converted to sRGB"


def test_other_primaries_are_converted() -> None:
    values, loaded = read(gama(50_000), chrm(P3_XY))
    np.testing.assert_allclose(values, srgb((stored() / 255) ** 2 @ TO_709[12].T), atol=3)
    assert loaded.notes == ("colour stated by gAMA and cHRM converted to sRGB",)
    values, loaded = read(chrm(P3_XY))
    np.testing.assert_allclose(values, srgb(srgb_light(stored() / 255) @ TO_709[12].T), atol=3)
    assert loaded.notes == ("colour stated by cHRM converted to sRGB",)


@pytest.mark.parametrize(
    "chunks",
    [
        [gama(45455)],
        [gama(45455), chrm(SRGB_XY)],
        [chrm(SRGB_XY)],
        [cicp(1, 13, 0, 1)],
        [cicp(2, 2, 0, 1)],
        [chunk(b"sRGB", b"\0"), gama(100_000), chrm(P3_XY)],
        [cicp(1, 13, 0, 1), icc(swapped()), gama(100_000)],
    ],
)
def test_srgb_in_any_words_changes_nothing_and_is_not_mentioned(chunks: list[bytes]) -> None:
    values, loaded = read(*chunks)
    np.testing.assert_array_equal(values, stored())
    assert loaded.notes == ()


def test_of_several_statements_the_first_of_the_specification_counts() -> None:
    """CICP, iCCP, sRGB, then cHRM and gAMA; what cannot be used is told and passed over."""
    everything = [cicp(9, 13, 0, 1), icc(swapped()), gama(100_000)]
    assert "cICP (BT.2020, sRGB)" in read(*everything)[1].notes[0]
    assert "ICC profile" in read(*everything[1:])[1].notes[0]
    assert read(chunk(b"sRGB", b"\0"), everything[2])[1].notes == ()
    unknown = read(cicp(9, 99, 0, 1), everything[1])[1].notes
    assert unknown[0] == "colour stated by cICP ignored: unknown codes 9, 99, 0, 1" and "ICC profile" in unknown[1]


@pytest.mark.parametrize(
    "chunks", [[gama(0)], [chrm((0,) * 8)], [chrm((31270, 32900, 64000, 33000, 64000, 33000, 64000, 33000))]]
)
def test_impossible_statements_are_told(chunks: list[bytes]) -> None:
    values, loaded = read(*chunks)
    np.testing.assert_array_equal(values, stored())
    assert loaded.notes[0].endswith("ignored: impossible values")


def test_an_image_that_pillow_has_opened_is_converted_too() -> None:
    data = png(stored(), 8, 2, cicp(9, 16, 0, 1))
    opened = Image.open(io.BytesIO(data))
    assert load_rgb(opened).image.tobytes() == load_rgb(data).image.tobytes() != opened.tobytes()


def test_a_stated_space_can_be_kept_as_a_profile_and_hdr_cannot() -> None:
    kept = load_rgb(png(stored(), 8, 2, cicp(12, 13, 0, 1)), keep_profile=True)
    assert kept.notes == () and kept.image.tobytes() == stored().astype(np.uint8).tobytes()
    later = load_rgb(encoded(kept.image, "PNG", icc_profile=kept.icc))
    np.testing.assert_allclose(np.asarray(later.image).astype(int), read(cicp(12, 13, 0, 1))[0], atol=1)
    assert load_rgb(png(stored(), 8, 2, cicp(9, 16, 0, 1)), keep_profile=True).icc == b""


def avif(primaries: int, transfer: int, image: Image.Image) -> bytes:
    data = bytearray(encoded(image, "AVIF", quality=100, subsampling="4:4:4"))
    at = data.index(b"nclx") + 4
    data[at : at + 4] = struct.pack(">2H", primaries, transfer)
    return bytes(data)


@pytest.mark.parametrize(("primaries", "transfer", "light"), [(9, 16, pq_light), (12, 13, srgb_light)])
def test_nclx_of_avif_is_converted(primaries: int, transfer: int, light) -> None:
    image = Image.new("RGB", (16, 16), (150, 120, 140))
    plain = load_rgb(avif(1, 13, image))
    assert plain.notes == ()
    data = avif(primaries, transfer, image)
    loaded = load_rgb(data)
    linear = light(np.array(plain.image.getpixel((8, 8))) / 255)
    expected = srgb((tone(linear) if transfer == 16 else linear) @ TO_709[primaries].T)
    np.testing.assert_allclose(loaded.image.getpixel((8, 8)), expected, atol=3)
    assert loaded.notes[0].startswith("colour stated by nclx (")
    assert load_rgb(Image.open(io.BytesIO(data))).notes == loaded.notes


def test_an_icc_profile_of_avif_comes_before_nclx() -> None:
    data = bytearray(encoded(Image.new("RGB", (8, 8), (200, 9, 9)), "AVIF", icc_profile=swapped()))
    assert load_rgb(bytes(data)).notes[0].startswith("ICC profile")


def test_damaged_boxes_state_nothing_and_end_the_search() -> None:
    data = avif(9, 16, Image.new("RGB", (8, 8)))
    assert boxes.stated_colour(data)[:2] == (9, 16)
    rng = np.random.default_rng(0)
    head = data.index(b"mdat")
    for _ in range(2000):
        damaged = bytearray(data[: rng.integers(0, len(data))] if rng.random() < 0.3 else data)
        for at in rng.integers(0, min(head, len(damaged)) or 1, 3) if damaged else ():
            damaged[at] = rng.integers(256)
        assert len(boxes.stated_colour(bytes(damaged))) in (0, 4)


def test_stated_colour_of_grey_and_of_palettes_is_converted() -> None:
    palette = with_chunks(encoded(Image.new("RGB", (4, 4), (188, 0, 0)).quantize(4), "PNG"), end=True)
    at = palette.index(b"PLTE") - 4
    assert load_rgb(palette[:at] + gama(100_000) + palette[at:]).image.getpixel((0, 0))[0] in range(219, 224)
    assert (read(gama(100_000), samples=np.full((2, 2, 1), 188))[0] == 223).all()


def swaps_red_and_green(data: bytes) -> bool:
    """Whether the profile :func:`swapped` is used, in a file of the picture (200, 100, 50)."""
    loaded = load_rgb(data)
    np.testing.assert_allclose(loaded.image.getpixel((1, 1)), (100, 200, 50), atol=3)
    assert load_rgb(data, keep_profile=True).icc == swapped()
    return any(note.startswith("ICC profile") for note in loaded.notes)


def test_the_profile_of_a_jpeg_2000_is_used() -> None:
    data = encoded(Image.new("RGB", (16, 16), (200, 100, 50)), "JPEG2000")
    at = data.index(b"colr") - 4
    size = struct.unpack_from(">I", data, at)[0]
    box = struct.pack(">I4s3B", 11 + len(swapped()), b"colr", 2, 0, 0) + swapped()
    head = data.index(b"jp2h") - 4
    grown = struct.pack(">I", struct.unpack_from(">I", data, head)[0] + len(box) - size)
    assert swaps_red_and_green(data[:head] + grown + data[head + 4 : at] + box + data[at + size :])
    assert load_rgb(data).notes == ()


def test_the_profile_of_a_bmp_is_used() -> None:
    rows = bytes([50, 100, 200, 0]) * 4
    head = struct.pack("<IiiHHIIiiII", 124, 2, 2, 1, 32, 0, 16, 2835, 2835, 0, 0) + bytes(16) + b"DEBM" + bytes(48)
    head += struct.pack("<4I", 4, 124 + len(rows), len(swapped()), 0)
    assert len(head) == 124
    data = b"BM" + struct.pack("<IHHI", 0, 0, 0, 138) + head + rows + swapped()
    assert swaps_red_and_green(data)
    for cut in range(0, len(data), 7):
        with contextlib.suppress(ImageError):
            load_rgb(data[:cut])


def test_colour_stated_by_tags_of_a_tiff_is_said_to_be_ignored() -> None:
    image = Image.new("RGB", (4, 4), (200, 100, 50))
    data = encoded(image, "TIFF", tiffinfo={318: (0.3127, 0.329), 319: (0.68, 0.32, 0.265, 0.69, 0.15, 0.06)})
    assert load_rgb(data).notes == ("colour stated by TIFF tags ignored",)
