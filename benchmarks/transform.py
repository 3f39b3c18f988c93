"""What the last steps of the lapped transform are worth: bits and quality of the linear codec alone, nothing trained.

python benchmarks/transform.py photos/val-000000.tar --output benchmarks/results/transform.json

Coefficients are rounded to multiples of q and counted by the entropy of each channel over all images (the means of
blocks by their place among 4 x 4): a coder without any model of its neighbours. Variants, each with the one before:
`blocks`, the lapped transform of 16 x 16 blocks; `means`, their means transformed again; `scales`, finer steps for
coarse structure.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import bjontegaard
import torch
from torch import Tensor

from gic.data.stream import EvalImages
from gic.models.lapped import LappedTransform
from gic.models.lot import SUPER_BLOCK
from gic.pictures.tensors import as_float
from gic.quality.metrics import make_metrics

LEVELS = (1.4, 2.0, 2.8, 4.0, 5.7, 8.0, 11.3, 16.0)
GAIN = 8.0


def entropy(symbols: Tensor) -> float:
    """Empirical entropy of all elements, in bits in sum."""
    _, counts = torch.unique(symbols, return_counts=True)
    p = counts / counts.sum()
    return float(-(p * p.log2()).sum()) * symbols.numel()


def bits(symbols: Tensor, means: list[int]) -> float:
    """Bits of (B, M, h, w), the channels ``means`` by the place of an element among 4 x 4."""
    total = 0.0
    for channel in range(symbols.shape[1]):
        parts = [symbols[:, channel]]
        if channel in means:
            places = [(i, j) for i in range(SUPER_BLOCK) for j in range(SUPER_BLOCK)]
            parts = [parts[0][:, i::SUPER_BLOCK, j::SUPER_BLOCK] for i, j in places]
        total += sum(entropy(part) for part in parts)
    return total


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("images", help="folder, image or shard")
    parser.add_argument("--limit", type=int, default=16)
    parser.add_argument("--side", type=int, default=384, help="side of the corner of each image that is measured")
    parser.add_argument("--output", type=Path, required=True)
    args = parser.parse_args()

    items = EvalImages(args.images, limit=args.limit)
    x = torch.stack([as_float(item["image"][:, : args.side, : args.side]) for item in items])
    metrics, _, _ = make_metrics(["psnr", "ms_ssim"], None, "cpu")
    transform = LappedTransform(256)
    y = GAIN * transform(x - 0.5)
    tiles = args.side // 16 // SUPER_BLOCK
    scale = transform.scale[:, None, None].repeat(1, 4 * tiles, 4 * tiles)
    scale[transform.means] = transform.coarse_scale.repeat(1, tiles, tiles)

    def blocks(q: float) -> tuple[Tensor, float]:
        k = torch.round(transform.spread(y) / q)
        return transform.gather(k * q), bits(k, [])

    def means(q: float) -> tuple[Tensor, float]:
        k = torch.round(y / scale / q)
        return k * scale * q, bits(k, transform.means)

    def scales(q: float) -> tuple[Tensor, float]:
        k = torch.round(y / q)
        return k * q, bits(k, transform.means)

    curves: dict[str, list[dict[str, float]]] = {}
    for variant in (blocks, means, scales):
        curves[variant.__name__] = points = []
        for q in LEVELS:
            y_hat, size = variant(q)
            x_hat = ((transform.inverse(y_hat / GAIN) + 0.5).clamp(0, 1) * 255).round().to(torch.uint8)
            pairs = list(zip(x_hat, (x * 255).round().to(torch.uint8), strict=True))
            values = {m.info.name: sum(float(m(a, b)) for a, b in pairs) / len(pairs) for m in metrics}
            points.append({"q": q, "bits_per_pixel": size / (len(x) * args.side**2), **values})
            print(variant.__name__, {name: round(value, 4) for name, value in points[-1].items()}, flush=True)
    rates = {
        f"{name}, {metric}": bjontegaard.bd_rate(
            *[[p[key] for p in curves[curve]] for curve in ("blocks", name) for key in ("bits_per_pixel", metric)],
            method="pchip",
            require_matching_points=False,
            min_overlap=0,
        )
        for name in ("means", "scales")
        for metric in ("psnr", "ms_ssim")
    }
    print("BD-rate against blocks, %:", {name: round(value, 1) for name, value in rates.items()})
    args.output.write_text(json.dumps({"bd_rate_percent": rates, "curves": curves}, indent=1) + "\n")


if __name__ == "__main__":
    main()
