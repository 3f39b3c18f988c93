r"""One picture growing with its bytes, beside a progressive JPEG and JPEG XL, as an animation.

python benchmarks/progressive_demo.py kodim23.png --box 60 40 444 296 --output docs/images/progressive.webp

Every frame shows the files of gic and JPEG cut at the same number of bytes; Pillow decodes the JPEG as far as it is
there. The decoders of JPEG XL that can be had (djxl 0.7, pillow-jxl-plugin) refuse files that are cut: it is coded anew
for every frame, the best that takes no more bytes. Needs pillow-jxl-plugin.
"""

from __future__ import annotations

import argparse
import io
from importlib import import_module
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFile
from rich.progress import track

import gic

FRAMES, EDGE = 16, 22


def best(image: Image.Image, kind: str, size: int, **options: bool) -> bytes:
    """The file of the best quality of at most ``size`` bytes; empty if there is none."""
    for quality in range(95, 0, -1):
        buffer = io.BytesIO()
        image.save(buffer, kind, quality=quality, **options)
        if buffer.tell() <= size:
            return buffer.getvalue()
    return b""


def decoded(data: bytes, size: tuple[int, int]) -> Image.Image:
    """What Pillow makes of a file, or of its first bytes; grey where there is nothing."""
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

    import_module("pillow_jxl")  # registers the format
    original = Image.open(args.image).convert("RGB").crop(args.box)
    codec = gic.load()
    data = codec.compress(original, q=args.q, progressive=True)
    file = codec.open(data)
    assert file.progressive is not None
    jpeg = best(original, "JPEG", len(data), progressive=True, optimize=True)
    ImageFile.LOAD_TRUNCATED_IMAGES = True
    width, height = original.size
    frames = []
    for size in track(np.geomspace(file.progressive.start, len(data), FRAMES).astype(int).tolist()):
        jxl = best(original, "JXL", size)
        cells = [
            (f"gic, {size} bytes, {8 * size / width / height:.3f} bpp", codec.decompress(data[:size])),
            (f"progressive JPEG, {min(size, len(jpeg))} bytes", decoded(jpeg[:size], original.size)),
            (
                f"JPEG XL, a new file of {len(jxl)} bytes" if jxl else "JPEG XL: not that small",
                decoded(jxl, original.size),
            ),
        ]
        frame = Image.new("RGB", (len(cells) * (width + 6) - 6, height + EDGE), "white")
        draw = ImageDraw.Draw(frame)
        for column, (name, image) in enumerate(cells):
            frame.paste(image, (column * (width + 6), EDGE))
            draw.text((column * (width + 6) + 4, 3), name, fill="black", font_size=14)
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
