"""Published rate points from a CSV file, to draw beside the measured ones.

Such points come from other programs, sometimes on other crops; they are drawn separately and never used in BD-rates.

A file has a line for each point. It must have the columns ``codec`` and ``bpp`` and at least one of :data:`METRICS`;
``dataset`` (a file without it is of one data set), ``images`` (the number that the point is a mean over), ``source``,
``file``, ``commit`` and ``protocol`` are optional.
Empty cells are values that were not published; other columns are not read.
"""

from __future__ import annotations

import csv
import io
import math
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import TypedDict

from gic.errors import DataError

METRICS: Mapping[str, str] = {
    "psnr": "psnr",
    "ms_ssim": "ms_ssim",
    "ssim": "ssim",
    "lpips": "lpips_alex",
    "dists": "dists",
    "fid": "fid",
    "kid": "kid",
    "fid768": "fid768",
}
"""Columns that are read, and the metrics of gic that they are drawn with.

LPIPS without a network's name is AlexNet's, as nearly everywhere. PSNR is in dB, MS-SSIM in [0, 1]; FID and KID are of
Inception's 2048 features, ``fid768`` of its 768. NIQE is left out: its implementations differ by a factor.
"""


class PublishedPoint(TypedDict):
    """One published point."""

    bits_per_pixel: float
    metrics: dict[str, float]
    """Values by the names of gic's metrics."""


class PublishedCurve(TypedDict):
    """Points of one codec on one data set from one source."""

    name: str
    """The codec, with its source if several sources have it."""
    source: str
    """Repository, file and commit, or else the CSV file."""
    note: str
    """How it was measured, as far as the file says."""
    images: int | None
    """Number of images that they are over, None if it is not known."""
    points: list[PublishedPoint]
    """By rising rate."""


SIZES: Mapping[str, int] = {"kodak": 24}
"""Images of data sets, for files without a column ``images``."""


def of_as_many(curves: Sequence[PublishedCurve], images: int) -> tuple[list[PublishedCurve], str]:
    """The curves that may be drawn beside means over so many images, and why the others may not.

    Returns:
        Curves over that number of images, or over an unknown one, and a sentence, empty if they are all.
    """
    others = [curve for curve in curves if curve["images"] not in (None, images)]
    if not others:
        return list(curves), ""
    sizes = " or ".join(map(str, sorted({curve["images"] or 0 for curve in others})))
    reason = f"{len(others)} of {len(curves)} published curves are over {sizes} images and this run over {images}"
    return [curve for curve in curves if curve not in others], f"{reason}: they are not drawn"


def read_published(path: Path, dataset: str = "kodak", codecs: Collection[str] | None = None) -> list[PublishedCurve]:
    """Read the curves of one data set.

    Args:
        path: CSV file.
        dataset: Name in the column ``dataset``.
        codecs: Names in the column ``codec``; all if left out.

    Returns:
        Curves in the order of the file.

    Raises:
        DataError: If the file cannot be read, lacks columns, has values that are not numbers, or has no points of the
            data set or of a codec.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path} cannot be read: {error}") from error
    reader = csv.DictReader(io.StringIO(text))
    columns = reader.fieldnames or []
    missing = [name for name in ("codec", "bpp") if name not in columns]
    if not set(METRICS) & set(columns):
        missing.append("any of " + ", ".join(METRICS))
    if missing:
        raise DataError(f"{path} lacks the column {missing[0]}" + "".join(f", and {name}" for name in missing[1:]))
    rows = [(reader.line_num, row) for row in reader]
    if "dataset" in columns:
        datasets = dict.fromkeys(row["dataset"] for _, row in rows)
        if dataset not in datasets:
            raise DataError(f"{path} has nothing of the data set {dataset!r}; it has {', '.join(datasets)}")
        rows = [(line, row) for line, row in rows if row["dataset"] == dataset]

    curves: dict[tuple[str, str, int | None], PublishedCurve] = {}
    for line, row in rows:
        name = row["codec"]
        if codecs is not None and name not in codecs:
            continue
        cells = {column: row[column] for column in ("bpp", "images", *METRICS) if row.get(column)}
        try:
            values = {column: float(cell) for column, cell in cells.items()}
        except ValueError as error:
            raise DataError(f"{path}, line {line}: {error}") from error
        rate = values.pop("bpp", 0.0)
        size = values.pop("images", float(SIZES.get(dataset.lower(), 0)) if "dataset" in columns else 0.0)
        images = int(size) if 0 < size < math.inf else None
        metrics = {METRICS[column]: value for column, value in values.items() if math.isfinite(value)}
        if rate <= 0 or not metrics:  # an upper bound without a rate, an original
            continue
        source = " ".join(part for key in ("source", "file", "commit") if (part := row.get(key))) or path.name
        empty = PublishedCurve(name=name, source=source, note=row.get("protocol") or "", images=images, points=[])
        curve = curves.setdefault((name, source, images), empty)
        curve["points"].append({"bits_per_pixel": rate, "metrics": metrics})
    absent = sorted(set(codecs or ()) - {name for name, *_ in curves})
    if absent:
        raise DataError(f"{path} has no points of {', '.join(absent)} for the data set {dataset!r}")
    times = Counter(name for name, *_ in curves)
    for (name, source, _), curve in curves.items():
        if times[name] > 1:
            curve["name"] = f"{name} ({source.split()[0].rsplit('/', 1)[-1]})"
        curve["points"].sort(key=lambda point: point["bits_per_pixel"])
    return list(curves.values())
