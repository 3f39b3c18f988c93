"""What the distribution of y about mu is worth: bits of the same symbols with Gaussian and with Laplace tables.

python benchmarks/priors.py ~/kodak --weights small-0.4.safetensors --output benchmarks/results/priors.json

The weights stay as they are, mu and sigma among them: they were trained for one of the two.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from measuring import save
from rich.progress import track

import gic
from gic.bitstream.coder import EntropyCoder, level_code, level_value
from gic.bitstream.tables import FIRST
from gic.pictures.find import find_images
from gic.pictures.load import load_rgb
from gic.pictures.tensors import as_float, to_tensor

LEVELS = (1.0, 2.0, 4.0, 8.0, 16.0)


def bits(codec: gic.ImageCodec, path: Path) -> dict[str, list[float]]:
    """Bits of a picture at each level, z and y together, with each distribution."""
    x = as_float(to_tensor(load_rgb(path).image))[None]
    multiple = 64
    height, width = (side // multiple * multiple for side in x.shape[-2:])
    y = codec.networks.analysis(np.ascontiguousarray(x[..., :height, :width].numpy()))
    z = np.rint(codec.networks.hyper_analysis(y)).astype(np.int32)
    found: dict[str, list[float]] = {}
    for name in FIRST:
        coder = EntropyCoder(codec.networks.about.entropy_model._replace(prior=name), codec.networks.product)
        prior = coder.prior(z)
        for level in LEVELS:
            code = level_code(level)
            symbols = np.rint((y - prior.mu) / level_value(code)).astype(np.int32)
            symbols[~coder.coded_mask(prior, code, False)] = 0
            found.setdefault(name, []).append(coder.bits_z(z) + coder.bits_y(symbols, prior, code))
    return found


def main() -> None:
    """Measure a folder."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pictures", nargs="+", help="files or folders")
    parser.add_argument("--weights", default="shipped", help="a file or a name (default: those that ship)")
    parser.add_argument("--output", help="JSON file to write")
    args = parser.parse_args()
    codec = gic.load(args.weights, runtime="onnx")
    found = [bits(codec, Path(path)) for path in track(find_images(args.pictures))]
    totals = {name: [sum(each[name][i] for each in found) for i in range(len(LEVELS))] for name in FIRST}
    changes = [b / a - 1 for a, b in zip(totals["gaussian"], totals["laplace"], strict=True)]
    for level, change in zip(LEVELS, changes, strict=True):
        print(f"q = {level:g}: {100 * change:+.1f} % of the bits with Laplace tables, {len(found)} pictures")
    if args.output:
        about = {"model": codec.model_id.hex(), "trained for": codec.networks.about.entropy_model.prior}
        save({**about, "pictures": len(found), "levels": list(LEVELS), "laplace beside gaussian": changes}, args.output)


if __name__ == "__main__":
    main()
