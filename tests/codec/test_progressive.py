"""Any first part of a progressive file is a picture, better the longer it is; its levels are those of plain files."""

from __future__ import annotations

import io
from dataclasses import replace
from functools import cache
from itertools import pairwise

import numpy as np
import pytest
import torch
from PIL import Image, ImageCms
from small import KINDS, all_symbols, array, picture, small_codec

import gic
from gic.bitstream.chunks import Progressive
from gic.bitstream.container import pack, truncate, unpack
from gic.bitstream.refinement import STEP
from gic.codec import encoder
from gic.codec.decoder import decode_symbols, first_code
from gic.codec.image_codec import ImageCodec
from gic.codec.tiling import tiles_of
from gic.data.synthetic import synthetic_image
from gic.errors import ConfigError, FormatError, TruncatedError

Q = 0.6
"""A level with two coarser ones in the range of the small codec."""


@pytest.fixture
def codec() -> ImageCodec:
    return small_codec()


def with_metadata() -> bytes:
    exif = Image.Exif()
    exif[0x0110] = "Camera"
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    photo = io.BytesIO()
    Image.fromarray(array(picture(40, 30))).save(photo, "PNG", exif=exif.tobytes(), icc_profile=profile)
    return photo.getvalue()


@cache
def made(name: str) -> bytes:
    """A file with two refinements."""
    images = {
        "plain": (picture(40, 30), {}),
        "tiled": (picture(100, 70, "noise"), {"tile": 64}),
        "grey": (picture(50, 44, "edges")[:1].expand(3, -1, -1), {}),
        "metadata": (with_metadata(), {"keep_metadata": True}),
        "pixel": (picture(1, 1), {}),
    }
    image, settings = images[name]
    return small_codec().compress(image, q=Q, progressive=True, **settings)


FILES = ("plain", "tiled", "grey", "metadata", "pixel")


def progressive(data: bytes) -> Progressive:
    found = unpack(data).progressive
    assert found is not None
    return found


def levels(codec: ImageCodec, data: bytes) -> list[tuple[np.ndarray, np.ndarray | int]]:
    """Symbols of y of each tile, and their levels."""
    file = codec.open(data)
    places = tiles_of(file.width, file.height, file.tile)
    return [decode_symbols(codec, file, i, place)[2:] for i, place in enumerate(places)]


def small_chunks(monkeypatch: pytest.MonkeyPatch, size: int = 40) -> None:
    """Let small pictures have several chunks for each level of a tile."""
    monkeypatch.setattr(encoder, "CHUNK_BYTES", size)


# --- levels ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("chunk", [30, 4096])
@pytest.mark.parametrize(("size", "tile"), [((40, 30), 0), ((140, 100), 64), ((200, 130), 0), ((1, 1), 0)])
@pytest.mark.parametrize("kind", KINDS)
def test_cut_at_the_end_of_a_level_a_file_is_the_plain_one_of_that_level(
    kind, size, tile, chunk, codec, monkeypatch
) -> None:
    small_chunks(monkeypatch, chunk)
    pixels = picture(*size, kind)
    encoding = codec.encoding(pixels, tile=tile, progressive=True)
    plain = codec.encoding(pixels, tile=tile, quantizer="round")
    code = codec.finest + 100
    data = encoding.at(code)
    whole = progressive(data)
    assert whole.refinements == 2 and unpack(data).code == code and first_code(unpack(data)) == code + 2 * STEP
    for number, end in enumerate((whole.start, *whole.ends)):
        cut, other = data[:end], plain.at(code + (2 - number) * STEP)
        assert progressive(cut).complete == number
        for (z, y), (z_other, y_other) in zip(*(all_symbols(codec, codec.open(d)) for d in (cut, other)), strict=True):
            assert np.array_equal(z, z_other) and np.array_equal(y, y_other)
        for settings in ({"realism": 0.0, "sampler": "mean"}, {"realism": 1.0, "sampler": "heun"}):
            assert torch.equal(codec.decompress_tensor(cut, **settings), codec.decompress_tensor(other, **settings))


@pytest.mark.parametrize("chunk", [12, 40])
def test_a_tile_at_the_end_of_a_level_beside_others_that_are_not(chunk: int, codec, monkeypatch) -> None:
    small_chunks(monkeypatch, chunk)
    data = codec.compress(picture(140, 100, "noise"), q=Q, tile=64, progressive=True)
    whole, file = progressive(data), unpack(data)
    seen = set()
    for stop in whole.stops:
        found = levels(codec, data[:stop])
        kinds = [code if isinstance(code, int) else -1 for _, code in found]
        seen.add(tuple(sorted(set(kinds))))
        for y, code in found:
            if not isinstance(code, int):
                assert code.shape == y.shape and len(np.unique(code)) == 2
                assert np.ptp(code) == STEP
        assert codec.decompress(data[:stop], sampler="heun", realism=1.0).size == (140, 100)
    # All tiles at the last level; some at one and some at the next; some in between.
    first = first_code(file)
    assert (file.code,) in seen and ((first - STEP, first) in seen or chunk < 40)
    assert any(kind[0] == -1 and len(kind) > 1 for kind in seen) == (chunk < 40)


@pytest.mark.parametrize("q", [2.7, 3.5, 8.0])
def test_a_level_so_coarse_that_there_is_none_above_it_is_the_only_one(q: float, codec) -> None:
    data = codec.compress(picture(40, 30), q=q, progressive=True)
    found = progressive(data)
    assert found.refinements == 0 and found.chunks == () and found.size == found.start == len(data)
    plain = codec.compress(picture(40, 30), q=q, quantizer="round")
    assert len(data) <= len(plain) + 3
    assert torch.equal(codec.decompress_tensor(data), codec.decompress_tensor(plain))
    for size in range(len(data)):
        with pytest.raises(FormatError):
            codec.decompress(data[:size])


# --- beginnings -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", FILES)
def test_every_beginning_is_refused_in_clear_words_or_is_a_picture(name: str, codec) -> None:
    data = made(name)
    whole, file = progressive(data), unpack(data)
    assert whole.refinements == 2
    complete = all_symbols(codec, codec.open(data))
    before, last = -1, None
    for size in range(len(data) + 1):
        if size < whole.start:
            with pytest.raises(TruncatedError if size > 2 else FormatError) as caught:
                codec.decompress(data[:size])
            text = str(caught.value)
            assert "\n" not in text and ("truncated" in text or size < 3)
            continue
        cut = codec.open(data[:size])
        assert cut.progressive is not None and cut.progressive.lost == ""
        if size in (whole.start, len(data)) or size % 7 == 0:
            image = codec.decompress(data[:size], sampler="mean", realism=0.0)
            assert image.size == (file.width, file.height) and image.mode == ("L" if name == "grey" else "RGB")
            assert bool(image.info.get("exif")) == (name == "metadata")
        if size == last:
            continue
        # Never a wrong symbol: what is refined is that of the whole file, or its coarser one's.
        done = 0
        for (y, code), (_, final) in zip(levels(codec, data[:size]), complete, strict=True):
            steps = (np.asarray(code) - file.code) // STEP
            expected = final
            for number in range(2):
                expected = np.where(steps > number, np.sign(expected) * ((np.abs(expected) + 1) // 3), expected)
            assert np.array_equal(y, expected)
            done += int((2 - steps).sum() if steps.ndim else (2 - steps) * y.size)
        assert done >= before
        before = done


@pytest.mark.parametrize("tile", [0, 64])
def test_a_longer_beginning_is_a_better_picture(tile: int) -> None:
    """With the weights of the package, on a picture like a photograph."""
    codec = gic.load(device="cpu")
    image = synthetic_image(3, size=(128, 128))
    pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1).float()
    data = codec.compress(image, q=1.1 * codec.about.q_min, progressive=True, tile=tile)
    whole = progressive(data)
    assert whole.refinements == 3
    sizes = sorted({*range(whole.start, len(data), len(data) // (25 if tile == 0 else 9)), *whole.ends})
    errors = [((codec.decompress_tensor(data[:n], realism=0.0, sampler="mean") - pixels) ** 2).mean() for n in sizes]
    psnr = 10 * np.log10(255**2 / np.array(errors))
    assert (np.diff(psnr) > -0.05).all() and psnr[-1] - psnr[0] > 6


def test_the_latent_comes_closer_with_every_chunk(codec, monkeypatch) -> None:
    small_chunks(monkeypatch)
    pixels = picture(200, 160, "noise")
    encoding = codec.encoding(pixels, progressive=True)
    data = encoding.at(codec.finest)
    errors = []
    for stop in (progressive(data).start, *progressive(data).stops):
        ((y, code),) = levels(codec, data[:stop])
        q = np.exp2(np.asarray(code) / 1024)
        tile = encoding.tiles[0]
        errors.append(float(((tile.y - tile.prior.mu - q * y) ** 2).mean()))
    assert len(errors) > 10
    assert all(later < 1.01 * earlier for earlier, later in pairwise(errors)) and errors[-1] < 0.1 * errors[0]


# --- damage ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tile", [0, 64])
def test_damage_keeps_the_picture_of_all_that_is_before_it(tile: int, codec, monkeypatch) -> None:
    small_chunks(monkeypatch)
    data = codec.compress(picture(140, 100, "noise"), q=Q, tile=tile, progressive=True)
    whole = progressive(data)
    assert len(whole.chunks) > 5
    for number, (begin, stop) in enumerate(pairwise((whole.start, *whole.stops))):
        at = (begin + stop) // 2
        damaged = data[:at] + bytes([data[at] ^ 0x10]) + data[at + 1 :]
        found = codec.open(damaged).progressive
        assert found.lost == (
            f"chunk {number + 1}, at byte {begin}, is damaged (its checksum does not match): "
            f"{len(data) - begin} bytes are lost"
        )
        if number % 4 == 0:
            settings = {"realism": 0.0, "sampler": "mean"}
            expected = codec.decompress_tensor(data[:begin], **settings)
            assert torch.equal(codec.decompress_tensor(damaged, **settings), expected)
    for at in range(whole.start):
        with pytest.raises(FormatError):
            codec.open(data[:at] + bytes([data[at] ^ 0x10]) + data[at + 1 :])


def test_a_chunk_that_is_damaged_though_its_check_holds_does_no_harm(codec, monkeypatch) -> None:
    small_chunks(monkeypatch)
    file = codec.open(codec.compress(picture(140, 100, "noise"), q=Q, progressive=True))
    assert file.progressive is not None
    chunks, rng = file.progressive.chunks, np.random.default_rng(0)
    whole = pack(file)
    begins = (file.progressive.start, *file.progressive.stops)
    expected = codec.decompress_tensor(whole, sampler="mean").shape
    for turn in range(60):
        number = turn % len(chunks)
        chunk = chunks[number]
        match turn % 3:
            case 0:
                code = rng.bytes(int(rng.integers(1, 60)))
                chunk = chunk._replace(data=code, size=len(code))
            case 1:
                chunk = chunk._replace(
                    elements=int(rng.choice([1, chunk.elements - 1, chunk.elements + 1, 10**4, 2**41]))
                )
            case _:
                chunk = chunk._replace(data=chunk.data[:-1] + bytes([chunk.data[-1] ^ 1]))
        own = replace(file.progressive, chunks=(*chunks[:number], chunk, *chunks[number + 1 :]))
        data = pack(replace(file, progressive=own))
        assert codec.open(data).progressive.lost == ""
        assert codec.decompress_tensor(data, sampler="mean").shape == expected
        # It is as if the file ended before it.
        for found, cut in zip(*(levels(codec, d) for d in (data, whole[: begins[number]])), strict=True):
            assert all(np.array_equal(*pair) for pair in zip(found, cut, strict=True))


def test_chunks_are_searched_once_and_not_for_each_tile(codec) -> None:
    walks = 0

    class Watched(tuple):
        """Chunks that count how often somebody goes through them."""

        def __iter__(self):
            nonlocal walks
            walks += 1
            return super().__iter__()

    file = codec.open(codec.compress(picture(190, 190), q=Q, tile=64, progressive=True))
    assert file.progressive is not None and len(file.payloads) == 9
    watched = replace(file, progressive=replace(file.progressive, chunks=Watched(file.progressive.chunks)))
    walks = 0
    places = tiles_of(file.width, file.height, file.tile)
    for i, place in enumerate(places):
        assert np.array_equal(decode_symbols(codec, watched, i, place).y, decode_symbols(codec, file, i, place).y)
    assert walks == 1


def test_levels_outside_the_range_of_the_model_are_refused(codec) -> None:
    file = unpack(made("plain"))
    for code in (codec.finest - 1, codec.coarsest - 2 * STEP + 1, codec.coarsest, -(2**15), 2**15 - 1):
        with pytest.raises(FormatError, match="level code"):
            codec.open(pack(replace(file, code=code)))
    many = replace(file, progressive=Progressive(3, file.progressive.chunks))
    with pytest.raises(FormatError, match="level code"):
        codec.open(pack(many))


# --- cutting --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["plain", "tiled"])
def test_a_cut_file_is_the_picture_of_its_first_bytes(name: str, codec) -> None:
    data = made(name)
    whole = progressive(data)
    for size in range(whole.start, len(data) + 2):
        cut = truncate(data, size)
        assert len(cut) <= size
        for (y, code), (y_cut, code_cut) in zip(*(levels(codec, d) for d in (data[:size], cut)), strict=True):
            assert np.array_equal(y, y_cut) and np.array_equal(code, code_cut)
        if size % 29 == 0:
            settings = {"realism": 0.0, "sampler": "mean"}
            assert torch.equal(*(codec.decompress_tensor(d, **settings) for d in (data[:size], cut)))
    assert truncate(data, len(data)) == truncate(data, 10**9) == data
    with pytest.raises(ConfigError, match=f"take {whole.start} bytes"):
        truncate(data, whole.start - 1)
    with pytest.raises(FormatError, match="only progressive"):
        truncate(codec.compress(picture(40, 30), q=1.0), 50)


# --- settings and sizes ---------------------------------------------------------------------------------------


def test_the_quantizer_of_a_progressive_file_is_round(codec, monkeypatch) -> None:
    with pytest.raises(ConfigError, match="round, not dither"):
        codec.compress(picture(40, 30), quantizer="dither", progressive=True)
    monkeypatch.setattr(codec.model, "quantizer", "dither")
    assert unpack(codec.compress(picture(40, 30), q=Q, progressive=True)).quantizer == "round"


@pytest.mark.parametrize(("size", "tile"), [((300, 210), 0), ((300, 210), 128), ((40, 30), 0)])
@pytest.mark.parametrize("kind", ["smooth", "noise", "edges"])
def test_max_bytes_is_never_exceeded(kind, size, tile, codec) -> None:
    encoding = codec.encoding(picture(*size, kind), tile=tile, progressive=True)
    smallest, largest = (len(encoding.compress(quality=q)) for q in (0, 100))
    for limit in [smallest, *np.linspace(smallest * 1.1, largest, 5).astype(int).tolist(), largest, 3 * largest]:
        found = len(encoding.compress(max_bytes=limit))
        assert 0.93 * min(limit, largest) - 20 <= found <= limit
    with pytest.raises(ConfigError, match="coarsest level"):
        encoding.compress(max_bytes=smallest // 2)


@pytest.mark.parametrize("kind", ["smooth", "noise", "edges"])
def test_a_target_in_bits_per_pixel_is_met(kind, codec) -> None:
    encoding = codec.encoding(picture(300, 210, kind), progressive=True)
    ends = [len(encoding.compress(quality=q)) * 8 / 63_000 for q in (0, 100)]
    for bpp in np.linspace(*ends, 6).tolist():
        assert abs(len(encoding.compress(bpp=bpp)) * 8 / 63_000 / bpp - 1) <= 0.02


@pytest.mark.parametrize(("size", "tile"), [((300, 200), 0), ((300, 200), 64), ((40, 30), 0)])
@pytest.mark.parametrize("kind", KINDS)
def test_files_are_as_large_as_estimated(kind, size, tile, codec, monkeypatch) -> None:
    small_chunks(monkeypatch, 1000)
    encoding = codec.encoding(picture(*size, kind), tile=tile, progressive=True)
    for code in range(codec.finest, codec.coarsest + 1, 409):
        real, estimate = len(encoding.at(code)), encoding.estimate(code)
        assert abs(real - estimate) <= 0.02 * real + 20


def test_quality_and_q_mean_what_they_mean_in_plain_files(codec) -> None:
    for target in ({"quality": 80}, {"q": 0.9}, {}):
        files = [codec.compress(picture(40, 30), **target, progressive=more) for more in (False, True)]
        assert unpack(files[0]).code == unpack(files[1]).code
        assert torch.equal(*(codec.decompress_tensor(data) for data in files))
