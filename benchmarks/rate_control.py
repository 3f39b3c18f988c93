"""How exactly the codec hits a rate: estimates against real files, targets, monotone sizes, on a folder of pictures.

python benchmarks/rate_control.py --images kodak [--output rate_control.json]
"""

from __future__ import annotations

import argparse
import json
from itertools import pairwise
from pathlib import Path

import numpy as np
from rich.progress import track

import gic
from gic.bitstream.container import unpack
from gic.codec.image_codec import ImageCodec
from gic.codec.rate import nearest, within
from gic.pictures.find import find_images
from gic.pictures.load import load_rgb

LEVELS = 20
TARGETS_BPP = (0.1, 0.2, 0.4, 0.8)


def measure(codec: ImageCodec, path: Path) -> dict[str, object]:
    """Sizes and errors of one picture."""
    image = load_rgb(path).image
    pixels = image.width * image.height
    encoding = codec.encoding(image)
    sizes, estimate_errors, overheads = [], [], []
    for level in np.linspace(codec.finest, codec.coarsest, LEVELS).astype(int).tolist():
        data = encoding.at(level)
        sizes.append(len(data))
        estimate_errors.append(abs(len(data) - encoding.estimate(level)))
        overheads.append(len(data) - sum(len(p.z) + len(p.y) for p in unpack(data).payloads))
    bpp_errors, slack = [], []
    for bpp in TARGETS_BPP:
        target = bpp * pixels / 8
        if sizes[-1] < target < sizes[0]:
            bpp_errors.append(abs(len(nearest(encoding, target)) / target - 1))
            slack.append(1 - len(within(encoding, int(target))) / int(target))
    return {
        "image": path.name,
        "bytes": sizes,
        "monotone": all(a > b for a, b in pairwise(sizes)),
        "largest_estimate_error_bytes": round(max(estimate_errors), 2),
        "largest_overhead_bytes": max(overheads),
        "largest_bpp_error_percent": round(100 * max(bpp_errors, default=0.0), 4),
        "largest_max_bytes_slack_percent": round(100 * max(slack, default=0.0), 4),
        "max_bytes_exceeded": sum(s < 0 for s in slack),
    }


def main() -> None:
    """Run over a folder."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", required=True)
    parser.add_argument("--weights", default="shipped", help="a file or a name (default: those that ship)")
    parser.add_argument("--output")
    args = parser.parse_args()
    codec = gic.load(args.weights)
    rows = [measure(codec, path) for path in track(find_images([args.images]))]
    summary = {
        "pictures": len(rows),
        "levels": LEVELS,
        "targets_bpp": TARGETS_BPP,
        "model": codec.model_id.hex(),
        **{key: max(row[key] for row in rows) for key in rows[0] if key.startswith("largest")},  # type: ignore[type-var]
        "max_bytes_exceeded": sum(int(str(row["max_bytes_exceeded"])) for row in rows),
        "all_monotone": all(row["monotone"] for row in rows),
    }
    print(json.dumps(summary, indent=1))
    if args.output:
        Path(args.output).write_text(json.dumps({**summary, "images": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
