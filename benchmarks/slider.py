"""The pictures of the site's first page: crops of an original, of gic at r = 1 and r = 0, and of AVIF at the same size.

python benchmarks/slider.py kodim13.png --bpp 0.2 --box 60 60 700 460 --output docs/images/slider

Each picture is coded whole and cropped afterwards. AVIF is Pillow's best that takes no more bytes than gic.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
from PIL import Image
from strip import avif

import gic


def psnr(a: Image.Image, b: Image.Image) -> float:
    """In dB, of 8 bit RGB."""
    error = np.asarray(a, np.float64) - np.asarray(b, np.float64)
    return float(10 * np.log10(255**2 / np.mean(error**2)))


def main() -> None:
    """Make the pictures, and a JSON file of their sizes and PSNR."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("image", type=Path)
    parser.add_argument("--bpp", type=float, default=0.25, help="bits per pixel of the whole picture")
    parser.add_argument("--box", type=int, nargs=4, metavar=("LEFT", "TOP", "RIGHT", "BOTTOM"), required=True)
    parser.add_argument("--output", type=Path, required=True, help="folder")
    parser.add_argument("--quality", type=int, default=92, help="of the crops, as WebP")
    args = parser.parse_args()

    original = Image.open(args.image).convert("RGB")
    codec = gic.load()
    data = codec.compress(original, bpp=args.bpp)
    other, size = avif(original, len(data))
    pictures = {
        "original": (original, args.image.stat().st_size),
        "gic-r1": (codec.decompress(data, realism=1.0), len(data)),
        "gic-r0": (codec.decompress(data, realism=0.0), len(data)),
        "avif": (other, size),
    }
    args.output.mkdir(parents=True, exist_ok=True)
    about = {}
    for name, (picture, count) in pictures.items():
        picture.crop(args.box).save(args.output / f"{name}.webp", quality=args.quality, method=6)
        pixels = original.width * original.height
        about[name] = {"bytes": count, "bits_per_pixel": round(8 * count / pixels, 4)}
        if name != "original":
            about[name]["psnr"] = round(psnr(picture, original), 2)
    text = json.dumps({"image": args.image.name, "box": args.box, "pictures": about}, indent=1)
    (args.output / "slider.json").write_text(text + "\n")
    print(text)


if __name__ == "__main__":
    main()
