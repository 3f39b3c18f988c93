"""Writing a picture in any of Pillow's formats, checked by reading it again: what a format cannot hold is told."""

from __future__ import annotations

import io
from typing import Any

from PIL import Image

from gic.errors import ImageError, words_of
from gic.pictures.load import FORMATS, open_image


def encode_picture(image: Image.Image, kind: str, name: str) -> tuple[bytes, tuple[str, ...]]:
    """Write a picture with the EXIF block and the ICC profile in its ``info``.

    Args:
        image: Mode "RGB" or "L".
        kind: Pillow's name of the format, for example "JPEG".
        name: What to call the file in errors.

    Returns:
        The bytes of the file, and notes on what of the picture they do not hold.

    Raises:
        ImageError: If the format cannot hold a picture of this size, its EXIF or its ICC profile, or if the file could
            not be read again.
    """
    kept = {key: image.info[key] for key in ("exif", "icc_profile") if image.info.get(key)}
    try:
        data = _encoded(image, kind, kept)
    except Exception as error:  # encoders raise nearly anything
        what = f"a picture of {image.width} x {image.height} pixels"
        for key, title in (("exif", "EXIF"), ("icc_profile", "ICC profile")):
            if key in kept and _works(image, kind, {other: kept[other] for other in kept if other != key}):
                what = f"{title} of {len(kept[key])} bytes"
        raise ImageError(
            f"{name} cannot be written: {kind} cannot hold {what} ({words_of(error)}); use .png"
        ) from error
    try:
        read = open_image(io.BytesIO(data), name, [], {kind, "JPEG"} if kind == "MPO" else {kind})
        if kind not in FORMATS | {"EPS"}:  # those are well kept; Pillow runs Ghostscript on EPS
            read.load()
        size, icc = read.size, read.info.get("icc_profile")
        exif_lost = "exif" in kept and not len(read.getexif())
    except Exception as error:
        raise ImageError(f"{name} cannot be written: gic could not read a {kind} again; use .png") from error
    if size != image.size:
        raise ImageError(
            f"{name} cannot be written: {kind} would make {size[0]} x {size[1]} pixels of {image.width} x "
            f"{image.height}; use .png"
        )
    if "icc_profile" in kept and not icc:
        raise ImageError(f"{name} cannot be written: {kind} cannot hold the ICC profile of its colours; use .png")
    notes = []
    if exif_lost:
        notes.append(f"EXIF left out, {kind} cannot hold it")
    if read.mode == "P" and image.mode == "RGB" and image.getcolors(256) is None:
        notes.append(f"reduced to the 256 colours of a {kind}")
    return data, tuple(notes)


def _encoded(image: Image.Image, kind: str, kept: dict[str, Any]) -> bytes:
    buffer = io.BytesIO()
    try:
        image.save(buffer, kind, **kept)
    except (OSError, KeyError, ValueError):
        if image.mode != "L":
            raise
        buffer = io.BytesIO()  # a format without grey
        image.convert("RGB").save(buffer, kind, **kept)
    return buffer.getvalue()


def _works(image: Image.Image, kind: str, kept: dict[str, Any]) -> bool:
    try:
        return bool(_encoded(image, kind, kept))
    except Exception:
        return False
