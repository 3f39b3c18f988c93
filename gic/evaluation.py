"""Measuring a codec by ideal code length: bits per pixel, PSNR and MS-SSIM at several levels.

Bits per pixel are bits over the pixels of the original image, padding not counted (DESIGN 10).
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from PIL import Image, ImageDraw
from rich.console import Console
from rich.table import Table
from torch import Tensor
from torch.nn import functional as F

from gic.errors import require
from gic.files import write_bytes
from gic.images import to_tensor
from gic.losses import psnr
from gic.model import Codec

MS_SSIM_MIN_SIDE = 161
"""Smallest side for which MS-SSIM with five scales and 11 x 11 windows is defined, in pixels."""


GRID_SIDE = 192
"""Side of the square windows in the grid picture, in pixels."""


class LevelResult(NamedTuple):
    """Measurements of one image, or their mean, at one level and realism.

    Attributes:
        key: Name of the image, or ``mean``.
        q: Quantisation step.
        realism: r in [0, 1].
        bits_per_pixel: Ideal code length over the original's pixels.
        psnr: In dB, RGB, after rounding to 8 bit.
        ms_ssim: In [0, 1]; None for images too small for it.
    """

    key: str
    q: float
    realism: float
    bits_per_pixel: float
    psnr: float
    ms_ssim: float | None


def ms_ssim(x_hat: Tensor, x: Tensor) -> float | None:
    """MS-SSIM of one image (1, 3, H, W) in [0, 1] after rounding to 8 bit; None if it is too small."""
    if min(x.shape[-2:]) < MS_SSIM_MIN_SIDE:
        return None
    metric = require("torchmetrics.functional.image").multiscale_structural_similarity_index_measure
    rounded = torch.round(x_hat.clamp(0, 1) * 255) / 255
    return float(metric(rounded, x, data_range=1.0))


@torch.no_grad()
def evaluate_image(
    codec: Codec, x: Tensor, key: str, levels: Sequence[float], realism: Sequence[float], seed: int = 0
) -> tuple[list[LevelResult], dict[tuple[float, float], Tensor]]:
    """Take one image to each level and back.

    Args:
        codec: The model, in evaluation mode.
        x: Image (1, 3, H, W) in [0, 1], any size.
        key: Its name.
        levels: Levels q.
        realism: Values of r.
        seed: Seed of dither and of stochastic samplers, so that a result does not depend on other images.

    Returns:
        One result for each level and realism, and the reconstructions (1, 3, H, W) in [0, 1] by (q, r).
    """
    height, width = x.shape[-2:]
    latents = codec.compressor.analyse(codec.pad(x))
    results, pictures = [], {}
    for q in levels:
        step = torch.tensor([q], device=x.device)
        y_q = codec.to_level(latents, step, torch.Generator(x.device).manual_seed(seed))
        bits = float(codec.bits(latents, step, y_q))
        for r in realism:
            noise = torch.Generator(x.device).manual_seed(seed + 1)
            y_hat = codec.restore(latents, y_q, step, realism=r, generator=noise)
            x_hat = codec.compressor.synthesise(y_hat)[..., :height, :width].clamp(0, 1)
            pictures[q, r] = x_hat
            results.append(LevelResult(key, q, r, bits / (height * width), float(psnr(x_hat, x)), ms_ssim(x_hat, x)))
    return results, pictures


def mean_by_level(results: Sequence[LevelResult]) -> list[LevelResult]:
    """Means over the images at each level and realism, ordered by q and r; every image counts once."""

    def cell(result: LevelResult) -> tuple[float, float]:
        return result.q, result.realism

    means = []
    for (q, r), group in itertools.groupby(sorted(results, key=lambda x: (cell(x), x.key)), key=cell):
        rows = list(group)
        defined = [row.ms_ssim for row in rows if row.ms_ssim is not None]
        means.append(
            LevelResult(
                "mean",
                q,
                r,
                sum(row.bits_per_pixel for row in rows) / len(rows),
                sum(row.psnr for row in rows) / len(rows),
                sum(defined) / len(defined) if len(defined) == len(rows) else None,
            )
        )
    return means


def print_table(means: Sequence[LevelResult], title: str) -> None:
    """Print the means as a table, one row for each level."""
    realism = sorted({m.realism for m in means})
    table = Table(title=title)
    table.add_column("q", justify="right")
    table.add_column("bits per pixel", justify="right")
    for r in realism:
        table.add_column(f"PSNR dB (r={r:g})", justify="right")
        table.add_column(f"MS-SSIM (r={r:g})", justify="right")
    by_cell = {(m.q, m.realism): m for m in means}
    for q in sorted({m.q for m in means}):
        row = [f"{q:g}", f"{by_cell[q, realism[0]].bits_per_pixel:.4f}"]
        for r in realism:
            m = by_cell[q, r]
            row += [f"{m.psnr:.2f}", "n/a" if m.ms_ssim is None else f"{m.ms_ssim:.4f}"]
        table.add_row(*row)
    Console().print(table)


def save_json(path: Path, results: Sequence[LevelResult], means: Sequence[LevelResult], about: dict[str, Any]) -> None:
    """Write per-image values and means, whole or not at all."""
    from gic import __version__

    data = {
        "gic": __version__,
        "rate": "ideal code length",
        **about,
        "mean": [m._asdict() for m in means],
        "images": [r._asdict() for r in results],
    }
    write_bytes(path, (json.dumps(data, indent=1) + "\n").encode())


def grid_picture(x: Tensor, results: Sequence[LevelResult], pictures: dict[tuple[float, float], Tensor]) -> Tensor:
    """Original, then each reconstruction from the coarsest level to the finest, next to each other and labelled.

    Args:
        x: Original (1, 3, H, W).
        results: Measurements of the reconstructions.
        pictures: Reconstructions by (q, r).

    Returns:
        Picture (3, h, w) on the CPU, float32 in [0, 1].
    """
    height, width = x.shape[-2:]
    h, w = min(GRID_SIDE, height), min(GRID_SIDE, width)
    top, left = (height - h) // 2, (width - w) // 2
    tiles = {"original": x}
    for cell in sorted(results, key=lambda result: (-result.q, result.realism)):
        label = f"q {cell.q:g}, r {cell.realism:g}: {cell.bits_per_pixel:.3f} bpp"
        tiles[label] = pictures[cell.q, cell.realism]
    columns = []
    for label, tile in tiles.items():
        window = tile[0, :, top : top + h, left : left + w].float().cpu()
        columns.append(F.pad(torch.cat([_label(label, w), window], dim=1), (0, 4), value=1.0))
    return torch.cat(columns, dim=-1)


def _label(text: str, width: int) -> Tensor:
    """A line of text, black on white, (3, 16, width)."""
    strip = Image.new("RGB", (width, 16), "white")
    ImageDraw.Draw(strip).text((1, 2), text, fill="black")
    return to_tensor(strip).float() / 255
