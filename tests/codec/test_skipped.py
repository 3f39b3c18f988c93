"""What the encoder leaves out stays small, whatever the picture."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from unittest.mock import patch

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from small import picture, small_codec, small_model
from torch import Tensor

import gic
from gic.bitstream.coder import Code, EntropyCoder, Prior, level_code, level_value
from gic.bitstream.exact import Convolution
from gic.codec import skipped
from gic.codec.encoder import Encoding
from gic.codec.image_codec import ImageCodec
from gic.codec.skipped import LIMITS, STEPS, left_out, settle
from gic.models.codec import Codec
from gic.models.compressor import ResidualCompressor
from gic.models.reverse import ReverseUNet

QUANTIZERS = ("round", "dither")
LEVELS = (1.0, 4.0, 16.0)
BLOCK = 16
LUMA = torch.tensor([0.299, 0.587, 0.114])[:, None, None]
"""What a grey picture comes back as."""


@cache
def shipped() -> ImageCodec:
    """The codec with the weights in the package."""
    return gic.load(device="cpu", runtime="torch")


def drawn(name: str, width: int, height: int) -> Image.Image:
    """Pictures far from photographs."""
    rng = np.random.default_rng(5)
    y, x = np.mgrid[:height, :width].astype(float)
    kind, _, number = name.partition("-")
    size = int(number or 1)
    if kind == "flat":
        return Image.new("RGB", (width, height), {1: "grey", 2: "red", 3: "black", 4: "magenta"}[size])
    if kind in ("lines", "text", "shapes"):
        image = Image.new("RGB", (width, height), {"lines": "white", "text": "black", "shapes": "yellow"}[kind])
        draw = ImageDraw.Draw(image)
        for i in range(9):
            if kind == "lines":
                draw.line((5 + 9 * i, 3, width - 8 - 20 * i, height - 5), fill="black", width=1 + i % 3)
            elif kind == "text":
                draw.text((4, 12 * i + 2), "Quick brown foxes, 0123456", fill=("lime", "red", "white", "cyan")[i % 4])
        if kind == "shapes":
            draw.polygon((10, 10, 150, 30, 80, 120), fill="blue")
            draw.ellipse((100, 50, 180, 120), fill="magenta")
            draw.line((0, 64, width, 64), fill="black")
        return image
    one = {
        "noise": rng.integers(0, 256, (height, width)),
        "binary": 255 * rng.integers(0, 2, (height, width)),
        "checkers": 255 * ((x // size + y // size) % 2),
        "stripes": 255 * (x % 2),
        "rings": 127.5 + 127.5 * np.cos((x - width / 2) ** 2 / 60 + (y - height / 2) ** 2 / 60),
        "ramp": 255 * x / (width - 1),
    }
    if kind in one:
        values = np.repeat(np.asarray(one[kind])[..., None], 3, axis=2)
    elif kind == "colours":  # red and blue checkers
        values = np.where(((x // size + y // size) % 2 > 0)[..., None], [255, 0, 0], [0, 0, 255])
    elif kind == "saturated":
        values = 255 * rng.integers(0, 2, (height, width, 3))
    else:
        assert kind == "ramps", kind
        values = np.stack([255 * x / (width - 1), 255 * y / (height - 1), 0 * x], axis=2)
    return Image.fromarray(values.astype(np.uint8))


PICTURES = (
    *("flat-1", "flat-2", "flat-3", "flat-4", "ramp", "ramps", "noise", "binary", "saturated", "checkers-1"),
    *("checkers-2", "checkers-4", "checkers-16", "colours-2", "colours-4", "colours-8", "stripes", "rings"),
    *("lines", "text", "shapes"),
)


def losses(encoding: Encoding, q: float) -> list[NDArray[np.float64]]:
    """Errors of the elements of each tile that get no symbol at a level, in steps; 0 elsewhere."""
    code = level_code(q)
    found = []
    for tile in encoding.tiles:
        mask = encoding.engine.coder.coded_mask(tile.prior, code, encoding.quantizer == "dither")
        error = np.abs((tile.y - tile.prior.mu).astype(np.float64)) / level_value(code)
        found.append(np.where(mask, 0, error))
    return found


def assert_little_is_left_out(encoding: Encoding, levels: tuple[float, ...] = LEVELS) -> None:
    limit = LIMITS[encoding.quantizer] + 1e-3
    for q in levels:
        for error in losses(encoding, q):
            assert error.max() <= limit
            assert np.sqrt((np.where(error > 0.5, error, 0) ** 2).sum(1)).max() <= limit


def blocks(a: Tensor, b: Tensor) -> Tensor:
    """Root of the mean squared difference of each whole block of 16 x 16 pixels, over its colours, in 8-bit steps."""
    e = (a.float() - b.float())[:, : a.shape[1] // BLOCK * BLOCK, : a.shape[2] // BLOCK * BLOCK]
    return torch.nn.functional.avg_pool2d(e.square().mean(0)[None], BLOCK).sqrt()


def everything(coder: EntropyCoder, prior: Prior, code: Code, dither: bool) -> NDArray[np.bool_]:
    """In the place of the mask of coded elements: all are."""
    return np.ones(prior.log2_sigma.shape, bool)


@torch.inference_mode()
def without_loss(encoding: Encoding, realism: float) -> Tensor:
    """What the synthesis makes of y itself: the end of all levels, for a picture in one piece."""
    x = encoding.engine.model.compressor.synthesise(torch.from_numpy(encoding.tiles[0].y), realism)
    x = x[0, :, : encoding.height, : encoding.width]
    return 255 * x.clamp(0, 1)


@pytest.mark.parametrize("quantizer", QUANTIZERS)
@pytest.mark.parametrize("name", PICTURES)
def test_pictures_far_from_photographs_lose_nothing_that_shows(name, quantizer) -> None:
    codec = shipped()
    width, height = (192, 128) if len(name) % 2 else (200, 150)
    encoding = codec.encoding(drawn(name, width, height), quantizer=quantizer)
    assert_little_is_left_out(encoding, (*LEVELS, codec.about.q_max))
    for realism, levels in ((0.0, LEVELS), (1.0, LEVELS[:1])):
        target = without_loss(encoding, realism)
        if encoding.grey:
            target = (target * LUMA).sum(0, keepdim=True)
        for q in levels:
            decoded = codec.decompress_tensor(encoding.compress(q=q), realism=realism)
            with patch.object(EntropyCoder, "coded_mask", everything):
                whole = codec.decompress_tensor(encoding.compress(q=q), realism=realism)
            # The error is that of the step q: what is left out adds little to that of the worst block.
            assert float(blocks(decoded, target).max()) < 1.5 * float(blocks(whole, target).max())


@pytest.mark.parametrize("name", ["noise", "checkers-2", "text"])
def test_in_tiles_as_well(name) -> None:
    encoding = shipped().encoding(drawn(name, 200, 150), tile=64)
    assert len(encoding.tiles) == 12
    assert_little_is_left_out(encoding)
    # Files at any rate are made of the z that was found.
    assert shipped().decompress(encoding.compress(bpp=1.5), realism=0).size == (200, 150)


def test_a_photograph_turned_grey_keeps_its_blocks(shared: Path) -> None:
    with Image.open(shared / "data" / "kodak" / "kodim23.png") as image:
        grey = image.convert("L").convert("RGB")
    original = torch.from_numpy(np.asarray(grey).copy()).permute(2, 0, 1)
    data = shipped().compress(grey, q=1.0)
    assert len(data) < 28455  # what it took with 80 blocks destroyed
    for realism in (0, 1):
        decoded = shipped().decompress_tensor(data, realism=realism)
        assert float(blocks(decoded, original).max()) < 15
        assert 10 * np.log10(255**2 / float((decoded.float() - original).square().mean())) > 36


@pytest.mark.parametrize("name", ["kodim05.png", "kodim14.png", "kodim20.png"])
@pytest.mark.parametrize("quantizer", QUANTIZERS)
def test_photographs_keep_the_z_of_the_analysis(quantizer, name, shared: Path, monkeypatch) -> None:
    codec = shipped()
    with Image.open(shared / "data" / "kodak" / name) as image:
        photograph = image.convert("RGB")
    checked = codec.encoding(photograph, quantizer=quantizer)
    monkeypatch.setattr("gic.codec.encoder.settle", lambda model, coder, y, z, *_: (z, coder.prior(z)))
    unchecked = codec.encoding(photograph, quantizer=quantizer)
    for q in LEVELS:
        assert checked.compress(q=q) == unchecked.compress(q=q)


# --- a small model whose sigma can be too small -------------------------------------------------------------


@cache
def narrow(bias: float) -> ImageCodec:
    """A small codec whose h_s makes sigma anything from its lower end up."""
    model = small_model()
    m = model.compressor.latent_channels
    with torch.no_grad():
        model.compressor.h_s[-1].weight[m:] *= 8
        model.compressor.h_s[-1].bias[m:] += bias
    return ImageCodec(model, "cpu")


def analysed(codec: ImageCodec, pixels: Tensor) -> tuple[NDArray[np.float32], NDArray[np.int32]]:
    """y and the z of the analysis."""
    y = codec.networks.analysis((pixels[None] / 255).numpy())
    return y, np.round(codec.networks.hyper_analysis(y)).astype(np.int32)


@pytest.mark.parametrize("quantizer", QUANTIZERS)
@pytest.mark.parametrize("kind", ["noise", "edges"])
def test_where_sigma_is_far_too_small_another_z_is_found(kind, quantizer) -> None:
    codec = narrow(0.0)
    pixels = picture(192, 128, kind)
    y, z = analysed(codec, pixels)
    levels = codec.finest, codec.coarsest, quantizer
    assert float(left_out(y, codec.coder.prior(z), *levels).max()) > 2 * LIMITS[quantizer]
    other, prior = settle(codec.about.entropy_model, codec.coder, y, z, *levels)
    assert other.dtype == np.int32 and (other != z).any()
    assert np.array_equal(prior.log2_sigma, codec.coder.prior(other).log2_sigma)
    assert float(left_out(y, prior, *levels).max()) <= LIMITS[quantizer]
    encoding = codec.encoding(pixels, quantizer=quantizer)
    np.testing.assert_array_equal(encoding.tiles[0].z, other)
    assert_little_is_left_out(encoding, (0.5, 2.0, 8.0))
    assert codec.decompress_tensor(encoding.compress(q=2.0)).shape == pixels.shape


def test_the_search_ends_where_no_z_helps(monkeypatch) -> None:
    codec = narrow(-3.0)
    pixels = picture(128, 64, "edges")
    examined = 0
    inner = skipped._Search._examine

    def counting(self, z, gradient=False):
        nonlocal examined
        examined += 1
        return inner(self, z, gradient)

    monkeypatch.setattr(skipped._Search, "_examine", counting)
    encoding = codec.encoding(pixels)
    y, z = analysed(codec, pixels)
    errors = [
        left_out(y, p, codec.finest, codec.coarsest, "round") for p in (codec.coder.prior(z), encoding.tiles[0].prior)
    ]
    assert LIMITS["round"] < float(errors[1].max()) < float(errors[0].max())
    assert 0 < examined <= skipped.ROUNDS * 2 * (3 * STEPS + 10)  # two cells, at most as many windows
    # Such a picture is still a file, and the file decodes.
    assert codec.decompress_tensor(encoding.compress(q=8.0)).shape == pixels.shape


def test_z_changes_only_around_what_was_left_out() -> None:
    codec = shipped()
    image = drawn("ramps", 1280, 128)
    image.paste(drawn("noise", 192, 128), (0, 0))
    image.paste(drawn("noise", 192, 128), (1088, 0))
    pixels = torch.from_numpy(np.asarray(image).copy()).permute(2, 0, 1)
    y, z = analysed(codec, pixels)
    changed = (codec.encoding(image).tiles[0].z != z)[0].any((0, 1))
    errors = left_out(y, codec.coder.prior(z), codec.finest, codec.coarsest, "round")
    assert float(errors.max()) > LIMITS["round"] and changed[[0, -1]].all()
    bad = skipped._dilate(skipped._cells(errors, 4).max((3, 5)) > LIMITS["round"])[0, 0].any(0)
    assert not changed[~bad].any() and not bad[7:-7].any()


def with_detail() -> Codec:
    """A small codec with detail channels, whose sigma is that of their group."""
    torch.manual_seed(0)
    compressor = ResidualCompressor(
        (8, 8, 8, 8), (0, 0, 0, 0), latent_channels=48, hyper_channels=32, lapped=True, detail_channels=30
    )
    return Codec(compressor, ReverseUNet(widths=(8,), blocks=(1,))).eval()


@pytest.mark.parametrize("quantizer", QUANTIZERS)
@pytest.mark.parametrize("make", [small_model, with_detail])
def test_slopes_are_those_of_the_cost(make, quantizer) -> None:
    """In float64, by differences. Only where the range of sigma ends they differ, on purpose: it has no ends here."""
    codec = ImageCodec(make(), "cpu")
    y, z = analysed(codec, picture(7 * 64, 64, "noise"))
    active = np.arange(7).reshape(1, 1, 1, 7) == 3
    window = skipped._Window(slice(0, 1), slice(0, 7), active)
    model = codec.about.entropy_model
    search = skipped._Search(model, codec.coder, y, z, window, codec.finest, codec.coarsest, quantizer)
    search.y, search.weight, search.range = search.y.astype(float), search.weight + 1.7, (-np.inf, np.inf)
    search.network.layers = [
        Convolution(layer.weight.astype(float), layer.bias.astype(float)) if isinstance(layer, Convolution) else layer
        for layer in model.h_s
    ]

    search._bits = np.zeros_like  # of z, which has no slope here

    def cost(z: NDArray[np.float64]) -> float:
        return float(search._examine(z).cost.sum())

    gradient = search._examine(z.astype(float), gradient=True).gradient
    assert gradient is not None and gradient.shape == z.shape
    step = 1e-5
    measured = np.empty_like(gradient)
    for index in np.ndindex(z.shape):
        unit = np.zeros(z.shape)
        unit[index] = step
        measured[index] = (cost(z + unit) - cost(z - unit)) / (2 * step)
    assert np.abs(gradient[..., 3]).min() > 0 and np.abs(measured).max() > 0.5
    assert np.abs(gradient - measured).max() < 1e-4 * np.abs(measured).max()


def test_errors_are_those_of_the_finest_level_that_leaves_an_element_out() -> None:
    codec = shipped()
    y, z = analysed(codec, picture(128, 128, "noise"))
    prior = codec.coder.prior(z)
    for quantizer in QUANTIZERS:
        bound = left_out(y, prior, codec.finest, codec.coarsest, quantizer)
        worst = np.zeros_like(bound)
        for code in range(codec.finest, codec.coarsest + 1, 64):
            skips = ~codec.coder.coded_mask(prior, code, quantizer == "dither")
            error = np.abs(y - prior.mu) / level_value(code) * skips
            worst = np.maximum(worst, np.sqrt((np.where(error > 0.5, error, 0) ** 2).sum(1, keepdims=True)))
        assert (worst <= bound + 1e-3).all()
        # The worst errors of the channels of a place need not be at one level, but are seldom far apart.
        assert float(bound.max()) < 2 * worst.max() + 1e-3


def test_lengths_of_symbols_add_up() -> None:
    coder = small_codec().coder
    z = np.random.default_rng(1).integers(-3000, 3000, (1, 4, 3, 5)).astype(np.int32)
    z[0, :, 0] = 1
    assert coder.lengths_z(z).shape == z.shape
    assert coder.lengths_z(z).sum() == pytest.approx(coder.bits_z(z))
