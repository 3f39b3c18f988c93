"""Damaged pictures of ten formats: ``python tests/damaged_pictures.py COUNT SEED`` says what becomes of them.

COUNT is how many of each format; the last line is JSON. Anything that is no picture and no error of one line ends up in
``wrong``. A crash of a decoder ends the process, and the picture stays in the file ``damaged_picture`` of the
temporary folder.
"""

from __future__ import annotations

import json
import resource
import struct
import sys
import tempfile
import time
import warnings
import zlib
from pathlib import Path

import numpy as np
from picture_files import encoded
from PIL import Image, ImageCms
from PIL.PngImagePlugin import PngInfo

from gic.errors import ImageError
from gic.pictures.load import load_rgb

MAX_PIXELS = 1_000_000


def originals() -> dict[str, list[bytes]]:
    """Whole files of each format, of every kind that the format has."""
    rng = np.random.default_rng(0)
    rgb = Image.fromarray(rng.integers(0, 256, (40, 56, 3), dtype=np.uint8)).resize((112, 80))
    grey, palette, alpha = rgb.convert("L"), rgb.quantize(32), rgb.convert("RGBA")
    alpha.putalpha(grey)
    deep = Image.fromarray((np.asarray(grey).astype(np.uint16)) * 257)
    exif = Image.Exif()
    exif[0x0112], exif[0x0110] = 6, "camera"
    about = {"exif": exif, "icc_profile": ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()}
    text = PngInfo()
    text.add_itxt("XML:com.adobe.xmp", "<x/>" * 99, zip=True)
    text.add_text("words", "a" * 999, zip=True)
    text.add(b"gAMA", struct.pack(">I", 50_000))
    text.add(b"cICP", bytes([9, 16, 0, 1]))
    frames = {"save_all": True, "append_images": [rgb.rotate(90), rgb.rotate(180)]}
    tiff = [{}, {"compression": "tiff_lzw"}, {"compression": "tiff_adobe_deflate"}, {"compression": "jpeg"}, about]
    return {
        "PNG": [
            encoded(rgb, "PNG", pnginfo=text, **about),
            encoded(palette, "PNG", transparency=3, bits=8),
            encoded(deep, "PNG"),
            encoded(alpha, "PNG"),
            encoded(rgb, "PNG", **frames),
        ],
        "JPEG": [
            encoded(rgb, "JPEG", **about),
            encoded(rgb, "JPEG", progressive=True),
            encoded(grey, "JPEG"),
            encoded(rgb.convert("CMYK"), "JPEG"),
        ],
        "WEBP": [encoded(alpha, "WEBP", **about), encoded(rgb, "WEBP", lossless=True), encoded(rgb, "WEBP", **frames)],
        "GIF": [encoded(palette, "GIF"), encoded(grey, "GIF"), encoded(rgb, "GIF", **frames)],
        "BMP": [encoded(rgb, "BMP"), encoded(palette, "BMP"), encoded(rgb.convert("1"), "BMP"), encoded(alpha, "BMP")],
        "TIFF": [encoded(rgb, "TIFF", **options) for options in tiff]
        + [encoded(i, "TIFF") for i in (deep, alpha, palette, rgb.convert("LAB"))],
        "PPM": [encoded(i, "PPM") for i in (rgb, grey, deep, rgb.convert("1"))]
        + [b"P3 4 3 255\n" + b" ".join(b"%d" % v for v in range(36)) + b"\n"],
        "JPEG2000": [
            encoded(rgb, "JPEG2000"),
            encoded(deep, "JPEG2000", irreversible=False),
            encoded(alpha, "JPEG2000", no_jp2=True, tile_size=(64, 64)),
        ],
        "AVIF": [encoded(rgb, "AVIF", speed=10, **about), encoded(alpha, "AVIF", speed=10)],
        "MPO": [encoded(rgb, "MPO", **frames)],
    }


def damaged(data: bytes, rng: np.random.Generator) -> bytes:
    """A file cut short, with other bits, with extreme numbers in its header, or all of these."""
    result = bytearray(data)
    head = min(len(result), 200)
    ways = rng.integers(1, 8)
    if ways & 1:
        for at in rng.integers(0, head if rng.random() < 0.5 else len(result), rng.integers(1, 9)):
            result[at] ^= 1 << rng.integers(8)
    if ways & 2:
        for at in rng.integers(0, head - 4, rng.integers(1, 4)):
            size = int(rng.choice([1, 2, 4]))
            number = int(rng.choice([0, 1, 0x7F, 0xFF, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0xFFFFFFFF])) % (1 << 8 * size)
            result[at : at + size] = number.to_bytes(size, "big" if rng.random() < 0.5 else "little")
    if ways & 4:
        at, end = sorted(rng.integers(0, len(result) + 1, 2))
        result = result[:end] if rng.random() < 0.7 else result[:at] + result[end:]
    return with_checksums(bytes(result)) if rng.random() < 0.7 else bytes(result)


def with_checksums(data: bytes) -> bytes:
    """A PNG whose chunks have checksums that hold, so that damage gets past them."""
    if not data.startswith(b"\x89PNG"):
        return data
    result, at = bytearray(data), 8
    while at + 12 <= len(data):
        end = at + 12 + struct.unpack_from(">I", data, at)[0]
        if end > len(data):
            break
        struct.pack_into(">I", result, end - 4, zlib.crc32(data[at + 4 : end - 4]))
        at = end
    return bytes(result)


def main(count: int, seed: int) -> None:
    warnings.simplefilter("ignore")
    found: dict[str, object] = {"pictures": 0, "errors": 0, "slowest_s": 0.0}
    wrong, last = [], Path(tempfile.gettempdir()) / "damaged_picture"
    whole = originals()
    for files in whole.values():
        for data in files:
            load_rgb(data, max_pixels=MAX_PIXELS)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for number, (name, files) in enumerate(whole.items()):
        rng = np.random.default_rng((seed, number))
        for i in range(count):
            data = damaged(files[i % len(files)], rng)
            last.write_bytes(data)  # what a crash is about
            start = time.perf_counter()
            try:
                image = load_rgb(data, name="a.x", max_pixels=MAX_PIXELS).image
                good, kind = image.mode == "RGB" and 0 < image.width * image.height <= MAX_PIXELS, "pictures"
            except ImageError as error:
                good, kind = "\n" not in str(error) and "a.x" in str(error), "errors"
            except BaseException as error:
                good, kind = False, repr(error)
            seconds = time.perf_counter() - start
            if seconds > found["slowest_s"]:
                found |= {"slowest_s": round(seconds, 3), "slowest": f"{name} {i}"}
            if good:
                found[kind] += 1
            else:
                wrong.append(f"{name} {i} {kind}")
    found["memory_mib"] = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024
    last.unlink()
    print(json.dumps(found | {"wrong": wrong}))


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
