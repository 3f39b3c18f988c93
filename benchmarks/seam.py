"""Whether tiles show: the error at tile borders against elsewhere, coded in tiles and in one piece.

    python benchmarks/seam.py --images kodak [--tile 256] [--output seam.json]

Mean absolute error of the reconstruction (r = 0, 8-bit steps) within 32 pixels of the inner tile borders and elsewhere,
and the mean step between the two pixels on either side of a border, over the same step in the original.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch
from rich.progress import track

import gic
from gic.codec.image_codec import ImageCodec
from gic.pictures.find import find_images
from gic.pictures.load import load_rgb
from gic.pictures.tensors import to_tensor


def near_borders(height: int, width: int, tile: int) -> torch.Tensor:
    """Pixels within 32 of an inner tile border, bool (height, width)."""

    def near(count: int) -> torch.Tensor:
        at = torch.arange(count)
        borders = torch.arange(tile, count, tile)
        return ((at[:, None] - borders[None, :] + 0.5).abs() < 32).any(dim=1)

    return near(height)[:, None] | near(width)[None, :]


def steps(x: torch.Tensor, tile: int) -> float:
    """Mean step across the inner tile borders, in 8-bit steps."""
    rows = [(x[:, b] - x[:, b - 1]).abs().mean() for b in range(tile, x.shape[1], tile)]
    columns = [(x[:, :, b] - x[:, :, b - 1]).abs().mean() for b in range(tile, x.shape[2], tile)]
    return float(torch.stack(rows + columns).mean())


def measure(codec: ImageCodec, path: Path, q: float, tile: int) -> dict[str, float]:
    """Errors of one picture."""
    original = to_tensor(load_rgb(path).image)
    near = near_borders(original.shape[1], original.shape[2], tile)
    found = {}
    for name, side in (("tiled", tile), ("whole", 0)):
        x_hat = codec.decompress_tensor(codec.compress(original, q=q, tile=side), realism=0.0).float()
        error = (x_hat - original.float()).abs().mean(dim=0)
        found[f"{name}_error_near"] = float(error[near].mean())
        found[f"{name}_error_elsewhere"] = float(error[~near].mean())
        found[f"{name}_step"] = steps(x_hat, tile) / steps(original.float(), tile)
    return found


def main() -> None:
    """Run over a folder."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", required=True, nargs="+", help="files or folders")
    parser.add_argument("--weights", default="shipped", help="a file or a name (default: those that ship)")
    parser.add_argument("--tile", type=int, default=256)
    parser.add_argument("--q", type=float, default=2.0)
    parser.add_argument("--output")
    args = parser.parse_args()
    codec = gic.load(args.weights)
    rows = [measure(codec, path, args.q, args.tile) for path in track(find_images(args.images))]
    means = {key: round(sum(row[key] for row in rows) / len(rows), 4) for key in rows[0]}
    report = {"pictures": len(rows), "q": args.q, "tile": args.tile, "model": codec.model_id.hex(), **means}
    print(json.dumps(report, indent=1))
    if args.output:
        Path(args.output).write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
