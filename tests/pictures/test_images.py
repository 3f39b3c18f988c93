from __future__ import annotations

import contextlib
import io
import struct
import warnings
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from picture_files import chunk, encoded, linear_grey_profile, made_profile, png
from PIL import Image, ImageCms

from gic.errors import DataError, ImageError
from gic.pictures.find import find_images
from gic.pictures.load import load_rgb
from gic.pictures.tensors import as_float, to_image, to_tensor


def colours(height: int = 6, width: int = 8) -> Image.Image:
    """A picture whose pixels all differ."""
    rng = np.random.default_rng(0)
    return Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8))


def pixels(image: Image.Image) -> np.ndarray:
    return np.asarray(image).astype(int)


def srgb_profile() -> bytes:
    return ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


def swapped_profile() -> bytes:
    """sRGB with red and green exchanged: converting from it must exchange the two channels."""
    return srgb_profile().replace(b"rXYZ", b"????").replace(b"gXYZ", b"rXYZ").replace(b"????", b"gXYZ")


def cmyk_profile() -> bytes:
    """CMYK of which only K matters: lightness falls with K, the other inks do nothing."""
    identity = bytes(range(256))
    grid = b"".join(bytes([0 if k else 255, 128, 128]) for _ in range(8) for k in (0, 1))
    matrix = struct.pack(">9i", 65536, 0, 0, 0, 65536, 0, 0, 0, 65536)
    lut = b"mft1" + bytes(4) + bytes([4, 3, 2, 0]) + matrix + identity * 4 + grid + identity * 3
    return made_profile(b"prtr", b"CMYK", b"Lab ", {b"A2B0": lut, b"A2B1": lut})


def test_plain_rgb_is_exact_and_needs_no_note() -> None:
    image = colours()
    for source in (encoded(image, "PNG"), io.BytesIO(encoded(image, "PNG")), image):
        loaded = load_rgb(source)
        assert loaded.notes == ()
        assert loaded.image.mode == "RGB"
        np.testing.assert_array_equal(pixels(loaded.image), pixels(image))


def test_path_and_text_path_read_the_same(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    colours().save(path)
    assert load_rgb(path).format == "PNG"
    np.testing.assert_array_equal(pixels(load_rgb(str(path)).image), pixels(load_rgb(path).image))


def test_result_carries_no_metadata_and_source_is_untouched() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    source = Image.open(
        io.BytesIO(encoded(colours(), "JPEG", exif=exif, icc_profile=swapped_profile(), comment=b"hello"))
    )
    loaded = load_rgb(source)
    assert loaded.image.info == {}
    assert len(loaded.image.getexif()) == 0
    assert source.size == (8, 6)
    assert loaded.image.size == (6, 8)


# The stored picture has A at the top left and B to the right of it; where must they be shown?
@pytest.mark.parametrize(
    ("orientation", "a", "b", "size"),
    [
        (1, (0, 0), (1, 0), (3, 2)),
        (2, (2, 0), (1, 0), (3, 2)),
        (3, (2, 1), (1, 1), (3, 2)),
        (4, (0, 1), (1, 1), (3, 2)),
        (5, (0, 0), (0, 1), (2, 3)),
        (6, (1, 0), (1, 1), (2, 3)),
        (7, (1, 2), (1, 1), (2, 3)),
        (8, (0, 2), (0, 1), (2, 3)),
    ],
)
@pytest.mark.parametrize("file_format", ["PNG", "TIFF", "WEBP"])
def test_exif_orientation(
    orientation: int, a: tuple[int, int], b: tuple[int, int], size: tuple[int, int], file_format: str
) -> None:
    image = Image.new("RGB", (3, 2))
    image.putpixel((0, 0), (255, 0, 0))
    image.putpixel((1, 0), (0, 0, 255))
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"lossless": True} if file_format == "WEBP" else {}
    loaded = load_rgb(encoded(image, file_format, exif=exif, **options))
    assert loaded.image.size == size
    assert loaded.image.getpixel(a) == (255, 0, 0)
    assert loaded.image.getpixel(b) == (0, 0, 255)
    assert ("EXIF orientation applied" in loaded.notes) == (orientation != 1)


@pytest.mark.filterwarnings("ignore:Corrupt EXIF:UserWarning")
@pytest.mark.parametrize("exif", [b"Exif\0\0garbage", b"Exif\0\0II*\0\xff\xff\xff\xff", b"Exif\0\0"])
def test_damaged_exif_does_not_matter(exif: bytes) -> None:
    assert load_rgb(encoded(colours(), "JPEG", exif=exif)).image.size == (8, 6)


def test_srgb_profile_changes_nothing_and_is_not_mentioned() -> None:
    image = colours()
    loaded = load_rgb(encoded(image, "PNG", icc_profile=srgb_profile()))
    assert loaded.notes == ()
    np.testing.assert_array_equal(pixels(loaded.image), pixels(image))


def test_other_rgb_profile_is_converted() -> None:
    image = colours()
    loaded = load_rgb(encoded(image, "PNG", icc_profile=swapped_profile()))
    assert loaded.notes == ("ICC profile 'sRGB built-in' converted to sRGB",)
    assert np.abs(pixels(loaded.image) - pixels(image)[..., [1, 0, 2]]).max() <= 2


def test_grey_profile_is_converted() -> None:
    loaded = load_rgb(encoded(Image.new("L", (2, 2), 55), "PNG", icc_profile=linear_grey_profile()))
    assert any("'made for a test' converted" in note for note in loaded.notes)
    # linear light 55/255 is level 128 in sRGB
    np.testing.assert_allclose(pixels(loaded.image), 128, atol=2)


def test_cmyk_profile_is_used() -> None:
    image = Image.new("CMYK", (2, 1))
    image.putpixel((0, 0), (255, 255, 0, 0))  # without the profile this would be blue
    image.putpixel((1, 0), (0, 0, 0, 255))
    loaded = load_rgb(encoded(image, "TIFF", icc_profile=cmyk_profile()))
    assert any("'made for a test' converted" in note for note in loaded.notes)
    assert min(loaded.image.getpixel((0, 0))) > 240
    assert max(loaded.image.getpixel((1, 0))) < 15


def test_profile_and_transparency_together() -> None:
    image = Image.new("RGBA", (2, 1), (200, 0, 0, 255))
    image.putpixel((1, 0), (200, 0, 0, 0))
    loaded = load_rgb(encoded(image, "PNG", icc_profile=swapped_profile()))
    np.testing.assert_allclose(loaded.image.getpixel((0, 0)), (0, 200, 0), atol=2)
    assert loaded.image.getpixel((1, 0)) == (255, 255, 255)


@pytest.mark.parametrize("profile", [b"not a profile", b"\0" * 200, srgb_profile()[:200]])
def test_damaged_profile_is_ignored_and_said(profile: bytes) -> None:
    image = colours()
    loaded = load_rgb(encoded(image, "PNG", icc_profile=profile))
    assert loaded.notes == ("damaged ICC profile ignored",)
    np.testing.assert_array_equal(pixels(loaded.image), pixels(image))


def test_profile_of_another_colour_space_is_ignored_and_said() -> None:
    loaded = load_rgb(encoded(colours(), "PNG", icc_profile=linear_grey_profile()))
    assert loaded.notes == ("ICC profile for GRAY ignored, the image is RGB",)


def sixteen_bit() -> np.ndarray:
    return np.array([[0, 128, 129, 257], [32768, 65278, 65407, 65535]], np.uint16)


@pytest.mark.parametrize(
    ("dtype", "file_format"),
    [("<u2", "PNG"), ("<u2", "TIFF"), (">u2", "TIFF"), ("<u2", "PPM"), ("<u2", "JPEG2000")],
)
def test_16_bit_grey_is_scaled_by_its_range(dtype: str, file_format: str) -> None:
    options = {"irreversible": False} if file_format == "JPEG2000" else {}
    loaded = load_rgb(encoded(Image.fromarray(sixteen_bit().astype(dtype)), file_format, **options))
    expected = [[0, 0, 1, 1], [128, 254, 255, 255]]  # round(v / 257)
    np.testing.assert_array_equal(pixels(loaded.image)[..., 0], expected)
    assert "16 bit reduced to 8" in loaded.notes
    assert "grey expanded to RGB" in loaded.notes


def test_16_bit_white_is_zero_is_inverted() -> None:
    data = encoded(Image.fromarray(sixteen_bit()), "TIFF", tiffinfo={262: 0})
    np.testing.assert_array_equal(pixels(load_rgb(data).image)[..., 0], [[255, 255, 254, 254], [127, 1, 0, 0]])


def test_16_bit_rgb_png_is_reduced_and_said() -> None:
    loaded = load_rgb(png(np.array([[[65535, 0, 32768], [0, 65535, 256]]]), 16, 2))
    assert loaded.notes == ("16 bit reduced to 8",)
    np.testing.assert_allclose(pixels(loaded.image)[0], [[255, 0, 128], [0, 255, 1]], atol=1)


def test_16_bit_grey_png_with_a_transparent_level() -> None:
    loaded = load_rgb(png(np.array([[[1000], [2570]]]), 16, 0, chunk(b"tRNS", struct.pack(">H", 1000))))
    assert pixels(loaded.image)[0, :, 0].tolist() == [255, 10]
    assert "alpha blended onto white" in loaded.notes


def test_floating_point_is_refused() -> None:
    image = Image.fromarray(np.zeros((2, 2), np.float32))
    with pytest.raises(ImageError, match=r"depth\.tif holds floating point"):
        load_rgb(encoded(image, "TIFF"), name="depth.tif")


def test_grey() -> None:
    loaded = load_rgb(encoded(Image.new("L", (2, 2), 77), "PNG"))
    assert loaded.image.getpixel((1, 1)) == (77, 77, 77)
    assert loaded.notes == ("grey expanded to RGB",)


def test_one_bit() -> None:
    image = Image.new("1", (2, 1))
    image.putpixel((1, 0), 1)
    loaded = load_rgb(encoded(image, "PNG"))
    assert pixels(loaded.image)[0, :, 0].tolist() == [0, 255]
    assert loaded.notes == ("1 bit expanded to RGB",)


def test_alpha_is_blended_onto_white() -> None:
    image = Image.new("RGBA", (3, 1), (100, 0, 200, 255))
    image.putpixel((1, 0), (100, 0, 200, 0))
    image.putpixel((2, 0), (100, 0, 200, 51))
    loaded = load_rgb(encoded(image, "PNG"))
    np.testing.assert_allclose(pixels(loaded.image)[0], [(100, 0, 200), (255, 255, 255), (224, 204, 244)], atol=1)
    assert loaded.notes == ("alpha blended onto white",)


def test_grey_with_alpha() -> None:
    image = Image.new("LA", (2, 1), (50, 255))
    image.putpixel((1, 0), (50, 0))
    loaded = load_rgb(encoded(image, "PNG"))
    assert pixels(loaded.image)[0, :, 1].tolist() == [50, 255]
    assert set(loaded.notes) == {"alpha blended onto white", "grey expanded to RGB"}


def test_opaque_alpha_is_dropped_and_said() -> None:
    assert load_rgb(encoded(colours().convert("RGBA"), "PNG")).notes == ("opaque alpha dropped",)


def test_palette_with_and_without_transparency() -> None:
    image = Image.new("P", (2, 1))
    image.putpalette([10, 20, 30, 200, 100, 0])
    image.putpixel((1, 0), 1)
    assert pixels(load_rgb(encoded(image, "PNG")).image)[0].tolist() == [[10, 20, 30], [200, 100, 0]]
    loaded = load_rgb(encoded(image, "PNG", transparency=0))
    assert pixels(loaded.image)[0].tolist() == [[255, 255, 255], [200, 100, 0]]
    assert loaded.notes == ("alpha blended onto white",)


@pytest.mark.parametrize("file_format", ["JPEG", "TIFF"])
def test_cmyk_without_profile(file_format: str) -> None:
    loaded = load_rgb(encoded(Image.new("CMYK", (8, 8), (0, 255, 255, 0)), file_format))
    np.testing.assert_allclose(loaded.image.getpixel((3, 3)), (255, 0, 0), atol=4)
    assert loaded.notes == ("CMYK converted to RGB without a profile",)


def test_lab_is_converted() -> None:
    loaded = load_rgb(encoded(Image.new("LAB", (2, 2), (255, 128, 128)), "TIFF"))
    np.testing.assert_allclose(loaded.image.getpixel((0, 0)), (255, 255, 255), atol=3)
    assert loaded.notes == ("CIELAB converted to RGB",)


@pytest.mark.parametrize("mode", ["YCbCr", "HSV", "La", "RGBa", "RGBX", "PA"])
def test_every_other_mode_of_pillow_becomes_rgb(mode: str) -> None:
    image = {"La": "LA", "RGBa": "RGBA", "PA": "P"}.get(mode)
    source = colours().convert(image).convert(mode) if image else colours().convert(mode)
    loaded = load_rgb(source)
    assert (loaded.image.mode, loaded.image.size) == ("RGB", (8, 6))


@pytest.mark.parametrize("file_format", ["GIF", "WEBP", "PNG", "TIFF"])
def test_first_of_several_frames(file_format: str) -> None:
    first, second = Image.new("RGB", (4, 4), (255, 0, 0)), Image.new("RGB", (4, 4), (0, 0, 255))
    options = {"lossless": True} if file_format == "WEBP" else {}
    loaded = load_rgb(encoded(first, file_format, save_all=True, append_images=[second, first], **options))
    assert loaded.image.getpixel((2, 2)) == (255, 0, 0)
    assert "first of 3 frames taken" in loaded.notes


@pytest.mark.parametrize("file_format", ["PNG", "JPEG", "WEBP", "TIFF", "AVIF", "JPEG2000", "BMP", "GIF"])
@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_truncated_files_name_themselves(file_format: str, share: float, tmp_path: Path) -> None:
    data = encoded(colours(64, 64), file_format)
    path = tmp_path / "cut.img"
    path.write_bytes(data[: int(len(data) * share)])
    with pytest.raises(ImageError, match=r"cut\.img"):
        load_rgb(path)


@pytest.mark.parametrize("content", [b"", b"this is not a picture\n" * 20, b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff"])
def test_what_is_no_image_is_one_error_that_names_it(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "holiday.png"
    path.write_bytes(content)
    with pytest.raises(ImageError, match=r"holiday\.png"):
        load_rgb(path)


@pytest.mark.filterwarnings("ignore::UserWarning:PIL")
def test_random_damage_is_an_image_error_or_a_picture() -> None:
    rng = np.random.default_rng(0)
    for file_format in ("PNG", "JPEG", "TIFF", "GIF", "WEBP"):
        data = encoded(colours(16, 16), file_format)
        for _ in range(60):
            damaged = bytearray(data)
            for place in rng.integers(0, len(data), 4):
                damaged[place] = rng.integers(256)
            with contextlib.suppress(ImageError):
                assert load_rgb(bytes(damaged), max_pixels=10_000).image.mode == "RGB"


def test_missing_file_and_folder(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match=r"no file .*nothing\.png"):
        load_rgb(tmp_path / "nothing.png")
    with pytest.raises(ImageError, match="cannot read"):
        load_rgb(tmp_path)


def test_postscript_is_not_executed() -> None:
    with pytest.raises(ImageError, match="not an image"):
        load_rgb(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\nshowpage\n%%EOF\n")


def test_declared_size_is_checked_before_decoding_and_without_warning() -> None:
    size = struct.pack(">2I5B", 60_000, 60_000, 8, 2, 0, 0, 0)  # 3.6 thousand million pixels, in 70 bytes
    huge = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", size) + chunk(b"IDAT", zlib.compress(b"\0")) + chunk(b"IEND", b"")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(ImageError, match="60000 x 60000 pixels; the limit is 268435456"):
            load_rgb(huge)
        with pytest.raises(ImageError, match="the limit is 47 pixels"):
            load_rgb(encoded(colours(), "PNG"), max_pixels=47)
        assert load_rgb(encoded(colours(), "PNG"), max_pixels=48).image.size == (8, 6)


def test_limit_of_pillow_is_left_as_it_was() -> None:
    before = Image.MAX_IMAGE_PIXELS
    load_rgb(encoded(colours(), "PNG"))
    with pytest.raises(ImageError):
        load_rgb(b"nothing")
    assert before == Image.MAX_IMAGE_PIXELS


def test_large_images_within_the_limit_do_not_warn() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        image = Image.new("1", (16_000, 6_000))  # above Pillow's own limit of 89 million pixels
        assert load_rgb(encoded(image, "PNG")).image.size == (16_000, 6_000)


def test_tensor_round_trip_and_layout() -> None:
    image = colours()
    tensor = to_tensor(image)
    assert (tensor.shape, tensor.dtype) == ((3, 6, 8), torch.uint8)
    assert tensor[:, 4, 5].tolist() == list(image.getpixel((5, 4)))
    np.testing.assert_array_equal(pixels(to_image(tensor)), pixels(image))
    np.testing.assert_array_equal(pixels(to_image(as_float(tensor))), pixels(image))


def test_as_float_spans_0_to_1() -> None:
    values = as_float(torch.tensor([0, 51, 255], dtype=torch.uint8))
    torch.testing.assert_close(values, torch.tensor([0.0, 0.2, 1.0]))
    with pytest.raises(ImageError, match="uint8"):
        as_float(torch.zeros(3))


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64, torch.bfloat16])
def test_float_tensors_are_clamped_and_rounded(dtype: torch.dtype) -> None:
    tensor = torch.tensor([-1.0, 0.0, 0.5, 2.0, float("inf")], dtype=dtype).expand(3, 1, 5)
    assert pixels(to_image(tensor))[0, :, 0].tolist() == [0, 0, 128, 255, 255]


@pytest.mark.parametrize(
    "tensor",
    [
        torch.zeros(1, 3, 4, 4),
        torch.zeros(4, 4, 3),
        torch.zeros(3, 0, 4),
        torch.zeros(3, 4, 4, dtype=torch.int64),
        torch.full((3, 2, 2), float("nan")),
    ],
)
def test_what_is_no_picture_is_refused(tensor: torch.Tensor) -> None:
    with pytest.raises(ImageError):
        to_image(tensor)


def test_to_tensor_refuses_other_modes() -> None:
    with pytest.raises(ImageError, match="not L"):
        to_tensor(Image.new("L", (2, 2)))


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    for name in ("b.png", "a.JPG", "deep/er/c.webp", "notes.txt", ".hidden.png", ".cache/d.png", "._a.JPG"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"")
    (tmp_path / "bare").mkdir()
    return tmp_path


def test_folders_are_searched_and_sorted(tree: Path) -> None:
    found = [path.relative_to(tree).as_posix() for path in find_images([tree])]
    assert found == ["a.JPG", "b.png", "deep/er/c.webp"]


def test_each_file_is_listed_once(tree: Path) -> None:
    assert len(find_images([tree, tree / "b.png", tree / "deep" / ".." / "b.png", str(tree / "*.png")])) == 3


def test_patterns(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert [path.name for path in find_images([tree / "**" / "*.webp"])] == ["c.webp"]
    assert [path.name for path in find_images([f"{tree}/d*"])] == ["c.webp"]
    monkeypatch.chdir(tree)
    assert find_images(["*.png"]) == [Path("b.png")]


def test_a_named_file_is_taken_whatever_its_ending(tree: Path) -> None:
    assert find_images([tree / "notes.txt"]) == [tree / "notes.txt"]


@pytest.mark.parametrize(
    ("name", "message"), [("gone", "no file or folder"), ("bare", "no image in"), ("*.bmp", "no image matches")]
)
def test_what_is_not_there_is_named(tree: Path, name: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        find_images([tree, tree / name])


def test_real_photographs_load_unchanged(shared: Path) -> None:
    path = shared / "data" / "kodak" / "kodim01.png"
    loaded = load_rgb(path)
    assert loaded.notes == ()
    assert loaded.image.size == (768, 512)
