"""``Image.open`` and ``Image.save`` know .gic files; only Pillow's own names are used on them."""

from __future__ import annotations

import copy
import functools
import io
import pickle
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageCms, UnidentifiedImageError
from small import array, picture, small_codec

import gic.codec.pillow
from gic.bitstream.container import unpack
from gic.codec.image_codec import ImageCodec
from gic.errors import ConfigError, ImageError


@pytest.fixture(autouse=True)
def codec() -> Iterator[ImageCodec]:
    gic.codec.pillow.use(small_codec())
    yield small_codec()
    gic.codec.pillow.use(None)


@pytest.fixture
def path(tmp_path: Path, codec: ImageCodec) -> Path:
    file = tmp_path / "a.gic"
    file.write_bytes(codec.compress(picture(50, 40), q=1.0))
    return file


def test_opening_tells_the_size_and_decodes_nothing(path: Path, codec, monkeypatch) -> None:
    monkeypatch.setattr(codec, "decompress", lambda *a, **k: pytest.fail("decoded"))
    with Image.open(path) as image:
        assert (image.size, image.mode, image.format) == ((50, 40), "RGB", "GIC")
        assert image.get_format_mimetype() == "image/x-gic"
        image.verify()


def test_pixels_are_those_of_the_codec_and_decoded_once(path: Path, codec, monkeypatch) -> None:
    expected = np.asarray(codec.decompress(path.read_bytes()))
    calls = []
    original = codec.decompress
    monkeypatch.setattr(codec, "decompress", lambda data: calls.append(1) or original(data))
    with Image.open(path) as image:
        image.load()
        assert image.getpixel((0, 0)) == tuple(expected[0, 0])
        assert np.array_equal(np.asarray(image), expected)
        assert np.array_equal(np.asarray(image.copy()), expected)
    assert len(calls) == 1


def test_pillow_s_own_methods_work(path: Path, codec, tmp_path: Path) -> None:
    whole = codec.decompress(path.read_bytes())
    with Image.open(path) as image:
        assert np.array_equal(np.asarray(image.convert("L")), np.asarray(whole.convert("L")))
    with Image.open(path) as image:
        image.thumbnail((20, 20))
        assert image.size == (20, 16)
        assert len(np.unique(np.asarray(image))) > 10
    with Image.open(path) as image:
        assert image.crop((3, 4, 10, 12)).tobytes() == whole.crop((3, 4, 10, 12)).tobytes()
    with Image.open(path) as image:
        assert image.rotate(90, expand=True).size == (40, 50)
    with Image.open(path) as image:
        image.save(tmp_path / "b.png")
    assert np.array_equal(np.asarray(Image.open(tmp_path / "b.png")), np.asarray(whole))
    with Image.open(io.BytesIO(path.read_bytes())) as image:
        assert image.tobytes() == whole.tobytes()
    with path.open("rb") as file, Image.open(file) as image:
        assert image.resize((7, 7)).size == (7, 7)


def test_pixels_stay_after_the_file_is_closed(path: Path) -> None:
    with Image.open(path) as image:
        image.load()
    path.unlink()
    assert image.getpixel((49, 39)) is not None


def test_saving_takes_the_codec_s_options(tmp_path: Path, codec) -> None:
    image = Image.fromarray(array(picture(300, 200, "noise")))
    image.save(tmp_path / "a.gic", bpp=0.3)
    assert abs((tmp_path / "a.gic").stat().st_size * 8 / 60_000 / 0.3 - 1) < 0.02
    image.save(tmp_path / "b.gic", max_bytes=2000, quantizer="dither", seed=4)
    file = unpack((tmp_path / "b.gic").read_bytes())
    assert (tmp_path / "b.gic").stat().st_size <= 2000 and (file.quantizer, file.seed) == ("dither", 4)
    buffer = io.BytesIO()
    image.save(buffer, "GIC", q=2.0)
    assert buffer.getvalue() == codec.compress(image, q=2.0)
    with pytest.raises(ConfigError, match="name only one"):
        image.save(io.BytesIO(), "GIC", q=2.0, bpp=1.0)


def test_grey_and_transparent_pictures_are_saved_as_what_load_rgb_makes_of_them(codec) -> None:
    grey = Image.fromarray(array(picture(50, 40))).convert("L")
    clear = Image.fromarray(array(picture(50, 40))).convert("RGBA")
    clear.putalpha(grey)
    white = Image.new("RGB", clear.size, "white")
    white.paste(clear, mask=grey)
    for given, expected in ((grey, grey.convert("RGB")), (clear, white)):
        buffer = io.BytesIO()
        given.save(buffer, "GIC", q=1.0)
        assert buffer.getvalue() == codec.compress(expected, q=1.0)
        opened = Image.open(io.BytesIO(buffer.getvalue()))
        assert opened.mode == ("L" if given is grey else "RGB")
        opened.load()
        assert opened.tobytes() == codec.decompress(buffer.getvalue()).tobytes()


def test_metadata_is_known_before_decoding(codec) -> None:
    exif = Image.Exif()
    exif[0x0110] = "Camera"
    image = Image.fromarray(array(picture(50, 40)))
    buffer = io.BytesIO()
    image.save(buffer, "PNG", exif=exif.tobytes())
    data = codec.compress(buffer.getvalue(), q=1.0, keep_metadata=True)
    assert Image.open(io.BytesIO(data)).getexif()[0x0110] == "Camera"


def open_files() -> int:
    return len(list(Path("/dev/fd").iterdir()))


def test_files_are_not_left_open(path: Path) -> None:
    before = open_files()
    opened = [Image.open(path) for _ in range(60)]
    assert open_files() == before
    for image in opened:
        assert image.getpixel((0, 0)) == opened[0].getpixel((0, 0))
    assert open_files() == before
    with path.open("rb") as file:
        Image.open(file).load()
        assert not file.closed  # the caller's


def test_verify_seek_copies_and_closing_work_on_the_closed_file(path: Path, codec) -> None:
    whole = codec.decompress(path.read_bytes())
    image = Image.open(path)
    image.verify()
    image = Image.open(path)
    image.seek(0)
    with pytest.raises(EOFError):
        image.seek(1)
    for same in (copy.copy(image), copy.deepcopy(image), pickle.loads(pickle.dumps(image)), image.copy()):  # noqa: S301
        assert same.tobytes() == whole.tobytes()
    image = Image.open(path)
    image.close()
    with pytest.raises(ValueError, match="closed image"):
        image.getpixel((0, 0))


@functools.cache  # profiles have their time in them
def rgb_profile() -> bytes:
    """sRGB with red and green exchanged."""
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    return profile.replace(b"rXYZ", b"????").replace(b"gXYZ", b"rXYZ").replace(b"????", b"gXYZ")


def saved(image: Image.Image, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "GIC", q=1.0, **options)
    return buffer.getvalue()


def test_exif_and_profile_given_to_save_are_kept_and_tell_how_to_read_the_pixels(codec) -> None:
    image = Image.fromarray(array(picture(50, 40)))
    exif = Image.Exif()
    exif[0x0110], exif[0x0112] = "Camera", 6
    for block in (exif, exif.tobytes(), exif.tobytes()[6:]):
        back = Image.open(io.BytesIO(saved(image, exif=block)))
        assert dict(back.getexif()) == {0x0110: "Camera"} and back.size == (40, 50)
    data = saved(image, icc_profile=rgb_profile(), exif=exif)
    assert Image.open(io.BytesIO(data)).info["icc_profile"] == rgb_profile()
    assert np.asarray(codec.decompress(data)).tobytes() == codec.decompress(saved(image, exif=exif)).tobytes()


def test_what_a_picture_has_is_kept_only_if_asked_for(codec) -> None:
    exif, other = Image.Exif(), Image.Exif()
    exif[0x0110], exif[0x0112], other[0x0110] = "Camera", 6, "Other"
    buffer = io.BytesIO()
    Image.fromarray(array(picture(50, 40))).save(buffer, "PNG", exif=exif, icc_profile=rgb_profile())

    def facts(**options: object) -> tuple[bool, object, tuple[int, int]]:
        with Image.open(io.BytesIO(buffer.getvalue())) as image:
            file = Image.open(io.BytesIO(saved(image, **options)))
        return "icc_profile" in file.info, file.getexif().get(0x0110), file.size

    assert facts() == (False, None, (40, 50))
    assert facts(keep_metadata=True) == (True, "Camera", (40, 50))
    assert facts(exif=other) == (False, "Other", (50, 40))  # which has no orientation
    assert facts(exif=other, keep_metadata=True) == (True, "Other", (50, 40))
    assert facts(exif=None, icc_profile=None, keep_metadata=True) == (False, None, (40, 50))
    assert facts(icc_profile=rgb_profile()) == (True, None, (40, 50))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"exif": b"Exif\0\0nonsense"}, "EXIF block .*damaged"),
        ({"icc_profile": b"nonsense"}, "ICC profile .*damaged"),
        ({"icc_profile": ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")).tobytes()}, "ICC profile for Lab"),
    ],
)
def test_what_cannot_be_kept_is_refused(options: dict[str, bytes], said: str) -> None:
    with pytest.raises(ImageError, match=said):
        saved(Image.fromarray(array(picture(50, 40))), **options)


def test_options_of_other_formats_are_ignored(codec) -> None:
    image = Image.fromarray(array(picture(50, 40)))
    assert saved(image, optimize=True, dpi=(72, 72), subsampling="4:4:4") == saved(image)


@pytest.mark.parametrize("damage", ["cut", "flip", "longer", "version"])
def test_a_damaged_file_is_pillow_s_unidentified_image(damage: str, path: Path) -> None:
    data = path.read_bytes()
    path.write_bytes(
        {
            "cut": data[:-3],
            "flip": data[:30] + bytes([data[30] ^ 1]) + data[31:],
            "longer": data + b"1",
            "version": data[:3] + b"\2" + data[4:],
        }[damage]
    )
    with pytest.raises(UnidentifiedImageError):
        Image.open(path)


def test_other_formats_are_left_alone() -> None:
    buffer = io.BytesIO()
    Image.new("RGB", (4, 4)).save(buffer, "PNG")
    assert Image.open(io.BytesIO(buffer.getvalue())).format == "PNG"
    assert Image.registered_extensions()[".gic"] == "GIC"


def test_without_weights_saving_says_how_to_get_some(monkeypatch) -> None:
    from gic.codec import zoo as loading

    gic.codec.pillow.use(None)
    monkeypatch.delenv(loading.CHECKPOINT_VARIABLE, raising=False)
    monkeypatch.setattr(loading, "PACKAGED", Path("nowhere"))
    with pytest.raises(ConfigError, match="no weights of its own"):
        Image.new("RGB", (8, 8)).save(io.BytesIO(), "GIC")
