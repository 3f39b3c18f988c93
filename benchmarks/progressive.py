r"""Progressive files of pictures beside plain ones: sizes, pixels at the levels, PSNR between them.

python benchmarks/progressive.py ~/kodak --json docs/results/progressive-kodak.json \
    --figure docs/images/progressive-kodak.png

For every picture: the whole file at the step ``--q`` and its first bytes up to each level, beside the plain file there;
PSNR at r = 0 of cuts between two levels beside the curve of plain files at the same bytes; and the largest fall of PSNR
from one cut to the next. ``--orders`` also measures other orders of the elements, on the first pictures.
"""

from __future__ import annotations

import argparse
import json
import math
from itertools import pairwise
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from rich.progress import track

import gic
from gic.benchmark.palette import GREYS, STRONG
from gic.bitstream.refinement import STEP, Refinement
from gic.pictures.find import find_images
from gic.pictures.load import load_rgb
from gic.pictures.tensors import to_tensor

PLAIN, CUTS, LENGTHS = 6, 5, 40
"""Plain files and cuts for each pair of levels, and lengths of a file of which each is decoded."""


def by_sigma(self: Refinement, ratio: Any, *rest: Any) -> None:
    """Largest sigma first."""
    _set_order(self, (ratio, *rest), ratio.ravel())


def by_rank(self: Refinement, ratio: Any, *rest: Any) -> None:
    """The order of y: low frequencies first."""
    _set_order(self, (ratio, *rest), -np.arange(ratio.size))


def unweighted(self: Refinement, ratio: Any, coarse: Any, known: Any, coded: Any, importance: Any, *rest: Any) -> None:
    """Squared error of y saved per bit."""
    _built(self, ratio, coarse, known, coded, np.zeros_like(importance), *rest)


_built = Refinement.__init__
ORDERS = {
    "error of the picture per bit": _built,
    "error of y per bit": unweighted,
    "sigma": by_sigma,
    "frequency": by_rank,
}


def _set_order(self: Refinement, arguments: tuple[Any, ...], value: np.ndarray) -> None:
    """Build a refinement whose elements are sorted by ``value``."""
    _built(self, *arguments)
    again = np.argsort(-value[self.order], kind="stable")
    for name in ("order", "_known", "_table", "_coarse", "_sign"):
        setattr(self, name, getattr(self, name)[again])
    self.value = -np.arange(len(self))  # keeps the chunks in this order


class Picture:
    """A picture, and what files of it are worth."""

    def __init__(self, codec: gic.ImageCodec, path: Path) -> None:
        self.codec = codec
        self.pixels = to_tensor(load_rgb(path).image)
        self.plain = codec.encoding(self.pixels, quantizer="round")
        self.progressive = codec.encoding(self.pixels, progressive=True)

    def psnr(self, data: bytes) -> float:
        """PSNR of a file at r = 0, in dB."""
        error = self.codec.decompress_tensor(data, realism=0.0).double() - self.pixels
        return 10 * math.log10(255**2 / float(error.square().mean()))

    def curve(self, code: int, refinements: int) -> tuple[list[int], list[float]]:
        """Bytes and PSNR of plain files from the coarsest level of a progressive file to its finest, ascending."""
        codes = [code + round(STEP * n / PLAIN) for n in range(refinements * PLAIN, -1, -1)]
        files = [self.plain.at(each) for each in codes]
        return [len(data) for data in files], [self.psnr(data) for data in files]

    def losses(self, data: bytes, ends: list[int], curve: tuple[list[int], list[float]]) -> list[dict[str, float]]:
        """PSNR of cuts between levels, beside that of plain files of the same size."""
        found = []
        for start, end in pairwise(ends):
            for share in np.arange(1, CUTS + 1) / (CUTS + 1):
                size = round(start ** (1 - share) * end**share)
                psnr = self.psnr(data[:size])
                plain = float(np.interp(math.log(size), np.log(curve[0]), curve[1]))
                found.append({"bytes": size, "psnr": round(psnr, 3), "plain_psnr": round(plain, 3)})
        return found


def measure(codec: gic.ImageCodec, path: Path, q: float) -> dict[str, Any]:
    """All of one picture."""
    picture = Picture(codec, path)
    data = picture.progressive.compress(q=q)
    file = codec.open(data)
    assert file.progressive is not None
    refinements, ends = file.progressive.refinements, [file.progressive.start, *file.progressive.ends]
    curve = picture.curve(file.code, refinements)
    levels = []
    for n, (end, level) in enumerate(zip(ends, file.levels, strict=True)):
        plain = picture.plain.at(file.code + STEP * (refinements - n))
        pixels = [codec.decompress_tensor(each, realism=0.0) for each in (data[:end], plain)]
        levels.append(
            {
                "q": round(level, 3),
                "bytes": end,
                "plain_bytes": len(plain),
                "pixels_that_differ": int((pixels[0] != pixels[1]).any(0).sum()),
            }
        )
    sizes = np.geomspace(ends[0], len(data), LENGTHS).astype(int).tolist()
    values = [picture.psnr(data[:size]) for size in sizes]
    return {
        "picture": path.name,
        "pixels": picture.pixels[0].numel(),
        "levels": levels,
        "between": picture.losses(data, ends, curve),
        "plain": [{"bytes": size, "psnr": round(psnr, 3)} for size, psnr in zip(*curve, strict=True)],
        "lengths": [{"bytes": size, "psnr": round(psnr, 3)} for size, psnr in zip(sizes, values, strict=True)],
        "largest_fall": round(max(0.0, *(a - b for a, b in pairwise(values))), 4),
    }


def orders(codec: gic.ImageCodec, path: Path, q: float) -> dict[str, list[float]]:
    """Loss in dB between levels for each order, from the coarsest to the finest."""
    picture = Picture(codec, path)
    file = codec.open(picture.progressive.compress(q=q))
    assert file.progressive is not None
    curve = picture.curve(file.code, file.progressive.refinements)
    losses = {}
    for name, order in ORDERS.items():
        with patch.object(Refinement, "__init__", order):
            data = picture.progressive.compress(q=q)
            ends = codec.open(data).progressive
            assert ends is not None
            found = picture.losses(data, [ends.start, *ends.ends], curve)
        losses[name] = [round(cut["plain_psnr"] - cut["psnr"], 3) for cut in found]
    return losses


def summary(pictures: list[dict[str, Any]]) -> dict[str, Any]:
    """Means and extremes over all pictures; sizes are relative to plain files, losses in dB."""
    ratios = np.array([[level["bytes"] / level["plain_bytes"] for level in p["levels"]] for p in pictures])
    losses = np.array([[cut["plain_psnr"] - cut["psnr"] for cut in p["between"]] for p in pictures])
    return {
        "pictures": len(pictures),
        "size_of_levels_mean": ratios.mean(0).round(4).tolist(),
        "size_of_levels_largest": ratios.max(0).round(4).tolist(),
        "levels_with_other_pixels": sum(level["pixels_that_differ"] > 0 for p in pictures for level in p["levels"]),
        "loss_between_mean": losses.mean(0).round(3).tolist(),
        "loss_between_largest_mean": round(float(losses.mean(0).max()), 3),
        "loss_between_largest": round(float(losses.max()), 3),
        "largest_fall": max(p["largest_fall"] for p in pictures),
    }


def draw(pictures: list[dict[str, Any]], path: Path) -> None:
    """Mean curves of cut progressive files and of plain ones."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(6.4, 4.2), layout="constrained")
    curves = (("plain", "plain files, one for each size", "o-", GREYS[0]), ("lengths", "one file, cut", "-", STRONG[0]))
    for key, label, style, colour in curves:
        bits = np.array([[8 * each["bytes"] / p["pixels"] for each in p[key]] for p in pictures]).mean(0)
        axes.plot(
            bits,
            np.array([[each["psnr"] for each in p[key]] for p in pictures]).mean(0),
            style,
            color=colour,
            label=label,
            ms=3,
        )
    ends = np.array([[8 * level["bytes"] / p["pixels"] for level in p["levels"]] for p in pictures]).mean(0)
    for end in ends:
        axes.axvline(end, color="0.8", zorder=0)
    axes.set(xscale="log", xlabel="bits per pixel", ylabel="PSNR at r = 0 in dB", title=f"{len(pictures)} pictures")
    axes.legend()
    figure.savefig(path, dpi=130)


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--q", type=float, default=1.0, help="finest step (default 1)")
    parser.add_argument("--first", type=int, help="only the first pictures")
    parser.add_argument("--orders", action="store_true", help="compare orders of the elements instead")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--figure", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(1)
    codec = gic.load(device="cpu")
    paths = find_images([args.folder])[: args.first]
    report: dict[str, Any] = {"model": codec.model_id.hex(), "gic": gic.__version__, "q": args.q}
    if args.orders:
        found = [orders(codec, path, args.q) for path in track(paths, description="orders")]
        means = {name: np.mean([each[name] for each in found], 0) for name in ORDERS}
        report["pictures"] = [path.name for path in paths]
        report["loss_between_mean"] = {name: values.round(3).tolist() for name, values in means.items()}
        report["loss_between_largest_mean"] = {name: round(float(values.max()), 3) for name, values in means.items()}
        print(json.dumps(report, indent=2))
    else:
        pictures: list[dict[str, Any]] = []
        for path in track(paths, description="pictures"):
            pictures.append(measure(codec, path, args.q))
            report |= {"summary": summary(pictures), "pictures": pictures}
            if args.json is not None:
                args.json.write_text(json.dumps(report, indent=1) + "\n")
        print(json.dumps(report["summary"], indent=2))
        if args.figure is not None:
            draw(pictures, args.figure)
    if args.json is not None:
        args.json.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
