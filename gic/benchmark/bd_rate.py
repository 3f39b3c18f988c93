"""Bjøntegaard's rate difference: how many more or fewer bits a codec takes for the same value of a metric.

Both curves, means over the images, are read as log rate over the metric, interpolated by piecewise cubics that do not
overshoot (PCHIP, by the package ``bjontegaard``), and the difference is averaged over the values of the metric that
both reach; nothing is extrapolated.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from rich.console import Group
from rich.markup import escape
from rich.table import Table

from gic.benchmark.results import Curve, Results, common_images
from gic.errors import require
from gic.quality.metric import MetricInfo

MIN_POINTS = 4
"""Fewest points of a curve."""

MIN_OVERLAP = 0.3
"""Smallest part of the shorter of the two curves, in values of the metric, that the other must reach as well."""


@dataclass(frozen=True)
class BDRate:
    """Rate difference of one curve to another for one metric, or why there is none.

    Attributes:
        percent: Mean difference in bits for equal values of the metric, in %; -20 is a fifth fewer.
        reason: Why there is none; None if there is one.
        metric_range: Lowest and highest value of the metric that both curves reach; None if there is none.
        rate_range: Lowest and highest bits per pixel of the curves there.
        anchor_points: Points of the anchor in that range.
        points: Points of the other curve in that range.
        images: Images that it is over: those with a value at every point of both curves.
    """

    percent: float | None
    reason: str | None = None
    metric_range: tuple[float, float] | None = None
    rate_range: tuple[float, float] | None = None
    anchor_points: int = 0
    points: int = 0
    images: int = 0


def bd_rate(anchor: Curve, test: Curve, metric: MetricInfo) -> BDRate:
    """Compare two curves.

    If more bits make a metric worse or leave it unchanged, one value belongs to several rates, and the difference is
    ambiguous. So both curves must be strictly monotone over the values that they share; beyond those, points past a
    reversal are left out, since they are not used. Rates and values are means over the images that have a value at
    every point of both curves.

    Args:
        anchor: The reference curve.
        test: The curve to compare with it.
        metric: The metric, of either direction.

    Returns:
        The difference, or the reason why there is none: no image has all values, a curve has fewer than 4 points or is
        not monotone, or they share less than 30 % of the metric's values of the shorter one.

    Raises:
        MissingExtraError: If the package bjontegaard is not installed.
    """
    sign = 1.0 if metric.higher_better else -1.0
    sides: list[list[tuple[float, float]]] = []
    images = common_images([*anchor.points, *test.points], metric.name)
    for curve in (anchor, test):
        seen = set()  # a setting that changes nothing gives the same point twice
        for point in curve.points:
            if not point.having(metric.name):
                return BDRate(None, f"{metric.label} is not defined for {curve.name} at {point.setting}")
            rate, value = point.mean("bits_per_pixel", images), point.mean(metric.name, images)
            if rate is None or value is None:
                return BDRate(None, f"no image has {metric.label} at all points of {anchor.name} and {test.name}")
            seen.add((rate, sign * value))
        if len(seen) < MIN_POINTS:
            return BDRate(None, f"{curve.name} has {len(seen)} points, {MIN_POINTS} are needed")
        sides.append(sorted(seen))

    spans = [(min(v for _, v in side), max(v for _, v in side)) for side in sides]
    low, high = max(span[0] for span in spans), min(span[1] for span in spans)
    shorter = min(span[1] - span[0] for span in spans)
    if high - low < MIN_OVERLAP * shorter or high <= low:
        reached = " and ".join(f"{a:.4g} to {b:.4g}" for a, b in (sorted((sign * s[0], sign * s[1])) for s in spans))
        return BDRate(None, f"{anchor.name} and {test.name} share too few values of {metric.label}: {reached}")
    first, last = sorted((sign * low, sign * high))
    pieces = []
    for curve, side in zip((anchor, test), sides, strict=True):
        piece = _monotone_piece(side, low, high)
        if piece is None:
            reason = f"{curve.name} is not monotone in {metric.label} between {first:.4g} and {last:.4g}"
            return BDRate(None, reason, (first, last))
        if len(piece) < MIN_POINTS:
            return BDRate(None, f"{curve.name} has {len(piece)} points that are monotone in {metric.label}")
        pieces.append(tuple(zip(*piece, strict=True)))

    (anchor_rates, anchor_values), (rates, values) = pieces
    percent, anchor_log10, log10 = require("bjontegaard").bd_rate(
        anchor_rates,
        anchor_values,
        rates,
        values,
        method="pchip",
        require_matching_points=False,
        interpolators=True,
        min_overlap=0,
    )
    ends = [10 ** float(curve(value)) for curve in (anchor_log10, log10) for value in (low, high)]
    before, after = (sum(low <= value <= high for value in side) for side in (anchor_values, values))
    return BDRate(float(percent), None, (first, last), (min(ends), max(ends)), before, after, len(images))


def _monotone_piece(side: Sequence[tuple[float, float]], low: float, high: float) -> list[tuple[float, float]] | None:
    """The stretch of a curve, sorted by rate, that rises strictly and holds all values from ``low`` to ``high``.

    None if a reversal touches the inside of that range.
    """
    start, end = 0, len(side)
    for i in range(1, len(side)):
        (_, before), (_, after) = side[i - 1], side[i]
        if after > before:
            continue
        if before <= low:
            start = i
        elif after >= high:
            end = min(end, i)
        else:
            return None
    return list(side[start:end])


def bd_table(results: Results, anchor: str) -> list[dict[str, Any]]:
    """Compare every curve with one, by every metric.

    Args:
        results: A run.
        anchor: Name of the reference curve.

    Returns:
        One row for each other curve and metric: ``anchor``, ``curve``, ``metric`` and the attributes of
        :class:`BDRate`; plain data for JSON.
    """
    anchors = [curve for curve in results.curves if curve.name == anchor]
    rows = []
    for curve in results.curves:
        for metric in results.metrics.values():
            if curve.name == anchor:
                continue
            if anchors:
                result = bd_rate(anchors[0], curve, metric)
            else:
                result = BDRate(None, f"there is no curve {anchor} to compare with")
            rows.append({"anchor": anchor, "curve": curve.name, "metric": metric.name, **asdict(result)})
    return rows


def fewer_images(row: Mapping[str, Any], total: int) -> str:
    """How many images a row of :func:`bd_table` is over, where they are not all ``total``; else empty.

    >>> fewer_images({"images": 23}, 24), fewer_images({"images": 24}, 24)
    (' (n = 23)', '')
    """
    return f" (n = {row['images']})" if 0 < row.get("images", 0) < total else ""


def bd_renderable(rows: Sequence[Mapping[str, Any]], results: Results) -> Group:
    """Rows of :func:`bd_table` for the terminal: a table with a line for each curve, and numbered reasons.

    Args:
        rows: At least one row.
        results: What they were made from.
    """
    metrics, total = results.metrics, len(results.images)
    table = Table(title=f"BD-rate against {escape(rows[0]['anchor'])} (bits for equal quality)")
    names = list(dict.fromkeys(row["metric"] for row in rows))
    reasons = list(dict.fromkeys(row["reason"] for row in rows if row["reason"]))
    table.add_column("curve")
    for name in names:
        table.add_column(escape(metrics[name].label), justify="right")
    cells = {
        (row["curve"], row["metric"]): f"({reasons.index(row['reason']) + 1})"
        if row["percent"] is None
        else f"{row['percent']:+.1f} %{fewer_images(row, total)}"
        for row in rows
    }
    for curve in dict.fromkeys(row["curve"] for row in rows):
        table.add_row(escape(curve), *(cells[curve, name] for name in names))
    return Group(table, *(escape(f"({i}) {reason}") for i, reason in enumerate(reasons, 1)))
