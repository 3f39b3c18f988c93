"""Blocks with levels of their own: regions of interest."""

from __future__ import annotations

import io
from dataclasses import replace
from functools import cache
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from small import picture, small_codec

import gic
import gic.pillow
from gic.bitstream import container
from gic.bitstream.coder import level_value
from gic.bitstream.container import MAX_REGION, pack, unpack
from gic.codec.image_codec import ImageCodec
from gic.codec.regions import regions_of
from gic.errors import ConfigError, FormatError, ImageError
from gic.pictures.tensors import to_image

WIDTH, HEIGHT = 200, 140
PIXELS = picture(WIDTH, HEIGHT, "edges")


@cache
def trained_codec() -> ImageCodec:
    """The codec that ships, whose pictures look like their originals."""
    return gic.load(device="cpu")


def mask(left: int = 0, right: int = WIDTH, top: int = 0, bottom: int = HEIGHT, grey: int = 255) -> torch.Tensor:
    """Black, with a rectangle of some grey."""
    pixels = torch.zeros(3, HEIGHT, WIDTH, dtype=torch.uint8)
    pixels[:, top:bottom, left:right] = grey
    return pixels


def errors(codec: ImageCodec, data: bytes) -> np.ndarray:
    """Mean squared error of each block of 64 x 64 pixels that is whole, (2, 3)."""
    difference = codec.decompress_tensor(data, realism=0.0).double() - PIXELS.double()
    blocks = difference[:, :128, :192].square().mean(0).reshape(2, 64, 3, 64)
    return blocks.mean((1, 3)).numpy()


def test_offsets_follow_the_brightest_pixel_of_each_block() -> None:
    assert list(regions_of(mask(0, 1), WIDTH, HEIGHT)) == [0, 8, 8, 8] * 3
    assert list(regions_of(mask(60, 70, 64, 65, 128), WIDTH, HEIGHT, 4.0)) == [16] * 4 + [8, 8, 16, 16] + [16] * 4
    assert list(regions_of(mask(), WIDTH, HEIGHT)) == [0] * 12


@pytest.mark.parametrize("tile", [0, 128])
@pytest.mark.parametrize("progressive", [False, True])
def test_white_is_as_fine_as_asked_and_black_coarser(tile: int, progressive: bool) -> None:
    codec = trained_codec()
    settings = {"q": 2.0, "tile": tile, "progressive": progressive}
    plain, coarse = (codec.compress(PIXELS, q=q, tile=tile, quantizer="round") for q in (2.0, 8.0))
    data = codec.compress(PIXELS, roi=mask(64, 128, 0, 64), **settings)
    assert len(coarse) < len(data) < len(plain)
    found, fine = errors(codec, data), errors(codec, plain)
    assert found[0, 1] == pytest.approx(fine[0, 1], rel=0.3)
    assert found[1, 0] > 1.2 * fine[1, 0] and found[1, 2] > 1.2 * fine[1, 2]


@pytest.mark.parametrize("tile", [0, 64])
def test_offsets_that_are_all_alike_give_the_picture_of_their_level(tile: int) -> None:
    codec = small_codec()
    data = codec.compress(PIXELS, q=0.5, roi=mask(grey=0), tile=tile)
    plain = codec.compress(PIXELS, q=2.0, tile=tile, quantizer="round")
    assert unpack(data).regions == bytes([8] * 12)
    assert torch.equal(codec.decompress_tensor(data), codec.decompress_tensor(plain))


def test_a_white_mask_changes_nothing_but_the_version() -> None:
    codec = small_codec()
    data, plain = codec.compress(PIXELS, q=1.0, roi=mask()), codec.compress(PIXELS, q=1.0, quantizer="round")
    assert data[3] == 2 and plain[3] == 1 and len(data) < len(plain) + 20
    assert torch.equal(codec.decompress_tensor(data), codec.decompress_tensor(plain))


def test_the_range_of_the_model_is_kept() -> None:
    codec = small_codec()
    file = codec.open(codec.compress(PIXELS, q=4.0, roi=mask(0, 64), roi_strength=10.0))
    assert max(file.regions) == 4 and level_value(file.code + 256 * max(file.regions)) == codec.model.q_max
    assert max(codec.open(codec.compress(PIXELS, q=8.0, roi=mask(0, 64))).regions) == 0
    for regions in (bytes([5] * 12), bytes([MAX_REGION] * 12)):
        with pytest.raises(FormatError, match="outside the model's range"):
            codec.open(pack(replace(file, regions=regions)))


@pytest.mark.parametrize("progressive", [False, True])
def test_rates_are_those_of_the_whole_file(progressive: bool) -> None:
    codec, region = small_codec(), mask(64, 128)
    middle = len(codec.compress(PIXELS, q=2.0, roi=region, progressive=progressive))
    data = codec.compress(PIXELS, max_bytes=middle, roi=region, progressive=progressive)
    assert 0.93 * middle <= len(data) <= middle
    data = codec.compress(PIXELS, bpp=8 * middle / WIDTH / HEIGHT, roi=region, progressive=progressive)
    assert len(data) == pytest.approx(middle, rel=0.03)
    encoding = codec.encoding(PIXELS, roi=region, progressive=progressive)
    for code in range(codec.finest, codec.coarsest, 700):
        assert encoding.estimate(code) == pytest.approx(len(encoding.at(code)), rel=0.02, abs=8)


def test_a_progressive_file_with_regions_ends_anywhere() -> None:
    codec = trained_codec()
    data = codec.compress(PIXELS, q=1.0, roi=mask(64, 128, 0, 64), roi_strength=1.0, progressive=True)
    whole = codec.open(data).progressive
    assert whole is not None and whole.refinements == 2
    means = [errors(codec, data[:size]).mean() for size in np.linspace(whole.start, len(data), 12).astype(int)]
    assert means[-1] < 0.8 * means[0] and all(b < 1.02 * a for a, b in pairwise(means))


@pytest.mark.parametrize(
    ("settings", "error", "reason"),
    [
        ({"roi": picture(20, 20)}, ImageError, "the mask has 20 x 20 pixels, the picture 200 x 140"),
        ({"roi": "nowhere.png"}, ImageError, "nowhere.png"),
        ({"roi": mask(), "roi_strength": 0.0}, ConfigError, "0.25 to 10 octaves"),
        ({"roi": mask(), "roi_strength": float("nan")}, ConfigError, "not nan"),
        ({"roi": mask(), "roi_strength": 10.5}, ConfigError, "10.5"),
        ({"roi": mask(), "quantizer": "dither"}, ConfigError, "takes the quantizer round"),
    ],
)
def test_what_is_wrong_with_a_mask_is_said(settings, error, reason: str) -> None:
    with pytest.raises(error, match=reason):
        small_codec().compress(PIXELS, **settings)


@pytest.mark.parametrize("kind", ["L", "RGBA", "1", "P", "I;16"])
def test_masks_of_every_mode_are_read(kind: str) -> None:
    image = to_image(mask(0, 64)).convert("L")
    image = image.point(lambda v: v * 257, "I").convert("I;16") if kind == "I;16" else image.convert(kind)
    assert list(regions_of(image, WIDTH, HEIGHT)) == [0, 8, 8, 8] * 3


def test_what_is_transparent_is_black() -> None:
    layer = Image.new("RGBA", (WIDTH, HEIGHT), (255, 255, 255, 0))
    layer.paste((255, 255, 255, 255), (0, 0, 64, HEIGHT))
    layer.save(file := io.BytesIO(), "PNG")
    file.seek(0)
    for given in (layer, file, file.getvalue()):
        assert list(regions_of(given, WIDTH, HEIGHT)) == [0, 8, 8, 8] * 3


def test_a_mask_of_another_size_is_not_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    layer = Image.new("RGBA", (WIDTH + 1, HEIGHT))
    monkeypatch.setattr(Image, "alpha_composite", None)
    with pytest.raises(ImageError, match=f"the mask has {WIDTH + 1} x"):
        regions_of(layer, WIDTH, HEIGHT)


@pytest.mark.parametrize("dtype", [np.uint8, np.bool_])
def test_masks_may_be_arrays_of_one_channel(dtype: type) -> None:
    array = np.zeros((HEIGHT, WIDTH), dtype)
    array[:, :64] = np.array(255).astype(dtype)
    assert list(regions_of(array, WIDTH, HEIGHT)) == [0, 8, 8, 8] * 3


def test_the_pillow_plugin_takes_masks(tmp_path: Path) -> None:
    image = to_image(PIXELS)
    image.save(tmp_path / "a.gic", q=4.0, roi=to_image(mask(0, 64)), roi_strength=1.0)
    assert set(unpack((tmp_path / "a.gic").read_bytes()).regions) == {0, 4}


def test_damaged_offsets_are_noticed() -> None:
    codec = small_codec()
    file = unpack(codec.compress(PIXELS, q=1.0, roi=mask(0, 64)))
    assert unpack(pack(file)) == file
    for regions in (bytes(11), bytes(13), bytes([MAX_REGION + 1] * 12)):
        with pytest.raises(ValueError, match="do not fit"):
            pack(replace(file, regions=regions))
    for packed in (
        b"",
        b"\xff\xff",
        container._pack_regions(bytes(11)),
        container._pack_regions(bytes(10**6)),
        container._pack_regions(bytes([41] * 12)),
        container._pack_regions(bytes(12)) + b"?",
    ):
        with pytest.raises(FormatError, match="offsets of the blocks"):
            container._read_regions(packed, 12)
