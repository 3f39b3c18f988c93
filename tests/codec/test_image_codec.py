"""Images to files and back: exact symbols at any size, honest rates, tiles without seams, bounded memory."""

from __future__ import annotations

import io
import itertools
import json
import math
import os
import subprocess
import sys
import warnings
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from bounds import rounding
from fuzz import fuzz, mutations, originals, sealed
from numpy.typing import NDArray
from PIL import Image, ImageCms
from small import KINDS, all_symbols, array, formula, picture, small_codec, small_model
from torch import Tensor, nn
from torch.nn import functional as F

from gic.bitstream.coder import level_code, level_value
from gic.bitstream.container import MAX_METADATA, NO_METADATA, Metadata, Payload, pack, unpack
from gic.bitstream.tables import OFFSETS, dither_values
from gic.codec import decoder, encoder, image_codec, tiling
from gic.codec.decoder import decode_symbols
from gic.codec.encoder import Encoding, analyse
from gic.codec.image_codec import ImageCodec
from gic.codec.tiling import HALO, MAX_TILE, RAMP, tiles_of
from gic.errors import ConfigError, FormatError, ImageError
from gic.method import sde
from gic.models.ranges import SKIP_BELOW
from gic.models.reverse import ReverseUNet
from gic.runtime import pytorch

QUANTIZERS = ("round", "dither")
SIZES = [(1, 1), (1, 7), (17, 1), (15, 16), (40, 30), (65, 63), (64, 128), (129, 127), (300, 517)]


@pytest.fixture
def codec() -> ImageCodec:
    return small_codec()


def payload_bytes(data: bytes) -> int:
    return sum(len(p.z) + len(p.y) for p in unpack(data).payloads)


# --- symbols --------------------------------------------------------------------------------------------------


def spy(codec: ImageCodec, monkeypatch: pytest.MonkeyPatch) -> dict[str, list[NDArray[np.int32]]]:
    """Symbols that the encoder hands to the entropy coder."""
    seen: dict[str, list[NDArray[np.int32]]] = {"encode_z": [], "encode_y": []}
    for name, list_ in seen.items():
        original = getattr(codec.coder, name)

        def record(symbols, *args, original=original, list_=list_):
            list_.append(symbols.copy())
            return original(symbols, *args)

        monkeypatch.setattr(codec.coder, name, record)
    return seen


@pytest.mark.parametrize("quantizer", QUANTIZERS)
@pytest.mark.parametrize("size", SIZES)
def test_the_decoder_finds_the_encoder_s_symbols(size, quantizer, codec, monkeypatch) -> None:
    distinct = 0
    for kind, tile in itertools.product(KINDS, (0, 64, 128)):
        with monkeypatch.context() as patch:
            seen = spy(codec, patch)
            data = codec.compress(picture(*size, kind), q=1.3, quantizer=quantizer, seed=5, tile=tile)
        file = codec.open(data)
        decoded = all_symbols(codec, file)
        assert len(decoded) == len(tiles_of(*size, tile)) == len(seen["encode_z"]) == len(seen["encode_y"])
        for (z, y), z_true, y_true in zip(decoded, seen["encode_z"], seen["encode_y"], strict=True):
            assert np.array_equal(z, z_true) and np.array_equal(y, y_true)
            distinct = max(distinct, len(np.unique(y)))
    assert distinct > 8  # the test sees busy symbols


@pytest.mark.parametrize("tile", [0, 64, 128])
def test_the_decoded_size_is_the_original_s(tile, codec) -> None:
    for width, height in SIZES:
        data = codec.compress(picture(width, height), q=3.0, tile=tile)
        assert codec.decompress(data, sampler="mean").size == (width, height)
        assert codec.decompress_tensor(data, sampler="mean").shape == (3, height, width)


@pytest.mark.parametrize("q", [2.0, 20.0])
@pytest.mark.parametrize("quantizer", QUANTIZERS)
def test_the_decoder_s_latent_lies_in_the_cell_of_the_encoder_s(quantizer, q, monkeypatch) -> None:
    # The z of the analysis leaves elements out at 20; the encoder would take another one for it.
    monkeypatch.setattr(encoder, "settle", lambda model, coder, y, z, *_: (z, coder.prior(z)))
    model = small_model()
    model.q_max = 32.0
    codec = ImageCodec(model, "cpu")
    pixels = picture(230, 200, "noise")
    (analysed,) = analyse(codec, pixels.numpy(), 0)
    seen: list[Tensor] = []

    def reverse(denoise, y_q, q, **options):
        seen.append(y_q)
        return y_q

    data = codec.compress(pixels, q=q, quantizer=quantizer, seed=3)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pytorch, "reverse", reverse)
        codec.decompress_tensor(data)
    q = level_value(unpack(data).code)
    y_q = seen[0].numpy()
    off = np.abs(y_q - analysed.y)
    # Elements that are not coded sit on mu itself.
    skipped = analysed.prior.sigma < (SKIP_BELOW if quantizer == "dither" else SKIP_BELOW / 2) * q
    assert np.array_equal(y_q[skipped], analysed.prior.mu[skipped])
    bound = rounding(6, float(np.abs(analysed.y).max() + np.abs(analysed.prior.mu).max()))  # to the symbol and back
    assert (off[~skipped] <= q / 2 + bound).all()
    assert not skipped.all() and (q < 8 or skipped.any())
    if quantizer == "dither":
        eps = ((y_q - analysed.y) / q)[~skipped]
        assert abs(float(eps.var()) * 12 - 1) < 0.15 and abs(float(eps.mean())) < 0.05


def philox(key: tuple[int, int], counter: list[int]) -> list[int]:
    """One block of Philox4x64-10 (Salmon et al. 2011), in Python's integers."""
    mask = 2**64 - 1
    x, k = list(counter), list(key)
    for turn in range(10):
        if turn:
            k = [(k[0] + 0x9E3779B97F4A7C15) & mask, (k[1] + 0xBB67AE8584CAA73B) & mask]
        first, second = 0xD2E7470EE14C6C93 * x[0], 0xCA5A826395121157 * x[2]
        x = [(second >> 64) ^ x[1] ^ k[0], second & mask, (first >> 64) ^ x[3] ^ k[1], first & mask]
    return x


@pytest.mark.parametrize(("seed", "index"), [(0, 0), (1, 0), (2**32 - 1, 3)])
def test_dither_offsets_are_the_documented_ones(seed: int, index: int, codec) -> None:
    offsets = codec.offsets("dither", seed, index, (3, 5))
    words = [w for block in range(1, 5) for w in philox((seed, 0), [block, 0, 0, index])]
    expected = [byte % OFFSETS for word in words for byte in word.to_bytes(8, "little")]
    assert offsets.ravel().tolist() == expected[: 8 * 15]
    assert len(np.unique(codec.offsets("dither", seed, index, (20, 20)))) == OFFSETS


def test_dithers_differ_between_seeds_and_tiles(codec) -> None:
    draws = [codec.offsets("dither", seed, index, (4, 4)).tobytes() for seed in (0, 1) for index in (0, 1, 2)]
    assert len(set(draws)) == 6
    assert codec.offsets("round", 0, 0, (4, 4)) is None
    assert abs(float(dither_values(codec.offsets("dither", 9, 0, (50, 50))).mean())) < 0.01


# --- size of files --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("quantizer", QUANTIZERS)
@pytest.mark.parametrize("size", [(1, 1), (40, 30), (300, 517)])
def test_the_overhead_of_an_untiled_image_is_at_most_32_bytes(size, quantizer, codec) -> None:
    data = codec.compress(picture(*size), q=1.0, quantizer=quantizer, seed=2**32 - 1)
    assert len(data) - payload_bytes(data) <= 32


def test_the_overhead_stays_below_32_bytes_for_the_largest_sizes(codec) -> None:
    file = unpack(codec.compress(picture(8, 8), q=1.0, quantizer="dither", seed=2**32 - 1))
    payload = Payload(bytes(2**21), b"")
    for width, height in ((2**16, 2**12), (2**12, 2**16)):
        data = pack(replace(file, width=width, height=height, payloads=(payload,)))
        assert len(data) - 2**21 <= 32


@pytest.mark.parametrize(("quantizer", "tile"), [("round", 0), ("dither", 0), ("round", 64), ("dither", 128)])
def test_files_are_as_large_as_estimated_at_every_level(quantizer, tile, codec) -> None:
    for kind in KINDS:
        encoding = Encoding(codec, picture(300, 200, kind).numpy(), quantizer, 0, tile, NO_METADATA)
        for level in range(codec.finest, codec.coarsest + 1, 409):
            real, estimate = len(encoding.at(level)), encoding.estimate(level)
            assert abs(real - estimate) <= 0.01 * real + 32


@pytest.mark.parametrize(("quantizer", "tile"), [("round", 0), ("dither", 0), ("round", 128)])
@pytest.mark.parametrize("kind", ["smooth", "noise", "edges"])
def test_max_bytes_is_never_exceeded_and_nearly_reached(kind, quantizer, tile, codec) -> None:
    pixels = picture(300, 210, kind)
    smallest, largest = (len(codec.compress(pixels, quality=q, quantizer=quantizer, tile=tile)) for q in (0, 100))
    for limit in [smallest, *np.linspace(smallest * 1.1, largest, 7).astype(int).tolist(), largest, 3 * largest]:
        size = len(codec.compress(pixels, max_bytes=limit, quantizer=quantizer, tile=tile))
        assert size <= limit
        assert size >= 0.97 * min(limit, largest)


@pytest.mark.parametrize("quantizer", QUANTIZERS)
@pytest.mark.parametrize("kind", ["smooth", "noise", "edges"])
def test_a_target_in_bits_per_pixel_is_met(kind, quantizer, codec) -> None:
    width, height = 300, 210
    pixels = picture(width, height, kind)
    ends = [len(codec.compress(pixels, quality=q, quantizer=quantizer)) * 8 / (width * height) for q in (0, 100)]
    for bpp in np.linspace(*ends, 8).tolist():
        real = len(codec.compress(pixels, bpp=bpp, quantizer=quantizer)) * 8 / (width * height)
        assert abs(real / bpp - 1) <= 0.02


@pytest.mark.parametrize("target", [{"bpp": 1e-4}, {"bpp": 20.0}, {"max_bytes": 20}, {"max_bytes": 0}])
def test_a_target_out_of_reach_is_refused_with_what_can_be_reached(target, codec) -> None:
    with pytest.raises(ConfigError, match=r"at the (coarsest|finest) level of this model"):
        codec.compress(picture(100, 80), **target)


@pytest.mark.parametrize("quantizer", QUANTIZERS)
@pytest.mark.parametrize(("bpp", "quality"), [(1e-4, 0), (20.0, 100)])
def test_a_target_out_of_reach_may_be_the_end_of_the_range_instead(bpp, quality, quantizer, codec) -> None:
    pixels = picture(100, 80)
    data = codec.compress(pixels, bpp=bpp, strict_rate=False, quantizer=quantizer)
    assert data == codec.compress(pixels, quality=quality, quantizer=quantizer)
    encoding = codec.encoding(pixels, quantizer=quantizer)
    assert f"{len(data)} bytes" in encoding.shortfall(data, bpp)
    reached = len(data) * 8 / 8000
    assert encoding.shortfall(data, reached) == encoding.shortfall(data, None) == ""
    with pytest.raises(ConfigError):  # this is never exceeded
        codec.compress(pixels, max_bytes=20, strict_rate=False)


@pytest.mark.parametrize(
    "settings",
    [
        {"q": 0.1},
        {"q": 100.0},
        {"q": math.nan},
        {"quality": -1},
        {"quality": 101},
        {"quality": math.nan},
        {"bpp": 0.0},
        {"bpp": -1.0},
        {"bpp": math.nan},
        {"bpp": math.inf},
        {"quantizer": "noise"},
        {"seed": -1},
        {"seed": 2**32},
        {"tile": 63},
        {"tile": -64},
        {"tile": 2 * MAX_TILE},
        {"q": 1.0, "bpp": 1.0},
        {"max_bytes": 1000, "quality": 50},
    ],
)
def test_settings_without_sense_are_refused(settings, codec) -> None:
    with pytest.raises(ConfigError):
        codec.compress(picture(20, 20), **settings)


@pytest.mark.parametrize(
    "settings", [{"realism": 1.5}, {"realism": math.nan}, {"steps": 0}, {"sampler": "none"}, {"seed": -1}]
)
def test_settings_of_the_decoder_without_sense_are_refused(settings, codec) -> None:
    data = codec.compress(picture(20, 20))
    with pytest.raises(ConfigError):
        codec.decompress(data, **settings)


def test_a_file_may_be_given_as_bytes_a_path_or_an_open_file(codec, tmp_path: Path) -> None:
    data = codec.compress(picture(20, 20), q=2.0)
    path = tmp_path / "a.gic"
    path.write_bytes(data)
    expected = codec.decompress_tensor(data)
    for given in (bytearray(data), memoryview(data), path, str(path), io.BytesIO(data), path.open("rb")):
        assert torch.equal(codec.decompress_tensor(given), expected)
    for given in (path, str(path), path.open("rb")):
        assert codec.decompress(given).size == (20, 20) and codec.open(path).width == 20


@pytest.mark.parametrize("what", ["missing", "folder", "closed", "text file", "number", "none", "name with a zero"])
def test_what_is_no_file_is_refused_in_one_line(what: str, codec, tmp_path: Path) -> None:
    (tmp_path / "a.gic").write_bytes(b"")
    given = {
        "missing": tmp_path / "missing.gic",
        "folder": str(tmp_path),
        "closed": io.BytesIO(b""),
        "text file": io.StringIO("text"),
        "number": 3,
        "none": None,
        "name with a zero": "a\0b",
    }[what]
    if what == "closed":
        given.close()
    with pytest.raises(FormatError) as caught:
        codec.decompress(given)
    text = str(caught.value)
    assert "\n" not in text and "Errno" not in text
    assert (str(tmp_path) in text) == (what in ("missing", "folder"))


def test_arrays_that_cannot_be_written_are_pictures_and_warn_of_nothing(codec) -> None:
    pixels = np.array(Image.fromarray(picture(20, 16).permute(1, 2, 0).numpy()))
    expected = codec.compress(pixels, q=2.0)
    locked = pixels.copy()
    locked.flags.writeable = False
    turned = np.asfortranarray(pixels)
    turned.flags.writeable = False
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for given in (locked, turned, np.asarray(Image.fromarray(pixels)), np.frombuffer(pixels.tobytes(), np.uint8)):
            assert codec.compress(given.reshape(pixels.shape), q=2.0) == expected
        batch = np.broadcast_to(pixels[:1, :1], pixels.shape)
        assert codec.compress(batch, q=2.0) == codec.compress(batch.copy(), q=2.0)


def levels(codec: ImageCodec) -> list[float]:
    return np.geomspace(codec.model.q_min, codec.model.q_max, 20).tolist()


@pytest.mark.parametrize("quantizer", QUANTIZERS)
@pytest.mark.parametrize("kind", ["smooth", "noise", "edges"])
def test_coarser_levels_make_smaller_files(kind, quantizer, codec) -> None:
    sizes = [len(codec.compress(picture(400, 300, kind), q=q, quantizer=quantizer)) for q in levels(codec)]
    assert all(fine > coarse for fine, coarse in itertools.pairwise(sizes))


@pytest.mark.parametrize("quantizer", QUANTIZERS)
def test_coarser_levels_make_smaller_files_of_photographs(quantizer, shared: Path, codec) -> None:
    photos = sorted((shared / "data" / "kodak").glob("*.png"))[::8]
    assert photos
    for photo in photos:
        sizes = [len(codec.compress(photo, q=q, quantizer=quantizer)) for q in levels(codec)]
        assert all(fine > coarse for fine, coarse in itertools.pairwise(sizes))


def test_quality_runs_from_the_coarsest_level_to_the_finest(codec) -> None:
    pixels = picture(60, 50)
    found = [unpack(codec.compress(pixels, quality=quality)).code for quality in (0, 25, 50, 75, 100)]
    assert found[0] == level_code(codec.model.q_max) and found[-1] == level_code(codec.model.q_min)
    assert len(set(np.diff(found))) == 1
    assert unpack(codec.compress(pixels)).code == found[2]


# --- tiles ----------------------------------------------------------------------------------------------------


class Upsample(nn.Module):
    """A synthesis that looks at nothing but the latent under each pixel."""

    def forward(self, y: Tensor, realism: float = 0.0) -> Tensor:
        return F.interpolate(y[:, :3] * 0.02 + 0.5, scale_factor=16, mode="nearest")


@pytest.mark.parametrize("tile", [64, 128, 192])
@pytest.mark.parametrize("size", [(300, 517), (129, 65), (64, 64), (700, 40), (1, 200)])
def test_every_pixel_is_written_once_in_its_place(size, tile) -> None:
    """With a decoder that has no receptive field the picture is known pixel by pixel."""
    model = small_model()
    nn.init.zeros_(model.reverse.leave.weight)
    nn.init.zeros_(model.reverse.leave.bias)
    model.compressor.g_s = Upsample()
    codec = ImageCodec(model, "cpu")
    data = codec.compress(picture(*size, "edges"), q=1.0, tile=tile)
    file = codec.open(data)
    expected = torch.full((3, size[1], size[0]), -1.0)
    for index, place in enumerate(tiles_of(*size, tile)):
        _, prior, symbols, _ = decode_symbols(codec, file, index, place)
        mu, sigma = torch.from_numpy(prior.mu), torch.from_numpy(prior.sigma)
        y_q = sde.dequantize(torch.from_numpy(symbols).float(), level_value(file.code), mu)
        y = codec.model.denoiser(type("P", (), {"mu": mu, "sigma": sigma}))(  # type: ignore[arg-type]
            y_q, torch.full((1, 1, 1, 1), level_value(file.code))
        )
        x = Upsample()(y)[0].clamp(0, 1)[:, : place.bottom - place.top, : place.right - place.left]
        expected[:, place.top : place.bottom, place.left : place.right] = x
    decoded = codec.decompress_tensor(data, sampler="mean")
    assert (expected >= 0).all() and len(torch.unique(decoded)) > min(5, decoded[0].numel())
    # 1e-4: the shares of the cross-fade add up to one but for rounding.
    assert (decoded - expected * 255).abs().max() <= 0.5 + 1e-2


def test_the_cross_fade_lies_within_the_halo() -> None:
    assert RAMP < HALO and HALO % 64 == 0


@torch.no_grad()
def test_tiles_leave_no_seam(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tiled and untiled decodes differ near borders, where the prior does, but not by steps along them."""
    model = small_model()
    model.q_min = 0.02  # so fine that what is left are the effects of the tiles
    codec = ImageCodec(model, "cpu")
    pixels = picture(512, 512, "smooth")
    whole, tiled = (
        codec.decompress_tensor(codec.compress(pixels, q=0.02, tile=tile), realism=0.0, sampler="mean").float()
        for tile in (0, 128)
    )
    borders = [128, 256, 384]
    difference = (tiled - whole).abs()
    near = torch.cat([difference[:, :, b - 32 : b + 32] for b in borders], 2).mean()
    elsewhere = torch.cat([difference[:, :, b + 48 : b + 80] for b in [0, *borders]], 2).mean()
    print(f"mean difference near borders {near:.4f}, elsewhere {elsewhere:.4f} of 255")
    assert near < 1.0

    def steps(x: Tensor) -> float:
        return float(torch.stack([(x[:, :, b] - x[:, :, b - 1]).abs().mean() for b in borders]).mean())

    ratio = steps(tiled) / steps(whole)
    print(f"steps across borders, tiled to untiled: {ratio:.4f}")
    assert abs(ratio - 1) < 0.01
    # Without the cross-fade and with a narrow halo there would be a seam.
    monkeypatch.setattr(encoder, "HALO", 16)
    monkeypatch.setattr(decoder, "HALO", 16)
    monkeypatch.setattr(tiling, "RAMP", 0.01)
    hard = codec.decompress_tensor(codec.compress(pixels, q=0.02, tile=128), realism=0.0, sampler="mean").float()
    print(f"without cross-fade and halo: {steps(hard) / steps(whole):.4f}")
    assert abs(steps(hard) / steps(whole) - 1) > 0.05


@pytest.mark.parametrize("quantizer", QUANTIZERS)
def test_a_tile_decodes_from_its_payload_alone(quantizer, codec) -> None:
    data = codec.compress(picture(200, 150, "noise"), q=1.0, tile=64, quantizer=quantizer)
    file = codec.open(data)
    truth = all_symbols(codec, file)
    rng = np.random.default_rng(0)
    for index, place in enumerate(tiles_of(200, 150, 64)):
        garbage = tuple(
            p if i == index else Payload(rng.bytes(len(p.z)), rng.bytes(len(p.y))) for i, p in enumerate(file.payloads)
        )
        other = codec.open(pack(replace(file, payloads=garbage)))
        z, _, y, _ = decode_symbols(codec, other, index, place)
        assert np.array_equal(z, truth[index][0]) and np.array_equal(y, truth[index][1])


def test_large_images_are_tiled_and_small_ones_are_not(codec) -> None:
    assert unpack(codec.compress(picture(1920, 1080, "flat"), quality=0)).tile == 0
    data = codec.compress(picture(2100, 1100, "edges"), quality=0)
    file = unpack(data)
    assert file.tile == 1024 and len(file.payloads) == 6
    reports: list[tuple[int, int]] = []
    image = codec.decompress(data, sampler="mean", progress=lambda *at: reports.append(at))
    assert image.size == (2100, 1100)
    assert reports == [(i, 6) for i in range(1, 7)]
    with pytest.raises(ConfigError, match="takes tiles"):
        codec.compress(picture(4100, 2100, "flat"), quality=0, tile=0)


MEMORY = """
import json, resource, sys, time
import numpy as np, torch, yaml
torch.set_num_threads(1)
from gic.codec.checkpoints import build_codec
from gic.codec.image_codec import ImageCodec

config, width, height = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
torch.manual_seed(0)
codec = ImageCodec(build_codec(yaml.safe_load(open(config))["model"]["codec"]), "cpu")
y, x = np.ogrid[0:height, 0:width]
grey = (128 + 60 * np.sin(np.float32(x / 40)) * np.cos(np.float32(y / 50))).astype(np.uint8)
pixels = torch.from_numpy(grey).expand(3, height, width)
rss = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
start = time.time()
base = rss()
data = codec.compress(pixels, quality=50)
middle, encoder = time.time(), rss()
decoded = codec.decompress_tensor(data, sampler="mean", realism=0)
assert decoded.shape == pixels.shape
print(json.dumps({"bytes": len(data), "base GiB": base, "encoder GiB": encoder, "peak GiB": rss(),
                  "encode s": middle - start, "decode s": time.time() - middle}))
"""


def memory(repository: Path, width: int, height: int) -> dict[str, float]:
    """Largest resident memory of a process that compresses and decompresses with the preset ``small``."""
    words = [sys.executable, "-c", MEMORY, str(repository / "configs/models/small.yaml"), str(width), str(height)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(words, cwd=repository, env=environment, capture_output=True, text=True, check=True)
    found = json.loads(done.stdout.splitlines()[-1])
    print(found)
    return found


@pytest.mark.slow
def test_48_megapixels_take_less_than_3_gib(repository: Path) -> None:
    assert memory(repository, 8000, 6000)["peak GiB"] < 3


# --- what goes in ---------------------------------------------------------------------------------------------


def test_all_kinds_of_input_make_the_same_file(tmp_path: Path, codec) -> None:
    pixels = picture(50, 40)
    image = Image.fromarray(array(pixels))
    image.save(tmp_path / "a.png")
    expected = codec.compress(pixels, q=1.0)
    inputs = [
        array(pixels),
        image,
        pixels.float() / 255,
        tmp_path / "a.png",
        str(tmp_path / "a.png"),
        (tmp_path / "a.png").read_bytes(),
        io.BytesIO((tmp_path / "a.png").read_bytes()),
    ]
    assert all(codec.compress(given, q=1.0) == expected for given in inputs)
    assert codec.compress(pixels, q=1.0) == expected  # and again


@pytest.mark.parametrize(
    "given",
    [
        torch.zeros(1, 8, 8),
        torch.zeros(8, 8),
        torch.zeros(3, 8, 8, dtype=torch.int64),
        torch.full((3, 8, 8), math.nan),
        torch.zeros(3, 0, 8, dtype=torch.uint8),
        np.zeros((8, 8), np.uint16),
        np.zeros((3, 8, 8), np.uint8),
        np.zeros((8, 8, 3), np.float64),
        b"no picture",
        "nowhere.png",
        5,
    ],
)
def test_what_is_no_picture_is_refused(given, codec) -> None:
    with pytest.raises(ImageError):
        codec.compress(given)


def test_a_device_that_is_not_there_is_refused() -> None:
    with pytest.raises(ConfigError, match="device"):
        ImageCodec(small_model(), "nonsense")
    if not torch.cuda.is_available():
        with pytest.raises(ConfigError, match="device cuda"):
            ImageCodec(small_model(), "cuda")


def test_damaged_weights_are_refused() -> None:
    model = small_model()
    with torch.no_grad():
        model.compressor.g_a.layers[0].weight[0, 0, 0, 0] = math.nan
    with pytest.raises(ConfigError, match="damaged"):
        ImageCodec(model, "cpu").compress(picture(20, 20))


def test_the_same_seed_decodes_alike_and_realism_changes_the_picture(codec) -> None:
    data = codec.compress(picture(90, 70, "noise"), q=6.0)
    for sampler in ("sde", "restart"):
        a, b, c = (codec.decompress_tensor(data, sampler=sampler, seed=seed) for seed in (0, 0, 1))
        assert torch.equal(a, b) and not torch.equal(a, c)
    least, most = (codec.decompress_tensor(data, realism=r) for r in (0.0, 1.0))
    assert not torch.equal(least, most)
    assert torch.equal(least, codec.decompress_tensor(data, sampler="mean"))


def test_the_realism_of_u_reaches_decoded_files() -> None:
    model = small_model()
    plain = model.reverse.state_dict()
    pictures = {}
    for change in (0.0, 0.2):
        model.reverse = ReverseUNet(8, widths=(8,), blocks=(1,), realistic=True).eval()
        model.reverse.load_state_dict(plain)
        assert model.reverse.realistic is not None
        with torch.no_grad():
            for number, weights in enumerate(model.reverse.realistic.parameters()):
                weights.copy_(change * formula(tuple(weights.shape), number))
        codec = ImageCodec(model, "cpu")
        data = codec.compress(picture(90, 70, "noise"), q=6.0)
        for r in (0.0, 1.0):
            pictures[change, r] = codec.decompress_tensor(data, realism=r)
    assert torch.equal(pictures[0.0, 0.0], pictures[0.2, 0.0])
    assert not torch.equal(pictures[0.0, 1.0], pictures[0.2, 1.0])


# --- metadata -------------------------------------------------------------------------------------------------


def photo_with_metadata() -> tuple[bytes, bytes]:
    """A JPEG with an orientation, a camera name and an ICC profile, and the profile."""
    image = Image.fromarray(array(picture(50, 40, "edges")))
    exif = Image.Exif()
    exif[0x0112] = 6  # turned a quarter
    exif[0x0110] = "Camera"
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", exif=exif.tobytes(), icc_profile=profile, quality=95, subsampling=0)
    return buffer.getvalue(), profile


def test_files_carry_no_metadata_unless_asked_to(codec) -> None:
    photo, _ = photo_with_metadata()
    plain = codec.compress(photo, q=1.0)
    assert unpack(plain).metadata == NO_METADATA
    assert not {"exif", "icc_profile"} & codec.decompress(plain).info.keys()


def test_metadata_travels_when_asked_to(codec) -> None:
    photo, profile = photo_with_metadata()
    plain = codec.compress(photo, q=1.0)
    data = codec.compress(photo, q=1.0, keep_metadata=True)
    assert len(data) > len(plain) + 100  # it is counted
    image = codec.decompress(data)
    assert image.info["icc_profile"] == profile
    assert image.size == (40, 50)  # the orientation is applied ...
    exif = image.getexif()
    assert exif.get(0x0110) == "Camera"
    assert exif.get(0x0112) is None  # ... and not said again
    limit = len(data) + 5
    assert len(codec.compress(photo, max_bytes=limit, keep_metadata=True)) <= limit


def swapped_profile() -> bytes:
    """A profile of an RGB space whose red and blue primaries have changed places."""
    data = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    entries = {bytes(data[at : at + 4]): at for at in range(132, 132 + 12 * int.from_bytes(data[128:132], "big"), 12)}
    red, blue = entries[b"rXYZ"], entries[b"bXYZ"]
    data[red : red + 4], data[blue : blue + 4] = b"bXYZ", b"rXYZ"
    return bytes(data)


def test_pixels_stay_in_the_profile_that_travels(codec) -> None:
    pixels = picture(64, 64, "smooth")
    buffer = io.BytesIO()
    Image.fromarray(array(pixels)).save(buffer, "PNG", icc_profile=swapped_profile())
    kept = unpack(codec.compress(buffer.getvalue(), q=1.0, keep_metadata=True))
    assert kept.metadata.icc == swapped_profile()
    assert kept.payloads == unpack(codec.compress(pixels, q=1.0)).payloads
    assert unpack(codec.compress(buffer.getvalue(), q=1.0)).payloads != kept.payloads  # converted


def test_too_much_metadata_is_refused(codec, monkeypatch) -> None:
    read = picture(9, 9), Metadata(b"", bytes(MAX_METADATA + 1)), ()
    monkeypatch.setattr(image_codec, "read_pixels", lambda *a: read)
    with pytest.raises(ConfigError, match="leave out the metadata"):
        codec.compress("any.png", keep_metadata=True)


# --- damage ---------------------------------------------------------------------------------------------------


def test_another_model_s_file_is_refused_with_both_names(codec) -> None:
    other = small_codec(1)
    assert other.model_id != codec.model_id
    with pytest.raises(FormatError) as caught:
        other.decompress(codec.compress(picture(20, 20)))
    assert codec.model_id.hex() in str(caught.value) and other.model_id.hex() in str(caught.value)


def test_the_model_id_sees_every_weight(codec) -> None:
    model = small_model()
    assert ImageCodec(model, "cpu").model_id == codec.model_id
    for parameter in model.parameters():
        with torch.no_grad():
            last = (-1,) * parameter.dim()
            before = parameter[last].clone()
            parameter[last] += 1e-3
        assert ImageCodec(model, "cpu").model_id != codec.model_id
        with torch.no_grad():
            parameter[last] = before


@pytest.mark.parametrize("level", [-(2**15), -1025, 3073, 2**15 - 1])
def test_levels_outside_the_model_s_range_are_refused(level: int, codec) -> None:
    file = unpack(codec.compress(picture(20, 20)))
    with pytest.raises(FormatError, match="level"):
        codec.decompress(pack(replace(file, code=level)))


def test_a_header_that_claims_many_pixels_takes_no_memory(codec) -> None:
    """2^28 pixels in 256 tiles, payloads of garbage: refused before memory for the picture is taken."""
    import resource

    small = unpack(codec.compress(picture(20, 20)))
    payloads = (small.payloads[0], Payload(b"\1\0\0", b""), Payload(b"\xff" * 9, b"\xff" * 9))
    file = replace(small, width=2**16, height=2**12, tile=1024, payloads=payloads[:1] * 256)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for payload in payloads:
        with pytest.raises(FormatError, match="entropy-coded data are damaged"):
            codec.decompress(pack(replace(file, payloads=(payload,) * 256)))
    with pytest.raises(FormatError, match="too large for one piece"):
        codec.decompress(pack(replace(file, tile=0, payloads=payloads[:1])))
    with pytest.raises(FormatError, match="larger than"):
        codec.decompress(pack(replace(file, tile=4096, payloads=payloads[:1] * 16)))
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000  # KiB; the picture alone takes 786,432


def test_damaged_files_give_a_picture_or_a_format_error(codec) -> None:
    outcome = fuzz(codec, 1800)
    assert outcome["refused"] > 1000 and outcome["decoded"] > 100


def test_the_fuzz_damages_what_lies_behind_the_checksums_of_progressive_files(codec) -> None:
    for data in originals(codec):
        assert sealed(data) == data
    kinds = Counter[str]()
    for data in mutations(codec, 1800, seed=3):
        if data[3:4] == b"\2":
            try:
                found = unpack(data).progressive
                assert found is not None
                all_symbols(codec, codec.open(data))
            except FormatError as error:
                kinds["first level" if "entropy-coded" in str(error) else "header"] += 1
            else:
                kinds["told" if found.lost else "cut" if found.held < found.size else "not told"] += 1
    assert min(kinds.values()) > 20 and len(kinds) == 5


@pytest.mark.slow
def test_20_000_damaged_files_give_a_picture_or_a_format_error(codec) -> None:
    import resource

    fuzz(codec, 100, seed=1)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    outcome = fuzz(codec, 20_000, seed=1)
    print(outcome)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 500_000  # KiB


def test_the_fuzz_sees_an_error_that_escapes(codec, monkeypatch) -> None:
    """The tests above can fail."""
    original = codec.coder.decode_y
    calls = itertools.count()

    def broken(*args):
        if next(calls) == 5:
            raise IndexError("list index out of range")
        return original(*args)

    monkeypatch.setattr(codec.coder, "decode_y", broken)
    with pytest.raises(AssertionError, match="IndexError"):
        fuzz(codec, 300)


def test_a_valid_checksum_over_a_damaged_payload_does_no_harm(codec) -> None:
    """Every byte of a small file in turn."""
    data = codec.compress(picture(40, 30), q=4.0)
    for at in range(11, len(data) - 4):
        damaged = sealed(data[:at] + bytes([data[at] ^ 0x55]) + data[at + 1 :])
        try:
            image = codec.decompress(damaged, sampler="mean")
        except FormatError as error:
            assert len(str(error)) > 20
        else:
            file = unpack(damaged)
            assert image.size == (file.width, file.height)
