"""Reading any picture as 8 bit sRGB.

Everything that gic codes, trains on or measures passes through :func:`load_rgb`, so that an orientation flag, a colour
profile or 16 bit are handled once, in one way, and never silently: what was changed is told in
:attr:`LoadedImage.notes`.
"""

from __future__ import annotations

import contextlib
import io
import struct
from collections.abc import Mapping, Set
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
from PIL import Image
from PIL.PngImagePlugin import PngImageFile

from gic.errors import ImageError, words_of
from gic.pictures import boxes, jpeg, png
from gic.pictures.colour import is_rgb_profile, space_of, to_srgb

# Formats that may be opened. EPS is left out on purpose (Pillow runs Ghostscript on it); HEIF and JXL
# work once their Pillow plugins are registered.
FORMATS = {"PNG", "JPEG", "MPO", "WEBP", "AVIF", "HEIF", "JXL", "GIF", "BMP", "TIFF", "PPM", "JPEG2000"}

_ORIENTATION = 0x0112  # EXIF and TIFF tag
_BITS_PER_SAMPLE = 258  # TIFF tag
_PHOTOMETRIC = 262  # TIFF tag; 0 is "white is zero"
_COLOUR_TAGS = {301, 318, 319}  # TIFF tags: transfer function, white point, primaries
_EXTRA_SAMPLES = 338  # TIFF tag; says what a fourth channel is
_SAMPLE_FORMAT = 339  # TIFF tag; 1 is "unsigned integer"

_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


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
    exif: bytes | None = None,
    profile: bytes | None = None,
) -> LoadedImage:
    """Read a picture of any size and mode as 8 bit sRGB.

    Orientation flags are applied; colour is converted to sRGB (relative colorimetric, black point compensated) from
    an ICC profile, or from what cICP, gAMA and cHRM of a PNG or nclx of an AVIF or HEIF state, HDR by the tone map of
    :mod:`gic.pictures.colour`; grey, 1 bit, palette, CMYK, YCbCr and CIELAB become RGB; transparency is blended onto
    white; of several frames the first is taken.

    Integers of up to 16 bit are scaled to 8 by the bits that are stored, whatever the values are. Integers of 32 bit
    and signed ones are refused, since nothing says which of their values is white.

    A file that is damaged beside its pixels is read: chunks of a PNG with wrong checksums or too much text are left
    out, and the end of a JPEG or PNG may be missing after the last pixel.

    Args:
        source: A path, the bytes of a file, an open binary file, or a Pillow image; of one that is loaded already, what
            Pillow does not tell (cICP, nclx, a transparent colour of less or more than 8 bit) is lost.
        name: What to call the picture in errors; by default its path.
        max_pixels: Largest width times height; checked from the header, before anything is decoded.
        keep_profile: Leave the pixels of a picture with an RGB profile as they are and hand the profile over.
        exif: EXIF block that takes the place of the picture's own.
        profile: ICC profile that takes the place of all that the picture states of its colour.

    Returns:
        The picture, notes on what was changed, and the format of the file.

    Raises:
        ImageError: If there is no such file, if it is not an image or is damaged, if it holds more than
            ``max_pixels``, or if its values have no fixed range (floating point, 32 bit or signed integers).

    Example:
        >>> load_rgb(Image.new("L", (4, 2), 255)).notes
        ('grey expanded to RGB',)
    """
    label = name or _label(source)
    notes: list[str] = []
    try:
        if isinstance(source, Image.Image):
            return _normalise(source, label, max_pixels, keep_profile, notes, exif, profile)
        if isinstance(source, (str, Path)):
            with Path(source).open("rb") as file:
                return _normalise(open_image(file, label, notes), label, max_pixels, keep_profile, notes, exif, profile)
        image = open_image(io.BytesIO(source) if isinstance(source, bytes) else source, label, notes)
        return _normalise(image, label, max_pixels, keep_profile, notes, exif, profile)
    except ImageError:
        raise
    except FileNotFoundError as error:
        raise ImageError(f"there is no file {label}") from error
    except (IsADirectoryError, PermissionError) as error:
        raise ImageError(f"cannot read {label}: {error.strerror}") from error
    except Image.DecompressionBombError as error:  # of formats where Pillow looks at its own limit while decoding
        raise ImageError(f"{label} is too large for Pillow in its format, save it as PNG: {error}") from error
    except Exception as error:  # a damaged file makes Pillow's decoders raise nearly anything
        raise ImageError(f"{label} is damaged or cut short: {words_of(error)}") from error


def _label(source: bytes | str | Path | BinaryIO | Image.Image) -> str:
    """What to call a source in errors."""
    if isinstance(source, (str, Path)):
        return str(source)
    if isinstance(source, bytes):
        return f"the file of {len(source)} bytes"
    name = getattr(source, "filename", None) or getattr(source, "name", None)
    return name if isinstance(name, str) and name else "the image"


def open_image(file: BinaryIO, label: str, notes: list[str], formats: Set[str] = FORMATS) -> Image.Image:
    """Open an image of one of some formats without decoding it.

    This is ``Image.open`` without Pillow's own limit of pixels: :func:`load_rgb` has another, which the caller can
    set. Pillow's is a global variable, which other threads may be relying on.
    """
    try:
        file.seek(0)
    except (AttributeError, io.UnsupportedOperation):
        file = io.BytesIO(file.read())
    prefix = file.read(16)
    info: dict[str, Any] = {}
    if prefix.startswith(png.SIGNATURE):
        file.seek(0)
        repaired = png.repair(file.read())
        file = io.BytesIO(repaired.data)
        notes += repaired.notes
        info["cicp"] = repaired.cicp
        if repaired.profile:
            info["icc_profile"] = repaired.profile
    Image.init()
    reasons = []
    for name in sorted(Image.OPEN.keys() & formats):
        factory, accept = Image.OPEN[name]
        accepted = accept is None or accept(prefix)
        if isinstance(accepted, str):
            reasons.append(accepted)
        elif accepted:
            file.seek(0)
            try:
                image: Image.Image = factory(file, "")
            except (SyntaxError, IndexError, TypeError, struct.error) as error:
                reasons.append(words_of(error))
            else:
                image.info.update(info)
                return image
    if reasons:
        raise ImageError(f"{label} cannot be read: {'; '.join(dict.fromkeys(reasons))}")
    raise ImageError(f"{label} is not an image, or of a format that Pillow cannot read")


def _normalise(
    image: Image.Image,
    label: str,
    max_pixels: int,
    keep_profile: bool,
    notes: list[str],
    exif: bytes | None,
    profile: bytes | None,
) -> LoadedImage:
    """Decode an opened image and bring it to 8 bit sRGB; the body of :func:`load_rgb`."""
    width, height = image.size
    if width * height > max_pixels:
        raise ImageError(f"{label} declares {width} x {height} pixels; the limit is {max_pixels} pixels")
    if width * height == 0:
        raise ImageError(f"{label} has no pixels ({width} x {height})")
    file_format = image.format
    frames = 1 if file_format == "MPO" else getattr(image, "n_frames", 1)  # MPO: previews and gain maps
    if frames > 1:
        notes.append(f"first of {frames} frames taken")
    reduced = any(";16" in str(tile) for tile in getattr(image, "tile", []))  # Pillow itself drops to 8 bit
    stated: dict[Any, Any] = {**image.info, **_stated_in_file(image)} if profile is None else {"icc_profile": profile}
    if _has_ignored_alpha(image):
        notes.append("alpha of a 16 bit BMP ignored")

    if not stated.get("icc_profile") and _COLOUR_TAGS & set(getattr(image, "tag_v2", ())):
        notes.append("colour stated by TIFF tags ignored")
    if file_format == "TIFF":  # which loading turns
        upright, turn = _upright_exif(image, exif)
        image = _load(image, notes)
    else:  # a PNG may state it after its pixels
        image = _load(image, notes)
        upright, turn = _upright_exif(image, exif)
    tags = getattr(image, "tag_v2", {})
    top = _highest_value(image, tags, label)
    # In a BMP, and in a TIFF that does not say what its fourth channel is, programs leave alpha 0 and mean opaque.
    doubtful = file_format == "BMP" or (file_format == "TIFF" and _EXTRA_SAMPLES not in tags)
    inverted = tags.get(_PHOTOMETRIC) == 0  # Pillow inverts "white is zero" for 8 bit only
    if turn in _TURNS:
        notes.append("EXIF orientation applied")
        image = image if file_format == "TIFF" else image.transpose(_TURNS[turn])

    image, alpha = _split_alpha(image, doubtful, notes)
    if image.mode.startswith("I"):
        values = np.asarray(image).astype(np.int64)
        image = Image.fromarray(np.rint((top - values if inverted else values) * (255 / top)).astype(np.uint8))
        reduced = True
    if reduced:
        notes.append("16 bit reduced to 8")
    space = space_of(stated, image.mode in ("1", "L"), notes)
    icc = b""
    if keep_profile and image.mode == "RGB" and not space.hdr and is_rgb_profile(space.profile):
        icc = space.profile
    else:
        image = to_srgb(image, space, notes)

    clean = Image.new("RGB", image.size, "white")  # a new image carries no metadata along
    clean.paste(image, mask=alpha)
    return LoadedImage(clean, tuple(notes), file_format, upright, icc)


def _stated_in_file(image: Image.Image) -> dict[str, Any]:
    """What the file of an image that is not loaded states of its colour and Pillow does not tell."""
    file = getattr(image, "fp", None)
    if "cicp" in image.info or file is None or file.closed:
        return {}
    if image.format in ("AVIF", "HEIF"):
        return {"nclx": boxes.stated_colour(_whole(file))}
    if image.format == "JPEG2000":
        return {"icc_profile": boxes.jpeg2000_profile(_whole(file))}
    if image.format == "BMP":
        return {"icc_profile": _bmp_profile(file)}
    if image.format == "PNG":
        with contextlib.suppress(ValueError):  # Pillow has opened it all the same
            return {"cicp": png.repair(_whole(file)).cicp}
    return {}


def _bmp_profile(file: BinaryIO) -> bytes:
    """The ICC profile of a BMP of version 5, empty if there is none."""
    head = _whole(file, 138).ljust(138, b"\0")
    if int.from_bytes(head[14:18], "little") < 124 or head[70:74] != b"DEBM":  # "MBED", little-endian
        return b""
    at, size = struct.unpack_from("<II", head, 126)
    return _whole(file)[14 + at : 14 + at + size]


def _whole(file: BinaryIO, size: int = -1) -> bytes:
    """The bytes of a file, or the first of them; the file stays where it is."""
    at = file.tell()
    file.seek(0)
    data = file.read(size)
    file.seek(at)
    return data


def _load(image: Image.Image, notes: list[str]) -> Image.Image:
    """Decode an image; what Pillow gets wrong about a transparent colour, or refuses for its last bytes, is mended."""
    tiles, file = getattr(image, "tile", None), getattr(image, "fp", None)
    key: Any = image.info.get("transparency")
    raw = str(tiles[0][3]) if tiles and image.format == "PNG" and key is not None else ""
    low = _low_bytes(file) if raw == "RGB;16B" and file is not None else None
    if image.format == "JPEG2000" and file is not None and not file.closed and jpeg.lacks_tiles(_whole(file)):
        raise OSError("image file is truncated")
    try:
        image.load()
    except OSError:
        if image.format not in ("JPEG", "MPO") or file is None or file.closed:
            raise
        read = jpeg.without_end(_whole(file))
        if read is None:
            raise
        image = read
        notes.append("the end of the file is missing, the pixels are whole")
    if raw in ("1", "L;2", "L;4"):  # Pillow scales the grey levels and not the transparent one
        top = 2 ** int(raw[-1]) - 1
        image = image.convert("L")
        image = _with_alpha(image, image.point([255 * (level != (key & top) * 255 // top) for level in range(256)]))
    elif low is not None:  # Pillow compares 8 bit with 16
        high, key = np.asarray(image), np.asarray(key)
        transparent = ((high == key >> 8) & (np.asarray(low) == key & 255)).all(axis=2)
        image = _with_alpha(image, Image.fromarray(np.where(transparent, 0, 255).astype(np.uint8)))
    return image


def _with_alpha(image: Image.Image, alpha: Image.Image) -> Image.Image:
    """The image with an alpha channel in the place of a transparent colour."""
    result = Image.merge(image.mode + "A", (*image.split(), alpha))
    result.info = {name: value for name, value in image.info.items() if name != "transparency"}
    return result


def _low_bytes(file: BinaryIO) -> Image.Image:
    """The low bytes of a PNG of 16 bit RGB, of which Pillow gives the high ones."""
    again = PngImageFile(io.BytesIO(_whole(file)))
    again.tile = [again.tile[0]._replace(args="RGB;16L")]  # takes the second of two bytes
    again.load()
    return again


def _upright_exif(image: Image.Image, given: bytes | None) -> tuple[bytes, int]:
    """EXIF block without its orientation, empty if there is none or it is damaged; and the orientation, 1 to 8."""
    turn = 1
    try:
        exif = Image.Exif()  # a copy: the image still needs its orientation
        own = image.getexif() if given is None else exif
        if given is not None:
            own.load(given)
        value = own.get(_ORIENTATION, 1)
        turn = value if isinstance(value, int) and 1 <= value <= 8 else 1
        if given is None and len(own):
            exif.load(own.tobytes())
        exif.pop(_ORIENTATION, None)
        return exif.tobytes() if len(exif) else b"", turn
    except Exception:  # EXIF data in the wild is often damaged, in many ways; the pixels are not
        return b"", turn


def _split_alpha(image: Image.Image, doubtful: bool, notes: list[str]) -> tuple[Image.Image, Image.Image | None]:
    """Take transparency off an image; palettes are expanded on the way.

    Args:
        image: The image.
        doubtful: Whether alpha that is 0 everywhere means nothing.
        notes: Takes what was done.

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
    lowest, highest = alpha.getextrema()
    if highest == 0 and doubtful:
        notes.append("alpha ignored, it is 0 everywhere")
        return image, None
    if lowest == 255:
        notes.append("opaque alpha dropped")
        return image, None
    notes.append("alpha blended onto white")
    return image, alpha


def _highest_value(image: Image.Image, tags: Mapping[int, Any], label: str) -> int:
    """Value of white in an image of integers.

    Raises:
        ImageError: If nothing says which value is white.
    """
    bits, kinds = tags.get(_BITS_PER_SAMPLE, (8,)), tags.get(_SAMPLE_FORMAT, (1,))
    if image.mode == "F" or 3 in kinds:
        raise ImageError(f"{label} holds floating point values, whose range is unknown: save it with 8 bit")
    # Pillow's mode "I" is 32 bit; its plugins for PNG and PPM put 16 bit there.
    if max(bits) > 16 or 2 in kinds or (image.mode == "I" and image.format not in ("PNG", "PPM")):
        raise ImageError(
            f"{label} holds integers of 32 bit or with a sign, whose range is unknown: save it with 8 bit, or with "
            "16 bit without a sign"
        )
    return 4095 if bits == (12,) else 65535


def _has_ignored_alpha(image: Image.Image) -> bool:
    """Whether this is the file of a 16 bit BMP with alpha, which Pillow reads without."""
    file = getattr(image, "fp", None)
    if image.format != "BMP" or file is None or file.closed:
        return False
    head = _whole(file, 70).ljust(70, b"\0")
    size, bits, packing, mask = (
        struct.unpack_from(f, head, at)[0] for f, at in (("<I", 14), ("<H", 28), ("<I", 30), ("<I", 66))
    )
    return bool(size >= 56 and bits == 16 and packing == 3 and mask)
