"""What the encoder's check of what it leaves out is worth, and takes, on pictures unlike photographs: grey ones.

    python benchmarks/unusual.py ~/kodak --output benchmarks/results/unusual.json

Each picture is turned grey and coded at q = 1 with and without the search for another z (gic/codec/skipped.py), and
decoded at r = 0: bytes, PSNR, the worst block of 16 x 16 pixels (root of the mean square, in grey levels), and the CPU
seconds of the analysis. The last are given for the picture in colour too.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import torch
from measuring import machine, parser, save, show
from torch.nn import functional as F

import gic
from gic.codec import skipped
from gic.pictures.find import find_images
from gic.pictures.load import load_rgb
from gic.pictures.tensors import to_tensor


def seconds_of_analysis(codec: Any, pixels: torch.Tensor) -> tuple[Any, float]:
    """The analysed picture, and the CPU seconds that it took."""
    start = time.process_time()
    encoding = codec.encoding(pixels)
    return encoding, time.process_time() - start


def main() -> None:
    """Run all of it."""
    options = parser(__doc__)
    options.add_argument("pictures", nargs="+", help="files or folders")
    args = options.parse_args()
    torch.set_num_threads(1)
    codec = gic.load(device=args.device, threads=1)
    limits = dict(skipped.LIMITS)
    found: dict[str, dict[str, dict[str, float]]] = {}
    for path in find_images(args.pictures):
        colour = load_rgb(path).image
        grey = to_tensor(colour.convert("L").convert("RGB"))
        rows = found[Path(path).stem] = {}
        for name in ("without", "with"):
            skipped.LIMITS.update(dict.fromkeys(limits, float("inf")) if name == "without" else limits)
            _, of_colour = seconds_of_analysis(codec, to_tensor(colour))
            encoding, seconds = seconds_of_analysis(codec, grey)
            data = encoding.compress(q=1.0)
            error = (codec.decompress_tensor(data, realism=0.0).float() - grey.float()).square()
            rows[name] = {
                "bytes": len(data),
                "psnr": float(10 * torch.log10(255**2 / error.mean())),
                "worst_block": float(F.avg_pool2d(error.mean(0)[None, None], 16).sqrt().max()),
                "seconds": seconds,
                "seconds_in_colour": of_colour,
            }
        print(path.stem, rows, flush=True)
    changed = [name for name, rows in found.items() if rows["with"]["bytes"] != rows["without"]["bytes"]]
    columns = ("picture", "PSNR", "with", "worst block", "with", "bytes", "with", "s", "with")
    keys = ("psnr", "worst_block", "bytes", "seconds")
    table = [(name, *(found[name][way][key] for key in keys for way in ("without", "with"))) for name in changed]
    show(f"{len(changed)} of {len(found)} grey pictures changed, q = 1, r = 0", columns, table)
    about = machine(args.device) | {"timing": "CPU time of one thread, each once"}
    save({"machine": about, "changed": changed, "pictures": found}, args.output)


if __name__ == "__main__":
    main()
