"""Pictures in every format that Pillow writes: what is written is read again as it was, or refused in one line."""

from __future__ import annotations

import functools
import io

import numpy as np
import pytest
from picture_files import encoded
from PIL import Image, ImageCms

from gic.errors import ImageError
from gic.pictures.save import encode_picture

Image.init()
pytestmark = pytest.mark.filterwarnings("ignore:IM image format:DeprecationWarning")
KINDS = sorted(Image.SAVE.keys() - {"GIC"})
LOSSLESS = {"PNG", "BMP", "DIB", "TIFF", "PPM", "TGA", "QOI", "SGI", "IM"}
SIZES = [(192, 128), (64, 64), (1, 1), (20_000, 2), (70_000, 1), (3, 70_000)]


def picture(width: int, height: int, mode: str) -> Image.Image:
    image = Image.radial_gradient("L").resize((width, height))
    return image if mode == "L" else Image.merge("RGB", (image, image.rotate(180), Image.eval(image, lambda v: v // 2)))


def exif(size: int) -> bytes:
    block = Image.Exif()
    block[0x010E] = "d" * size
    return block.tobytes()


@functools.cache  # profiles have their time in them
def profile(padding: int = 0) -> bytes:
    data = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes() + bytes(padding)
    return len(data).to_bytes(4, "big") + data[4:]


def written(image: Image.Image, kind: str) -> tuple[Image.Image, tuple[str, ...]] | None:
    """The file read by Pillow itself, and the notes; None if it was refused as it should be."""
    try:
        data, notes = encode_picture(image, kind, "a.x")
    except ImageError as error:
        assert str(error).startswith("a.x cannot be written: ") and str(error).endswith("use .png")
        assert "\n" not in str(error)
        return None
    read = Image.open(io.BytesIO(data))
    assert read.size == image.size
    return read, notes


@pytest.mark.parametrize("mode", ["RGB", "L"])
@pytest.mark.parametrize("kind", KINDS)
def test_what_is_written_is_read_again_at_its_size(kind: str, mode: str) -> None:
    for width, height in SIZES:
        image = picture(width, height, mode)
        done = written(image, kind)
        if done is None:
            assert kind not in LOSSLESS or max(width, height) > 32_000, (width, height)
        elif kind in LOSSLESS:
            assert done[0].convert("RGB").tobytes() == image.convert("RGB").tobytes()


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "AVIF", "TIFF", "BMP", "GIF", "PPM"])
def test_ordinary_pictures_are_written(kind: str) -> None:
    done = written(picture(192, 128, "RGB"), kind)
    assert done is not None
    assert done[1] == (("reduced to the 256 colours of a GIF",) if kind == "GIF" else ())


def test_a_gif_of_few_colours_is_exact_and_needs_no_note() -> None:
    image = Image.new("RGB", (8, 8), (1, 2, 3))
    image.putpixel((0, 0), (200, 7, 9))
    done = written(image, "GIF")
    assert done is not None and done[1] == () and done[0].convert("RGB").tobytes() == image.tobytes()


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "MPO", "TIFF", "AVIF", "JPEG2000", "PPM", "GIF", "BMP"])
def test_grey_stays_grey_where_the_format_has_grey(kind: str) -> None:
    done = written(picture(64, 48, "L"), kind)
    assert done is not None
    if kind not in ("AVIF", "GIF"):
        assert done[0].mode == "L"
    pixels = np.asarray(done[0].convert("RGB")).astype(int)
    assert np.ptp(pixels, axis=2).max() <= 1


@pytest.mark.parametrize("kind", KINDS)
def test_a_profile_is_written_or_refused(kind: str) -> None:
    """Without it the colours would be others."""
    image = picture(64, 64, "RGB")
    image.info["icc_profile"] = profile()
    done = written(image, kind)
    assert done is None or done[0].info["icc_profile"] == profile()
    assert done is not None or kind not in ("PNG", "JPEG", "WEBP", "AVIF", "TIFF")


@pytest.mark.parametrize("kind", KINDS)
def test_exif_is_written_or_said_to_be_left_out(kind: str) -> None:
    image = picture(64, 64, "RGB")
    image.info["exif"] = exif(100)
    done = written(image, kind)
    if done is not None:
        assert (done[0].getexif().get(0x010E) == "d" * 100) != (f"EXIF left out, {kind} cannot hold it" in done[1])


def test_metadata_that_a_format_cannot_hold_is_named() -> None:
    image = picture(64, 64, "RGB")
    image.info["exif"] = exif(100_000)
    with pytest.raises(
        ImageError, match=r"^a\.jpg cannot be written: JPEG cannot hold EXIF of 100\d\d\d bytes .*use \.png$"
    ):
        encode_picture(image, "JPEG", "a.jpg")
    data, notes = encode_picture(image, "PNG", "a.png")
    assert notes == () and Image.open(io.BytesIO(data)).getexif()[0x010E] == "d" * 100_000
    image.info = {"icc_profile": profile(17_000_000)}
    with pytest.raises(ImageError, match="JPEG cannot hold the ICC profile"):
        encode_picture(image, "JPEG", "a.jpg")
    image.info = {"icc_profile": profile(2_000_000)}  # more than Pillow reads from a PNG
    assert encode_picture(image, "PNG", "a.png")[0] == encoded(image, "PNG", icc_profile=profile(2_000_000))


@pytest.mark.parametrize(
    ("kind", "size", "said"),
    [
        ("ICO", (192, 128), "ICO would make 128 x 85 pixels of 192 x 128"),
        ("ICNS", (100, 100), "ICNS would make"),
        ("WEBP", (20_000, 2), "WEBP cannot hold a picture of 20000 x 2 pixels .*limit"),
        ("JPEG", (70_000, 1), "JPEG cannot hold a picture of 70000 x 1 pixels"),
        ("BLP", (8, 8), "BLP cannot hold a picture"),
        ("XBM", (8, 8), "XBM cannot hold a picture"),
        ("PDF", (8, 8), "gic could not read a PDF again"),
    ],
)
def test_what_a_format_cannot_hold_is_refused_with_the_reason(kind: str, size: tuple[int, int], said: str) -> None:
    with pytest.raises(ImageError, match=said):
        encode_picture(picture(*size, "RGB"), kind, "a.x")
