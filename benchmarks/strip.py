"""A strip of pictures: the original, gic at r = 0 and r = 1, and AVIF of the same size, at some rates.

python benchmarks/strip.py kodim05.png --box 40 180 296 436 --output docs/images/strip.png

Several pictures, each with its --box, stand one above the other. AVIF is the best that takes no more bytes.
`--compare before=a.safetensors after=b.safetensors` draws r = 1 of several weights instead.
"""

from __future__ import annotations

import argparse
import io
from pathlib import Path

from PIL import Image, ImageDraw
from rich.progress import track

import gic

EDGE = 18


def avif(image: Image.Image, size: int) -> tuple[Image.Image, int]:
    """The best AVIF of at most ``size`` bytes."""
    best = (image, 0)
    low, high = 0, 100
    while low <= high:
        quality = (low + high) // 2
        buffer = io.BytesIO()
        image.save(buffer, "AVIF", quality=quality)
        if buffer.tell() <= size:
            best, low = (Image.open(buffer).convert("RGB"), buffer.tell()), quality + 1
        else:
            high = quality - 1
    return best


Cell = tuple[str, Image.Image | None]


def with_avif(original: Image.Image, bpp: float, checkpoint: str | None) -> list[Cell]:
    """Pictures of one size in bytes: gic at r = 0 and r = 1, and AVIF."""
    codec = gic.load(checkpoint)
    pixels = original.width * original.height
    data = codec.compress(original, bpp=bpp)
    other, size = avif(original, len(data))
    return [
        (f"gic r = 0, {len(data) * 8 / pixels:.3f} bpp", codec.decompress(data, realism=0.0)),
        (f"gic r = 1, {len(data) * 8 / pixels:.3f} bpp", codec.decompress(data, realism=1.0)),
        (f"AVIF, {size * 8 / pixels:.3f} bpp" if size else "AVIF: not that small", other if size else None),
    ]


def compare(original: Image.Image, bpp: float, checkpoints: dict[str, str]) -> list[Cell]:
    """What each set of weights makes of the picture at r = 1."""
    cells: list[Cell] = []
    for name, checkpoint in checkpoints.items():
        codec = gic.load(checkpoint)
        data = codec.compress(original, bpp=bpp)
        bits = len(data) * 8 / original.width / original.height
        cells.append((f"{name}, {bits:.3f} bpp", codec.decompress(data, realism=1.0)))
    return cells


def sheet_of(path: Path, box: tuple[int, int, int, int], args: argparse.Namespace) -> Image.Image:
    """One picture: a row for each rate."""
    original = Image.open(path).convert("RGB")
    compared = dict(each.split("=", 1) for each in args.compare)
    cells = []
    for row, bpp in enumerate(track(args.bpp, description=path.name)):
        line: list[Cell] = [("original", original)]
        line += compare(original, bpp, compared) if compared else with_avif(original, bpp, args.checkpoint)
        cells += [(column, row, text, picture) for column, (text, picture) in enumerate(line)]
    left, top, right, bottom = box
    width, height = right - left, bottom - top
    sheet = Image.new("RGB", ((1 + max(cell[0] for cell in cells)) * width, len(args.bpp) * (height + EDGE)), "white")
    for column, row, text, picture in cells:
        at = (column * width, row * (height + EDGE))
        ImageDraw.Draw(sheet).text((at[0] + 3, at[1] + 3), text, fill="black")
        if picture is not None:
            sheet.paste(picture.crop(box), (at[0], at[1] + EDGE))
    return sheet


def main() -> None:
    """Draw the strip."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("images", type=Path, nargs="+")
    parser.add_argument("--bpp", type=float, nargs="+", default=[0.1, 0.2, 0.4])
    parser.add_argument(
        "--box",
        type=int,
        nargs=4,
        action="append",
        metavar=("LEFT", "TOP", "RIGHT", "BOTTOM"),
        help="one for each image",
    )
    parser.add_argument("--checkpoint", help="weights (default: those in the package)")
    parser.add_argument("--compare", nargs="+", metavar="NAME=FILE", default=[], help="r = 1 of these weights instead")
    parser.add_argument("--output", type=Path, required=True)
    args = parser.parse_args()
    boxes = args.box or [[0, 0, 256, 256]] * len(args.images)
    if len(boxes) != len(args.images):
        parser.error(f"{len(args.images)} images take as many --box, not {len(boxes)}")

    sheets = [sheet_of(path, box, args) for path, box in zip(args.images, boxes, strict=True)]
    whole = Image.new("RGB", (max(s.width for s in sheets), sum(s.height for s in sheets)), "white")
    top = 0
    for sheet in sheets:
        whole.paste(sheet, (0, top))
        top += sheet.height
    args.output.parent.mkdir(parents=True, exist_ok=True)
    whole.save(args.output, quality=90)
    print(f"written: {args.output}")


if __name__ == "__main__":
    main()
