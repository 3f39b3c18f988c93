"""Colour to sRGB: by an ICC profile, or by what a file states of its primaries and its transfer curve instead of one.

What is stated becomes a small ICC profile, so that all colour is converted in one way. HDR (the curves PQ and HLG)
becomes SDR by a tone map, for each of red, green and blue: with x the light in units of the white of
ITU-R BT.2408 (203 cd/m2) and p = 1000 / 203 its peak, ``x (1 + x / p^2) / (1 + x)`` (Reinhard, with a white point).
HLG is taken as shown on a screen of 1000 cd/m2, with its system gamma of 1.2 for each channel.
"""

from __future__ import annotations

import contextlib
import io
import struct
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageCms

Array = NDArray[np.float64]

_SPACE = {"RGB": "RGB", "L": "GRAY", "CMYK": "CMYK", "LAB": "Lab"}  # by Pillow's mode

_D65, _C, _DCI = (0.3127, 0.3290), (0.310, 0.316), (0.314, 0.351)
_SRGB = (_D65, (0.64, 0.33), (0.30, 0.60), (0.15, 0.06))
# By code of ITU-T H.273: name, white, red, green, blue (CIE x, y).
_PRIMARIES = {
    1: ("BT.709", *_SRGB),
    2: ("BT.709", *_SRGB),  # unspecified
    4: ("BT.470 M", _C, (0.67, 0.33), (0.21, 0.71), (0.14, 0.08)),
    5: ("BT.601 625", _D65, (0.64, 0.33), (0.29, 0.60), (0.15, 0.06)),
    6: ("BT.601 525", _D65, (0.630, 0.340), (0.310, 0.595), (0.155, 0.070)),
    7: ("SMPTE 240M", _D65, (0.630, 0.340), (0.310, 0.595), (0.155, 0.070)),
    9: ("BT.2020", _D65, (0.708, 0.292), (0.170, 0.797), (0.131, 0.046)),
    11: ("DCI-P3", _DCI, (0.680, 0.320), (0.265, 0.690), (0.150, 0.060)),
    12: ("Display P3", _D65, (0.680, 0.320), (0.265, 0.690), (0.150, 0.060)),
    22: ("EBU 3213", _D65, (0.630, 0.340), (0.295, 0.605), (0.155, 0.077)),
}
_PEAK = 1000 / 203  # of HDR, in units of its white


def _srgb(v: Array) -> Array:
    light: Array = np.where(v <= 0.04045, v / 12.92, ((v + 0.055) / 1.055) ** 2.4)
    return light


def _tone(x: Array) -> Array:
    toned: Array = x * (1 + x / _PEAK**2) / (1 + x)
    return toned


def _pq(v: Array) -> Array:
    """SMPTE ST 2084, tone mapped."""
    v = v ** (32 / 2523)
    light = (np.maximum(v - 107 / 128, 0) / (2413 / 128 - 2392 / 128 * v)) ** (16384 / 2610)
    return _tone(np.minimum(light * 10_000 / 203, _PEAK))


def _hlg(v: Array) -> Array:
    """ARIB STD-B67, tone mapped."""
    a, b, c = 0.17883277, 0.28466892, 0.55991073
    return _tone(np.where(v <= 0.5, v**2 / 3, (np.exp((v - c) / a) + b) / 12) ** 1.2 * _PEAK)


# By code of ITU-T H.273. The camera curves of BT.709, BT.601 and BT.2020 are shown with that of sRGB, as browsers do.
_CURVES = {
    **dict.fromkeys((1, 2, 6, 13, 14, 15), ("sRGB", _srgb)),
    4: ("gamma 2.2", lambda v: v**2.2),
    5: ("gamma 2.8", lambda v: v**2.8),
    8: ("linear", lambda v: v),
    16: ("PQ, tone mapped", _pq),
    17: ("gamma 2.6", lambda v: v**2.6),
    18: ("HLG, tone mapped", _hlg),
}
_HDR = (16, 18)


class Space(NamedTuple):
    """The colours that the values of a picture mean.

    Attributes:
        profile: As an ICC profile; empty for sRGB.
        name: How the file states it, for notes; empty for an ICC profile in the file.
        hdr: Whether the profile is that of HDR, with the tone map in it.
    """

    profile: bytes = b""
    name: str = ""
    hdr: bool = False


def space_of(info: Mapping[str, Any], grey: bool, notes: list[str]) -> Space:
    """What a file states of its colours; of several statements, that which comes first in the PNG specification.

    Args:
        info: Pillow's ``info``, with the codes of ITU-T H.273 as ``cicp`` (of a PNG) or ``nclx`` (of any other file).
        grey: Whether the picture is grey.
        notes: Takes what cannot be used.
    """
    for key, name in (("cicp", "cICP"), ("icc_profile", ""), ("nclx", "nclx")):
        if info.get(key):
            space = _coded(info[key], name, grey) if name else Space(info[key])
            if space is not None:
                return space
            notes.append(f"colour stated by {name} ignored: unknown codes {', '.join(map(str, info[key]))}")
    if "srgb" in info or not ("gamma" in info or "chromaticity" in info):
        return Space()
    stated = " and ".join(name for key, name in (("gamma", "gAMA"), ("chromaticity", "cHRM")) if key in info)
    gamma = info.get("gamma")
    xy = np.reshape(info.get("chromaticity", _SRGB), (4, 2)).astype(np.float64)
    if gamma is not None and abs(gamma - 1 / 2.2) < 5e-5 and np.allclose(xy, _SRGB, atol=1e-3):
        return Space()  # how sRGB is stated by those who know no sRGB chunk
    if (gamma is None or gamma > 0) and (xy[:, 1] > 0).all():
        curve = _srgb if gamma is None else lambda v: v ** (1 / gamma)
        with contextlib.suppress(np.linalg.LinAlgError, struct.error):
            return Space(_profile(xy, curve, grey), stated)
    notes.append(f"colour stated by {stated} ignored: impossible values")
    return Space()


def _coded(codes: Sequence[int], name: str, grey: bool) -> Space | None:
    """The space of codes of ITU-T H.273 (primaries, transfer, matrix, full range); None if they are not known."""
    if codes[0] not in _PRIMARIES or codes[1] not in _CURVES:
        return None
    primaries, *xy = _PRIMARIES[codes[0]]
    transfer, curve = _CURVES[codes[1]]
    narrow = name == "cICP" and not codes[3]  # decoders of AVIF and HEIF have widened the range
    if (xy, curve, narrow) == ([*_SRGB], _srgb, False):
        return Space()
    wide = (lambda v: curve(np.clip((v * 255 - 16) / 219, 0, 1))) if narrow else curve
    return Space(_profile(np.array(xy), wide, grey), f"{name} ({primaries}, {transfer})", codes[1] in _HDR)


def _profile(xy: Array, curve: Callable[[Array], Array], grey: bool) -> bytes:
    """An ICC profile of the white, red, green and blue at xy, and of a curve from values to light, both in [0, 1].

    Raises:
        LinAlgError: If the primaries do not span a space.
        struct.error: If they lie outside the range of numbers of a profile.
    """
    white, *colours = (np.array([x, y, 1 - x - y]) / y for x, y in xy)
    d50 = np.array([0.9642, 1.0, 0.8249])
    mixed = np.transpose(colours) * np.linalg.solve(np.transpose(colours), white)
    bradford = np.array([[0.8951, 0.2664, -0.1614], [-0.7502, 1.7135, 0.0367], [0.0389, -0.0685, 1.0296]])
    adapted = np.linalg.inv(bradford) @ np.diag((bradford @ d50) / (bradford @ white)) @ bradford @ mixed
    levels = np.rint(curve(np.linspace(0, 1, 4096)) * 65535).astype(">u2").tobytes()
    table = b"curv" + bytes(4) + struct.pack(">I", 4096) + levels
    tags = {b"desc": b"desc" + bytes(4) + struct.pack(">I", 7) + b"stated\0" + bytes(78), b"wtpt": _xyz(d50)}
    if grey:
        tags[b"kTRC"] = table
    else:
        tags |= {b"%cXYZ" % c: _xyz(adapted[:, i]) for i, c in enumerate(b"rgb")}
        tags |= {b"%cTRC" % c: table for c in b"rgb"}
    index, body = struct.pack(">I", len(tags)), b""
    for tag, value in tags.items():
        index += tag + struct.pack(">2I", 132 + 12 * len(tags) + len(body), len(value))
        body += value + bytes(-len(value) % 4)
    head = bytes(8) + struct.pack(">I", 0x02400000) + b"mntr" + (b"GRAY" if grey else b"RGB ") + b"XYZ "
    head += bytes(12) + b"acsp" + bytes(28) + _xyz(d50)[8:]
    profile = head.ljust(128, b"\0") + index + body
    return struct.pack(">I", len(profile)) + profile[4:]


def _xyz(xyz: Array) -> bytes:
    return b"XYZ " + bytes(4) + struct.pack(">3i", *np.rint(xyz * 65536).astype(int))


def is_rgb_profile(data: bytes) -> bool:
    """Whether this is an ICC profile of an RGB space."""
    try:
        profile = ImageCms.ImageCmsProfile(io.BytesIO(data))
        return (profile.profile.xcolor_space or "").strip() == "RGB"
    except (ImageCms.PyCMSError, OSError, TypeError, ValueError):
        return False


def to_srgb(image: Image.Image, space: Space, notes: list[str]) -> Image.Image:
    """Convert opaque 8 bit of any mode to sRGB, by its ICC profile if that is a usable one."""
    if image.mode == "1":
        notes.append("1 bit expanded to RGB")
        image = image.convert("L")
    elif image.mode == "L":
        notes.append("grey expanded to RGB")
    elif image.mode not in _SPACE:  # YCbCr, HSV, RGBX
        notes.append(f"{image.mode} converted to RGB")
        image = image.convert("RGB")

    if space.profile:
        converted = _by_profile(image, space, notes)
        if converted is not None:
            return converted
    if image.mode == "LAB":
        notes.append("CIELAB converted to RGB")
        lab = ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB"))
        return _apply_profile(image, lab)
    if image.mode == "CMYK":
        notes.append("CMYK converted to RGB without a profile")
    return image.convert("RGB")


def _by_profile(image: Image.Image, given: Space, notes: list[str]) -> Image.Image | None:
    """Convert by an ICC profile; None if the profile already is sRGB or cannot be used."""
    try:
        profile = ImageCms.ImageCmsProfile(io.BytesIO(given.profile))
        space = (profile.profile.xcolor_space or "").strip()
        if space != _SPACE[image.mode]:
            notes.append(f"ICC profile for {space} ignored, the image is {image.mode}")
            return None
        if image.mode in ("RGB", "L") and _changes_little(profile, image.mode):
            return None
        converted = _apply_profile(image, profile)
    except (ImageCms.PyCMSError, OSError, TypeError, ValueError):
        notes.append("damaged ICC profile ignored")
        return None
    if given.name:
        notes.append(f"colour stated by {given.name} converted to sRGB")
        return converted
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
    return converted.convert("L").convert("RGB") if image.mode == "L" else converted  # grey stays grey to the last bit
