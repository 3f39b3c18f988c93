"""Grey pictures come back grey."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from picture_files import linear_grey_profile
from PIL import Image, ImageCms
from small import array, picture, small_codec

import gic.codec.pillow
from gic.bitstream.container import pack, unpack
from gic.codec.image_codec import ImageCodec
from gic.codec.pixels import ImageLike
from gic.pictures.load import load_rgb


@pytest.fixture
def codec() -> ImageCodec:
    return small_codec()


def grey(width: int = 50, height: int = 40) -> Image.Image:
    return Image.fromarray(array(picture(width, height, "edges"))).convert("L")


def png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


SOURCES: dict[str, ImageLike] = {
    "L": grey(),
    "LA": Image.merge("LA", (grey(), grey().rotate(180))),
    "1": grey().convert("1"),
    "I;16": Image.fromarray(np.asarray(grey()).astype(np.uint16) * 200),
    "RGB": grey().convert("RGB"),
    "P": grey().convert("P"),
    "file": png(grey()),
    "array": np.repeat(np.asarray(grey())[..., None], 3, axis=2),
    "tensor": torch.from_numpy(np.asarray(grey()).copy()).expand(3, -1, -1),
    "float": torch.from_numpy(np.asarray(grey()).copy()).expand(3, -1, -1) / 255,
}


@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize("quantizer", ["round", "dither"])
def test_a_grey_picture_comes_back_as_the_luma_of_what_is_decoded(source: str, quantizer, codec: ImageCodec) -> None:
    data = codec.compress(SOURCES[source], q=2.0, quantizer=quantizer)
    file = unpack(data)
    assert file.grey
    image = codec.decompress(data)
    assert (image.mode, image.size) == ("L", (50, 40))
    in_colour = codec.decompress(pack(replace(file, grey=False)))
    assert in_colour.mode == "RGB"
    assert np.ptp(np.asarray(in_colour).astype(int), axis=2).max() > 0  # it has a tint
    assert image.tobytes() == in_colour.convert("L").tobytes()
    pixels = codec.decompress_tensor(data)
    assert pixels.shape == (3, 40, 50) and (pixels == torch.from_numpy(np.asarray(image).copy())).all()


def test_the_luma_is_that_of_the_format_s_description(codec: ImageCodec) -> None:
    data = codec.compress(grey(), q=4.0)
    r, g, b = codec.decompress_tensor(pack(replace(unpack(data), grey=False))).numpy().astype(np.int64)
    luma = (19595 * r + 38470 * g + 7471 * b + 32768) // 65536
    np.testing.assert_array_equal(np.asarray(codec.decompress(data)), luma)


def test_grey_in_tiles(codec: ImageCodec) -> None:
    image = codec.decompress(codec.compress(grey(150, 140), q=2.0, tile=64))
    assert (image.mode, image.size) == ("L", (150, 140))


def test_one_level_of_one_pixel_makes_it_a_colour_picture(codec: ImageCodec) -> None:
    pixels = np.repeat(np.asarray(grey())[..., None], 3, axis=2).copy()
    for channel in range(3):
        almost = pixels.copy()
        almost[-1, -1, channel] ^= 1
        data = codec.compress(almost, q=2.0)
        assert not unpack(data).grey and codec.decompress(data).mode == "RGB"


def test_the_flag_is_all_that_changes_in_a_file(codec: ImageCodec) -> None:
    data = codec.compress(grey(), q=2.0)
    other = pack(replace(unpack(data), grey=False))
    assert (data[4], other[4]) == (8, 0)
    assert data[5:-4] == other[5:-4]


def test_grey_beside_a_profile_of_rgb_stays_rgb(codec: ImageCodec) -> None:
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    buffer = io.BytesIO()
    grey().convert("RGB").save(buffer, "PNG", icc_profile=profile)
    data = codec.compress(buffer.getvalue(), q=2.0, keep_metadata=True)
    image = codec.decompress(data)
    assert unpack(data).grey and image.mode == "RGB" and image.info["icc_profile"] == profile
    assert np.ptp(np.asarray(image).astype(int), axis=2).max() == 0
    gic.codec.pillow.use(codec)
    with Image.open(io.BytesIO(data)) as opened:
        assert opened.mode == "RGB" and opened.tobytes() == image.tobytes()
    gic.codec.pillow.use(None)


def test_grey_with_a_profile_of_grey_is_converted_and_grey(codec: ImageCodec) -> None:
    buffer = io.BytesIO()
    grey().save(buffer, "PNG", icc_profile=linear_grey_profile())
    loaded = load_rgb(buffer.getvalue())
    assert "ICC profile" in " ".join(loaded.notes)
    assert unpack(codec.compress(buffer.getvalue(), q=2.0)).grey


def test_a_grey_picture_compressed_again_is_grey_again(codec: ImageCodec, tmp_path: Path) -> None:
    once = codec.decompress(codec.compress(grey(), q=2.0))
    once.save(tmp_path / "a.png")
    assert Image.open(tmp_path / "a.png").mode == "L"
    assert codec.decompress(codec.compress(tmp_path / "a.png", q=2.0)).mode == "L"
