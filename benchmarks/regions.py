r"""A picture with a region of interest beside the plain file of the same size: the original, plain, with the region.

python benchmarks/regions.py kodim15.png --ellipse 370 30 720 430 --bpp 0.1 --output docs/images/region.jpg \
    --json docs/results/region.json

The region is an ellipse; PSNR inside and outside of it is measured at r = 0, the pictures are drawn at r = 1.
"""

from __future__ import annotations

import argparse
import json
import math
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

import gic


def psnr(image: Image.Image, original: Image.Image, where: np.ndarray) -> float:
    """PSNR in dB over the pixels ``where`` (H, W) holds."""
    difference = np.asarray(image, float)[where] - np.asarray(original, float)[where]
    return 10 * math.log10(255**2 / float(np.square(difference).mean()))


def main() -> None:
    """Draw the three pictures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("image", type=Path)
    parser.add_argument("--ellipse", type=int, nargs=4, required=True, help="left, top, right, bottom of the region")
    parser.add_argument("--bpp", type=float, default=0.1)
    parser.add_argument("--strength", type=float, default=2.0, help="octaves of q between black and white")
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()

    original = Image.open(args.image).convert("RGB")
    mask = Image.new("L", original.size)
    ImageDraw.Draw(mask).ellipse(args.ellipse, fill=255)
    inside = np.asarray(mask) > 0
    codec = gic.load()
    cells = [("original", original)]
    results: dict[str, object] = {"picture": args.image.name, "ellipse": args.ellipse, "octaves": args.strength}
    for name, roi in (("plain", None), ("region", mask)):
        data = codec.compress(original, bpp=args.bpp, roi=roi, roi_strength=args.strength, quantizer="round")
        bits = len(data) * 8 / original.width / original.height
        nearest = codec.decompress(data, realism=0.0)
        results[name] = {
            "bytes": len(data),
            "bits_per_pixel": round(bits, 4),
            "q": round(codec.open(data).q, 3),
            "psnr_inside": round(psnr(nearest, original, inside), 2),
            "psnr_outside": round(psnr(nearest, original, ~inside), 2),
        }
        print(name, results[name])
        cells.append((f"{name}, {bits:.3f} bpp", codec.decompress(data, realism=1.0)))
    sheet = Image.new("RGB", (len(cells) * original.width, original.height + 24), "white")
    draw = ImageDraw.Draw(sheet)
    for column, (name, image) in enumerate(cells):
        sheet.paste(image, (column * original.width, 24))
        draw.text((column * original.width + 6, 4), name, fill="black", font_size=16)
    args.output.parent.mkdir(parents=True, exist_ok=True)
    sheet.save(args.output, quality=88)
    if args.json is not None:
        results["model"] = codec.model_id.hex()
        args.json.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
