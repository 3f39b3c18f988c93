r"""One picture growing with its bytes, beside a progressive JPEG, as an animation.

python benchmarks/progressive_demo.py kodim23.png --box 60 40 444 296 --output docs/images/progressive.webp

Every frame shows both files cut at the same number of bytes. Pillow decodes the JPEG as far as it is there.
"""

from __future__ import annotations

import argparse
import io
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFile
from rich.progress import track

import gic

FRAMES, EDGE = 16, 22


def jpeg(image: Image.Image, size: int) -> bytes:
    """The progressive JPEG of the best quality of at most ``size`` bytes; of the worst if there is none."""
    for quality in range(95, 0, -1):
        buffer = io.BytesIO()
        image.save(buffer, "JPEG", quality=quality, progressive=True, optimize=True)
        if buffer.tell() <= size or quality == 1:
            return buffer.getvalue()
    raise AssertionError


def cut_jpeg(data: bytes, size: tuple[int, int]) -> Image.Image:
    """What Pillow makes of the first bytes of a JPEG; grey before there is anything."""
    try:
        return Image.open(io.BytesIO(data)).convert("RGB")
    except OSError:
        return Image.new("RGB", size, (128, 128, 128))


def main() -> None:
    """Write the animation."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("image", type=Path)
    parser.add_argument("--box", type=int, nargs=4, required=True, help="left, top, right, bottom")
    parser.add_argument("--q", type=float, default=1.0, help="finest step (default 1)")
    parser.add_argument("--output", type=Path, required=True)
    args = parser.parse_args()

    original = Image.open(args.image).convert("RGB").crop(args.box)
    codec = gic.load()
    data = codec.compress(original, q=args.q, progressive=True)
    file = codec.open(data)
    assert file.progressive is not None
    other = jpeg(original, len(data))
    ImageFile.LOAD_TRUNCATED_IMAGES = True
    width, height = original.size
    frames = []
    for size in track(np.geomspace(file.progressive.start, len(data), FRAMES).astype(int).tolist()):
        frame = Image.new("RGB", (2 * width + 6, height + EDGE), "white")
        frame.paste(codec.decompress(data[:size]), (0, EDGE))
        frame.paste(cut_jpeg(other[:size], original.size), (width + 6, EDGE))
        draw = ImageDraw.Draw(frame)
        draw.text((4, 3), f"gic, {size} bytes, {8 * size / width / height:.3f} bpp", fill="black", font_size=14)
        draw.text((width + 10, 3), f"progressive JPEG, {min(size, len(other))} bytes", fill="black", font_size=14)
        frames.append(frame)
    args.output.parent.mkdir(parents=True, exist_ok=True)
    frames[0].save(
        args.output,
        save_all=True,
        append_images=frames[1:],
        duration=[700] * (FRAMES - 1) + [3000],
        loop=0,
        quality=80,
    )


if __name__ == "__main__":
    main()
