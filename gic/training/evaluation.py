"""Measuring a codec by ideal code length while it trains: bits per pixel and metrics at several levels.

Bits per pixel are bits over the pixels of the original image, padding not counted (DESIGN 10).
"""

from __future__ import annotations

import itertools
import json
import math
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from rich.console import Console
from rich.table import Table
from torch import Tensor
from torch.nn import functional as F

from gic.errors import ConfigError, GicError
from gic.files import write_bytes
from gic.models.codec import Codec
from gic.pictures.tensors import to_tensor
from gic.quality.metric import FAILURES, ImageMetric, SetMetric
from gic.quality.metrics import higher_better
from gic.quality.table import METRICS, Tolerance

BEFORE = "before.json"
"""File with the validation before the first step, in a run's folder of results."""
GRID_SIDE = 192
"""Side of the square windows in the grid picture, in pixels."""


class LevelResult(NamedTuple):
    """Measurements of one image, or their mean, at one level and realism.

    Attributes:
        key: Name of the image, or ``mean``.
        q: Quantisation step.
        realism: r in [0, 1].
        bits_per_pixel: Ideal code length over the original's pixels.
        metrics: Values by name of the metric; None for images that it is not defined for. Metrics of all images
            together have a value only in the mean.
        n: In a mean, the number of images that a metric is defined for, where it is not all of them.
    """

    key: str
    q: float
    realism: float
    bits_per_pixel: float
    metrics: Mapping[str, float | None]
    n: Mapping[str, int] = {}


class Features(NamedTuple):
    """Features of one image's patches, for metrics of all images together.

    Attributes:
        key: Name of the image.
        original: Features (patches, D) of the original by their identity.
        decoded: Features of the reconstructions by identity, q and realism.
    """

    key: str
    original: Mapping[str, NDArray[np.float32]]
    decoded: Mapping[tuple[str, float, float], NDArray[np.float32]]


@torch.no_grad()
def evaluate_image(
    codec: Codec,
    x: Tensor,
    key: str,
    levels: Sequence[float],
    realism: Sequence[float],
    metrics: Sequence[ImageMetric],
    seed: int = 0,
) -> tuple[list[LevelResult], dict[tuple[float, float], Tensor]]:
    """Code and decode one image at each level.

    Args:
        codec: The model, in evaluation mode.
        x: Image (3, H, W), uint8, any size, on the codec's device.
        key: Its name.
        levels: Levels q.
        realism: Values of r.
        metrics: What is measured, after rounding to 8 bit.
        seed: Seed of dither and of stochastic samplers, so that a result does not depend on other images.

    Returns:
        One result for each level and realism, and the reconstructions, like ``x``, by (q, r).
    """
    height, width = x.shape[-2:]
    latents = codec.compressor.analyse(codec.pad(x[None].float() / 255))
    results, pictures = [], {}
    for q in levels:
        step = torch.tensor([q], device=x.device)
        y_q = codec.to_level(latents, step, torch.Generator(x.device).manual_seed(seed))
        bits = float(codec.bits(latents, step, y_q))
        for r in realism:
            noise = torch.Generator(x.device).manual_seed(seed + 1)
            y_hat = codec.restore(latents, y_q, step, realism=r, generator=noise)
            x_hat = codec.compressor.synthesise(y_hat, r)[0, :, :height, :width].clamp(0, 1)
            pictures[q, r] = x_hat = torch.round(x_hat * 255).to(torch.uint8)
            values = {metric.info.name: metric(x_hat, x) for metric in metrics}
            results.append(LevelResult(key, q, r, bits / (height * width), values))
    return results, pictures


def mean_by_level(results: Sequence[LevelResult]) -> list[LevelResult]:
    """Means over the images at each level and realism, ordered by q and r; every image counts once.

    A metric's mean is over the images that it is defined for, and their number is noted if it is not all.
    """

    def cell(result: LevelResult) -> tuple[float, float]:
        return result.q, result.realism

    means = []
    for (q, r), group in itertools.groupby(sorted(results, key=lambda x: (cell(x), x.key)), key=cell):
        rows = list(group)
        values = {n: [v for row in rows if (v := row.metrics[n]) is not None] for n in rows[0].metrics}
        metrics = {name: sum(defined) / len(defined) if defined else None for name, defined in values.items()}
        fewer = {name: len(defined) for name, defined in values.items() if 0 < len(defined) < len(rows)}
        means.append(LevelResult("mean", q, r, sum(row.bits_per_pixel for row in rows) / len(rows), metrics, fewer))
    return means


def extract_features(
    key: str, x: Tensor, pictures: Mapping[tuple[float, float], Tensor], metrics: Sequence[SetMetric]
) -> Features:
    """Features of an image and of its reconstructions, each computed once for all metrics that share them.

    Args:
        key: Name of the image.
        x: Original (3, H, W), uint8.
        pictures: Reconstructions by (q, r), like ``x``.
        metrics: Metrics of all images together.
    """
    extractors = {metric.features_identity: metric.features for metric in metrics}
    decoded = {(name, q, r): of(picture) for name, of in extractors.items() for (q, r), picture in pictures.items()}
    return Features(key, {name: of(x) for name, of in extractors.items()}, decoded)


def with_set_metrics(
    means: Sequence[LevelResult], features: Sequence[Features], metrics: Sequence[SetMetric]
) -> list[LevelResult]:
    """Add the values of metrics of all images together to the means.

    Args:
        means: Means over the images at each level and realism.
        features: Features of the same images, in any order.
        metrics: The metrics.

    Returns:
        The means with the values; None for all where the images have fewer than two patches or the computation fails.
    """
    images = sorted(features, key=lambda image: image.key)
    enriched = []
    for mean in means:
        values: dict[str, float | None] = {}
        for metric in metrics:
            name = metric.features_identity
            x = np.concatenate([image.original[name] for image in images])
            x_hat = np.concatenate([image.decoded[name, mean.q, mean.realism] for image in images])
            try:
                value = metric.value(x_hat, x) if len(x) > 1 else math.nan
            except FAILURES:
                value = math.nan
            values[metric.info.name] = value if math.isfinite(value) else None
        enriched.append(mean._replace(metrics={**mean.metrics, **values}))
    return enriched


def print_table(means: Sequence[LevelResult], title: str, before: Sequence[LevelResult] = ()) -> None:
    """Print the means as a table, one row for each level and realism.

    Args:
        means: Means.
        title: Heading.
        before: Earlier means, printed in front of the others: ``30.12 -> 30.45``.
    """
    earlier = {(m.q, m.realism): m for m in before}
    names = list(means[0].metrics) if means else []
    table = Table(title=title)
    for heading in ("q", "r", "bits per pixel", *names):
        table.add_column(heading, justify="right")
    for m in sorted(means, key=lambda m: (m.q, m.realism)):
        old = earlier.get((m.q, m.realism))
        cells = [_change(None if old is None else old.bits_per_pixel, m.bits_per_pixel)]
        for name in names:
            few = f" (n = {m.n[name]})" if name in m.n else ""
            cells.append(_change(None if old is None else old.metrics.get(name), m.metrics[name]) + few)
        table.add_row(f"{m.q:g}", f"{m.realism:g}", *cells)
    Console().print(table)


JUDGES: Mapping[str, Tolerance] = {name: m.tolerance for name, m in METRICS.items() if m.tolerance is not None}
"""Metrics of how pictures look. Those that are not in the loss check the effect of the loss.

PSNR and MS-SSIM are not among them, since perception is known to cost distortion. The same images are measured before
and after, so that the bounds cover the variation between validations, not between images.
"""
IMPROVED = 0.01
"""Relative improvement of a metric of the loss above which the other metrics are compared."""


def gaming(
    before: Sequence[LevelResult], after: Sequence[LevelResult], trained: Sequence[str] = ("lpips_alex",)
) -> list[str]:
    """Find where metrics in the loss got better while metrics outside the loss got clearly worse.

    Args:
        before: Earlier means.
        after: Later means.
        trained: Metrics in the loss.

    Returns:
        A line for each level, realism above 0 and metric that got worse.

    Raises:
        ConfigError: If there is no metric of a name in ``trained``.
        MissingExtraError: If the direction of a metric needs a package that is missing.
    """

    def gain(name: str, old: LevelResult, new: LevelResult) -> float:
        """How much better a metric got, in its unit; 0 where it was not measured, or over other images."""
        first, last = old.metrics.get(name), new.metrics.get(name)
        if first is None or last is None or old.n.get(name) != new.n.get(name):
            return 0.0
        return last - first if higher_better(name) else first - last

    def change(name: str, old: LevelResult, new: LevelResult) -> str:
        return f"{name} {_change(old.metrics[name], new.metrics[name])}"

    earlier = {(m.q, m.realism): m for m in before}
    lines = []
    for new in sorted(after, key=lambda m: (m.q, m.realism)):
        old = earlier.get((new.q, new.realism))
        if old is None or new.realism <= 0:
            continue
        better = [name for name in trained if gain(name, old, new) > IMPROVED * abs(old.metrics.get(name) or 0.0)]
        for name, tolerance in JUDGES.items():
            if not better or name in trained:
                continue
            bound = max(tolerance.relative * abs(old.metrics.get(name) or 0.0), tolerance.absolute)
            if -gain(name, old, new) > bound:
                won = ", ".join(change(metric, old, new) for metric in better)
                lines.append(f"q {new.q:g}, r {new.realism:g}: {won} got better, {change(name, old, new)} got worse")
    return lines


def print_changes(
    before: Sequence[LevelResult], after: Sequence[LevelResult], title: str, trained: Sequence[str]
) -> None:
    """Print later means beside earlier ones, and a warning if :func:`gaming` finds anything.

    Args:
        before: Earlier means.
        after: Later means.
        title: Heading of the table.
        trained: Metrics in the loss.
    """
    print_table(after, title, before)
    lines = gaming(before, after, trained)
    if lines:
        print("WARNING: metrics in the loss got better, and metrics outside the loss got worse:")
        print("\n".join(f"  {line}" for line in lines))
        print(
            "The codec may be gaming its loss: a lower loss without better pictures. Look at the grids, and try less "
            "weight for the perceptual term or an earlier checkpoint."
        )


def _change(before: float | None, now: float | None) -> str:
    def text(value: float) -> str:
        return f"{value:.2f}" if abs(value) >= 10 else f"{value:.4f}"

    if now is None:
        return "n/a"
    return text(now) if before is None else f"{text(before)} -> {text(now)}"


def save_json(path: Path, results: Sequence[LevelResult], means: Sequence[LevelResult], about: dict[str, Any]) -> None:
    """Write per-image values and means, whole or not at all."""
    from gic.version import __version__

    def flat(result: LevelResult) -> dict[str, Any]:
        row = result._asdict()
        few = {f"n_{name}": number for name, number in row.pop("n").items()}
        return {**row, **row.pop("metrics"), **few}

    data = {
        "gic": __version__,
        "rate": "ideal code length",
        **about,
        "mean": [flat(m) for m in means],
        "images": [flat(r) for r in results],
    }
    write_bytes(path, (json.dumps(data, indent=1) + "\n").encode())


def load_means(path: Path) -> list[LevelResult]:
    """Means of a file that :func:`save_json` has written.

    Raises:
        ConfigError: If it is another file.
    """
    try:
        rows = json.loads(path.read_text())["mean"]
        return [
            LevelResult(
                **{name: row[name] for name in LevelResult._fields if name != "n"},
                n={name: row[f"n_{name}"] for name in row["metrics"] if f"n_{name}" in row},
            )
            for row in rows
        ]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"{path} is no file of validation results: {error}") from error


def trained_on(path: Path) -> list[str]:
    """Metrics in the loss of the run that wrote a file of validation results; LPIPS if the file does not list them."""
    return list(json.loads(path.read_text()).get("trained_on", ["lpips_alex"]))


def newest_results(run: Path) -> Path:
    """File of the last validation of a run, given its folder.

    Raises:
        ConfigError: If there is none.
    """
    files = sorted((run / "results").glob("val-*.json"), key=lambda path: path.stat().st_mtime_ns)
    if not files:
        raise ConfigError(f"there are no validation results in {run / 'results'}")
    return files[-1]


def grid_picture(x: Tensor, results: Sequence[LevelResult], pictures: dict[tuple[float, float], Tensor]) -> Tensor:
    """Original, then each reconstruction from the coarsest level to the finest, next to each other and labelled.

    Args:
        x: Original (3, H, W), uint8.
        results: Measurements of the reconstructions.
        pictures: Reconstructions by (q, r), like ``x``.

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
        window = tile[:, top : top + h, left : left + w].float().cpu() / 255
        columns.append(F.pad(torch.cat([_label(label, w), window], dim=1), (0, 4), value=1.0))
    return torch.cat(columns, dim=-1)


def _label(text: str, width: int) -> Tensor:
    """A line of text, black on white, (3, 16, width)."""
    strip = Image.new("RGB", (width, 16), "white")
    ImageDraw.Draw(strip).text((1, 2), text, fill="black")
    return to_tensor(strip).float() / 255


def main(argv: Sequence[str]) -> int:
    """Print the last validation of a run beside its first, or beside the first of an earlier run.

    Args:
        argv: Folder of the first run and, if it is another one, of the last run.
    """
    if len(argv) not in (1, 2):
        print("usage: python -m gic.training.evaluation FIRST_RUN [LAST_RUN]", file=sys.stderr)
        return 2
    try:
        before = load_means(Path(argv[0]) / "results" / BEFORE)
        last = newest_results(Path(argv[-1]))
        print_changes(before, load_means(last), f"{argv[0]} -> {argv[-1]}", trained_on(last))
    except GicError as error:
        print(f"gic.training.evaluation: {error}", file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
