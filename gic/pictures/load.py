"""Reading any picture as 8 bit sRGB.

Everything that gic codes, trains on or measures passes through :func:`load_rgb`, so that an orientation flag, a colour
profile or 16 bit are handled once, in one way, and never silently: what was changed is told in
:attr:`LoadedImage.notes`.
"""

from __future__ import annotations

import io
import threading
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np
from PIL import Image, ImageCms, UnidentifiedImageError

from gic.errors import ImageError

# Formats that may be opened. EPS is left out on purpose (Pillow runs Ghostscript on it); HEIF and JXL
# work once their Pillow plugins are registered.
_FORMATS = {"PNG", "JPEG", "MPO", "WEBP", "AVIF", "HEIF", "JXL", "GIF", "BMP", "TIFF", "PPM", "JPEG2000"}

_ORIENTATION = 0x0112  # EXIF and TIFF tag
_BITS_PER_SAMPLE = 258  # TIFF tag
_PHOTOMETRIC = 262  # TIFF tag; 0 is "white is zero"

_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}

_PROFILE_SPACE = {"RGB": "RGB", "L": "GRAY", "CMYK": "CMYK", "LAB": "Lab"}

_open_lock = threading.Lock()


class LoadedImage(NamedTuple):
    """A picture ready for coding, and what had to be done to it.

    Attributes:
        image: 8 bit sRGB, Pillow mode "RGB", without metadata.
        notes: What was changed on the way, in order, for example ``"EXIF orientation applied"``; empty if
            nothing was.
        format: Pillow's name of the file format, for example ``"JPEG"``; None for a picture from memory.
        exif: EXIF block with its orientation reset, empty if there is none.
        icc: ICC profile of the pixels where it was asked to be kept, else empty: sRGB.
    """

    image: Image.Image
    notes: tuple[str, ...]
    format: str | None
    exif: bytes = b""
    icc: bytes = b""


def load_rgb(
    source: bytes | str | Path | BinaryIO | Image.Image,
    *,
    name: str | None = None,
    max_pixels: int = 2**28,
    keep_profile: bool = False,
) -> LoadedImage:
    """Read a picture of any size and mode as 8 bit sRGB.

    Orientation flags are applied; embedded ICC profiles are converted to sRGB (relative colorimetric, black
    point compensated; nothing is done if the profile already is sRGB); 16 bit are scaled to 8; grey,
    1 bit, palette, CMYK, YCbCr and CIELAB become RGB; transparency is blended onto white; of several frames
    the first is taken.

    Args:
        source: A path, the bytes of a file, an open binary file, or a Pillow image.
        name: What to call the picture in errors; by default its path.
        max_pixels: Largest width times height; checked from the header, before anything is decoded.
        keep_profile: Leave the pixels of a picture with an RGB profile as they are and hand the profile over.

    Returns:
        The picture, notes on what was changed, and the format of the file.

    Raises:
        ImageError: If there is no such file, if it is not an image or is damaged, if it holds more than
            ``max_pixels``, or if its values have no fixed range (floating point, 32 bit integers).

    Example:
        >>> load_rgb(Image.new("L", (4, 2), 255)).notes
        ('grey expanded to RGB',)
    """
    label = name or _label(source)
    try:
        if isinstance(source, Image.Image):
            return _normalise(source, label, max_pixels, keep_profile)
        if isinstance(source, bytes):
            return _normalise(_open(io.BytesIO(source)), label, max_pixels, keep_profile)
        if isinstance(source, (str, Path)):
            with Path(source).open("rb") as file:
                return _normalise(_open(file), label, max_pixels, keep_profile)
        return _normalise(_open(source), label, max_pixels, keep_profile)
    except ImageError:
        raise
    except FileNotFoundError as error:
        raise ImageError(f"there is no file {label}") from error
    except (IsADirectoryError, PermissionError) as error:
        raise ImageError(f"cannot read {label}: {error.strerror}") from error
    except UnidentifiedImageError as error:
        raise ImageError(f"{label} is not an image, or of a format that Pillow cannot read") from error
    except Exception as error:  # a damaged file makes Pillow's decoders raise nearly anything
        raise ImageError(f"{label} is damaged or cut short: {type(error).__name__}: {error}") from error


def _label(source: bytes | str | Path | BinaryIO | Image.Image) -> str:
    """What to call a source in errors."""
    if isinstance(source, (str, Path)):
        return str(source)
    if isinstance(source, bytes):
        return f"the file of {len(source)} bytes"
    name = getattr(source, "filename", None) or getattr(source, "name", None)
    return name if isinstance(name, str) and name else "the image"


def _open(file: BinaryIO) -> Image.Image:
    """Open an image without decoding it and without Pillow's own limit of pixels."""
    Image.init()
    formats = sorted(_FORMATS & Image.OPEN.keys())
    with _open_lock:
        limit = Image.MAX_IMAGE_PIXELS
        Image.MAX_IMAGE_PIXELS = None  # load_rgb has its own limit, which the caller can set
        try:
            return Image.open(file, formats=formats)
        finally:
            Image.MAX_IMAGE_PIXELS = limit


def _normalise(image: Image.Image, label: str, max_pixels: int, keep_profile: bool) -> LoadedImage:
    """Decode an opened image and bring it to 8 bit sRGB; the body of :func:`load_rgb`."""
    width, height = image.size
    if width * height > max_pixels:
        raise ImageError(f"{label} declares {width} x {height} pixels; the limit is {max_pixels} pixels")
    if width * height == 0:
        raise ImageError(f"{label} has no pixels ({width} x {height})")
    notes = []
    file_format = image.format
    frames = 1 if file_format == "MPO" else getattr(image, "n_frames", 1)  # MPO: previews and gain maps
    if frames > 1:
        notes.append(f"first of {frames} frames taken")
    reduced = any(";16" in str(tile) for tile in getattr(image, "tile", []))  # Pillow itself drops to 8 bit
    profile = image.info.get("icc_profile")

    exif = _upright_exif(image)
    turn = _orientation(image)
    image.load()
    remaining = _orientation(image)  # TIFF is turned by loading it; PNG may state it after its pixels
    if remaining in _TURNS:
        image = image.transpose(_TURNS[remaining])
    if turn in _TURNS or remaining in _TURNS:
        notes.append("EXIF orientation applied")

    image, alpha = _split_alpha(image, notes)
    if image.mode == "F":
        raise ImageError(f"{label} holds floating point values, whose range is unknown: save it with 8 bit")
    if image.mode.startswith("I"):
        image = _reduce_to_8_bit(image, label)
        reduced = True
    if reduced:
        notes.append("16 bit reduced to 8")
    icc = profile if keep_profile and profile and _is_rgb_profile(profile) and image.mode == "RGB" else b""
    if not icc:
        image = _to_srgb(image, profile, notes)

    clean = Image.new("RGB", image.size, "white")  # a new image carries no metadata along
    clean.paste(image, mask=alpha)
    return LoadedImage(clean, tuple(notes), file_format, exif, icc)


def _upright_exif(image: Image.Image) -> bytes:
    """EXIF block without its orientation; empty if there is none or it is damaged."""
    try:
        if not len(image.getexif()):
            return b""
        exif = Image.Exif()  # a copy: the image still needs its orientation
        exif.load(image.getexif().tobytes())
        exif.pop(_ORIENTATION, None)
        return exif.tobytes() if len(exif) else b""
    except Exception:  # EXIF data in the wild is often damaged, in many ways; the pixels are not
        return b""


def _is_rgb_profile(data: bytes) -> bool:
    try:
        profile = ImageCms.ImageCmsProfile(io.BytesIO(data))
        return (profile.profile.xcolor_space or "").strip() == "RGB"
    except (ImageCms.PyCMSError, OSError, TypeError, ValueError):
        return False


def _orientation(image: Image.Image) -> int:
    """EXIF orientation, 1 to 8; 1 (upright) if there is none or the EXIF data is damaged."""
    try:
        value = image.getexif().get(_ORIENTATION, 1)
    except Exception:  # EXIF data in the wild is often damaged, in many ways; the pixels are not
        return 1
    return value if isinstance(value, int) and 1 <= value <= 8 else 1


def _split_alpha(image: Image.Image, notes: list[str]) -> tuple[Image.Image, Image.Image | None]:
    """Take transparency off an image; palettes are expanded on the way.

    Returns:
        The image without transparency, and alpha of mode "L", or None if the image is opaque.
    """
    if image.mode.startswith("I") and "transparency" in image.info:
        values = np.asarray(image)
        alpha = Image.fromarray(np.where(values == image.info["transparency"], 0, 255).astype(np.uint8))
    elif image.has_transparency_data:
        grey = image.mode in ("1", "L", "LA", "La")
        with_alpha = (image.convert("LA") if image.mode == "La" else image).convert("RGBA")
        alpha = with_alpha.getchannel("A")
        image = with_alpha.convert("RGB")
        if grey:
            image = image.getchannel("R")
    else:
        if image.mode in ("P", "PA"):
            image = image.convert("RGB")
        return image, None
    if alpha.getextrema() == (255, 255):
        notes.append("opaque alpha dropped")
        return image, None
    notes.append("alpha blended onto white")
    return image, alpha


def _reduce_to_8_bit(image: Image.Image, label: str) -> Image.Image:
    """Scale 16 bit (or 12 bit) grey to 8 bit by its full range, to mode "L"."""
    values = np.asarray(image).astype(np.int64)
    tags = getattr(image, "tag_v2", {})
    top = 4095 if tags.get(_BITS_PER_SAMPLE) == (12,) else 65535
    low, high = int(values.min()), int(values.max())
    if low < 0 or high > top:
        raise ImageError(
            f"{label} holds integers from {low} to {high}, of unknown full range: save it with 8 or 16 bit"
        )
    if tags.get(_PHOTOMETRIC) == 0:  # Pillow inverts "white is zero" for 8 bit only
        values = top - values
    return Image.fromarray(np.rint(values * (255 / top)).astype(np.uint8))


def _to_srgb(image: Image.Image, profile: bytes | None, notes: list[str]) -> Image.Image:
    """Convert opaque 8 bit of any mode to sRGB, by the ICC profile if it has a usable one."""
    if image.mode == "1":
        notes.append("1 bit expanded to RGB")
        image = image.convert("L")
    elif image.mode == "L":
        notes.append("grey expanded to RGB")
    elif image.mode not in _PROFILE_SPACE:  # YCbCr, HSV, RGBX
        notes.append(f"{image.mode} converted to RGB")
        image = image.convert("RGB")

    if profile:
        converted = _by_profile(image, profile, notes)
        if converted is not None:
            return converted
    if image.mode == "LAB":
        notes.append("CIELAB converted to RGB")
        lab = ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB"))
        return _apply_profile(image, lab)
    if image.mode == "CMYK":
        notes.append("CMYK converted to RGB without a profile")
    return image.convert("RGB")


def _by_profile(image: Image.Image, data: bytes, notes: list[str]) -> Image.Image | None:
    """Convert by an embedded ICC profile; None if the profile already is sRGB or cannot be used."""
    try:
        profile = ImageCms.ImageCmsProfile(io.BytesIO(data))
        space = (profile.profile.xcolor_space or "").strip()
        if space != _PROFILE_SPACE[image.mode]:
            notes.append(f"ICC profile for {space} ignored, the image is {image.mode}")
            return None
        if image.mode in ("RGB", "L") and _changes_little(profile, image.mode):
            return None
        converted = _apply_profile(image, profile)
    except (ImageCms.PyCMSError, OSError, TypeError, ValueError):
        notes.append("damaged ICC profile ignored")
        return None
    text = profile.profile.profile_description or "without a name"
    title = "".join(c for c in text if c.isprintable()).strip()[:60]
    notes.append(f"ICC profile '{title}' converted to sRGB")
    return converted


def _changes_little(profile: ImageCms.ImageCmsProfile, mode: str) -> bool:
    """Whether a profile is sRGB in effect: it moves no colour of a coarse grid by more than two levels."""
    levels = np.linspace(0, 255, 18).astype(np.uint8)
    colours = np.stack(np.meshgrid(levels, levels, levels), axis=-1).reshape(1, -1, 3)
    before = Image.fromarray(levels[None] if mode == "L" else colours)
    after = np.asarray(_apply_profile(before, profile)).astype(int)
    return bool(np.abs(after - np.asarray(before.convert("RGB"))).max() <= 2)


def _apply_profile(image: Image.Image, profile: ImageCms.ImageCmsProfile) -> Image.Image:
    """Convert from a profile to sRGB, relative colorimetric with black point compensation."""
    converted = ImageCms.profileToProfile(
        image,
        profile,
        ImageCms.createProfile("sRGB"),
        renderingIntent=ImageCms.Intent.RELATIVE_COLORIMETRIC,
        outputMode="RGB",
        flags=ImageCms.Flags.BLACKPOINTCOMPENSATION,
    )
    assert converted is not None  # None is only returned when converting in place
    return converted
