"""Figures of a run: each metric against bits per pixel, as PNG and SVG.

The codecs under test are drawn thick and in colour, the others thin and grey with different markers, published points
hollow and dashed. A curve is over the images that have a value at every point of every curve. The same results give the
same files.
"""

from __future__ import annotations

import io
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from gic.benchmark.palette import SHAPES, looks, published_looks
from gic.benchmark.published import PublishedCurve
from gic.benchmark.results import Curve, Results
from gic.errors import require
from gic.files import write_bytes
from gic.quality.metric import MetricInfo

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MAIN = ("psnr", "ms_ssim", "lpips_alex", "ssimulacra2", "dists", "fid", "fid768", "musiq", "clipiqa", "niqe")
"""Metrics that the overview prefers, in this order."""

OVERVIEW = 6
"""Most panels in the overview."""

STYLE = {
    "font.family": "DejaVu Sans",  # comes with matplotlib
    "font.size": 9,
    "axes.titlesize": 9.5,
    "axes.titlelocation": "left",
    "axes.titleweight": "bold",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#9aa0a6",
    "axes.axisbelow": True,
    "axes.grid": True,
    "grid.color": "#e6e8eb",
    "grid.linewidth": 0.8,
    "xtick.color": "#4a4f55",
    "ytick.color": "#4a4f55",
    "legend.frameon": False,
    "figure.dpi": 160,
    "savefig.dpi": 160,
    "figure.facecolor": "white",
    "svg.hashsalt": "gic",
}

TICKS = [a * 10.0**b for b in range(-4, 3) for a in (1, 2, 5)]

NEAR_ONE = ("ms_ssim", "ssim")
"""Metrics whose axis is spread towards 1: even in -log10(1 - value)."""

NEAR_ONE_TICKS = [0.5, 0.7, 0.8, 0.85, 0.9, 0.93, 0.95, 0.97, 0.98, 0.985, 0.99, 0.993, 0.995, 0.997, 0.998, 0.999]


class _Line(NamedTuple):
    name: str
    points: dict[str, list[tuple[float, float]]]  # by metric, (bits per pixel, value)
    style: dict[str, Any]


def save_curves(folder: Path, results: Results, published: Sequence[PublishedCurve] = ()) -> list[Path]:
    """Draw a figure for each metric and, for two or more metrics, ``overview`` with the main ones.

    Args:
        folder: Target folder; created if missing.
        results: The measurements.
        published: Published points. They are drawn if one of their metrics was measured, at rates within a factor of
            1.5 of the results' range.

    Returns:
        The files, ``<metric>.png`` and ``<metric>.svg``; none for a metric without values.

    Raises:
        MissingExtraError: If matplotlib is not installed.
    """
    matplotlib = require("matplotlib")
    require("matplotlib.style")
    measured = [_measured(curve, results, style) for curve, style in _styles(results)]
    rates = [rate for line in measured for points in line.points.values() for rate, _ in points]
    if not rates:
        return []
    lines = [*measured, *_published(published, min(rates) / 1.5, max(rates) * 1.5)]
    metrics = [m for m in results.metrics.values() if any(line.points.get(m.name) for line in measured)]
    figures = [(metric.name, [metric]) for metric in metrics]
    if len(metrics) > 1:
        main = sorted(metrics, key=lambda m: MAIN.index(m.name) if m.name in MAIN else len(MAIN))
        figures.insert(0, ("overview", main[:OVERVIEW]))
    written = []
    with matplotlib.style.context(["default", STYLE]):
        for name, chosen in figures:
            figure = _figure(chosen, lines, results)
            for kind, about in (("png", {"Software": None}), ("svg", {"Date": None})):
                buffer = io.BytesIO()
                figure.savefig(buffer, format=kind, metadata=about)
                written.append(folder / f"{name}.{kind}")
                write_bytes(written[-1], buffer.getvalue())
    return written


def _styles(results: Results) -> Iterable[tuple[Curve, dict[str, Any]]]:
    """Every curve and its style. Prominent are curves with a choice of decoding, else those of the first codec."""
    for curve in results.curves:
        colour, shape = looks(results)[curve.name]
        width, size, order = (2.4, 6, 4) if results.under_test(curve) else (1.2, 4.5, 3)
        yield curve, {"color": colour, "marker": SHAPES[shape], "lw": width, "ms": size, "zorder": order}


def _measured(curve: Curve, results: Results, style: dict[str, Any]) -> _Line:
    points: dict[str, list[tuple[float, float]]] = {}
    for metric in results.metrics:
        keys = results.common(metric)
        for point in curve.points:
            if keys and point.having(metric):
                rate, value = point.mean("bits_per_pixel", keys), point.mean(metric, keys)
                assert rate is not None and value is not None
                points.setdefault(metric, []).append((rate, value))
    return _Line(curve.name, {metric: sorted(pairs) for metric, pairs in points.items()}, style)


def _published(curves: Sequence[PublishedCurve], lowest: float, highest: float) -> Iterable[_Line]:
    styles = published_looks([curve["name"] for curve in curves])
    for curve in curves:
        points: dict[str, list[tuple[float, float]]] = {}
        for point in curve["points"]:
            if lowest <= point["bits_per_pixel"] <= highest:
                for metric, value in point["metrics"].items():
                    points.setdefault(metric, []).append((point["bits_per_pixel"], value))
        colour, shape = styles[curve["name"]]
        style = {"color": colour, "marker": SHAPES[shape], "mfc": "white"}
        yield _Line(curve["name"], points, {**style, "ls": (0, (4, 2)), "lw": 1, "ms": 4.5, "zorder": 2})


def _figure(metrics: Sequence[MetricInfo], lines: Sequence[_Line], results: Results) -> Figure:
    """One panel for each metric, with one legend beside them."""
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

    shown = [line for line in lines if any(line.points.get(metric.name) for metric in metrics)]
    handles = [Line2D([], [], label=line.name, **line.style) for line in shown]
    hollow = [i for i, line in enumerate(shown) if "mfc" in line.style]
    if hollow:
        handles.insert(hollow[0], Line2D([], [], ls="none", label="as published:"))

    columns = min(3, len(metrics))
    rows = -(-len(metrics) // columns)
    width, height = (4.8, 4.0) if len(metrics) == 1 else (3.4 * columns, 2.8 * rows)
    legend = 0.7 + 0.07 * max(len(line.name) for line in shown), 0.2 + 0.185 * len(handles)
    figure = Figure(figsize=(width + legend[0], max(height, legend[1])), layout="constrained")
    panels = list(figure.subplots(rows, columns, squeeze=False).flat)
    for panel in panels[len(metrics) :]:
        panel.remove()
    rates = [rate for line in shown for metric in metrics for rate, _ in line.points.get(metric.name, ())]
    gaps = any(results.over(metric) for metric in metrics if metric.kind == "image")
    unless = " where not stated" if gaps else ""
    for number, (panel, metric) in enumerate(zip(panels, metrics, strict=False)):
        _panel(panel, metric, lines, results)
        panel.set_xlim(min(rates) / 1.15, max(rates) * 1.15)
        if number + columns >= len(metrics):  # the lowest of its column
            panel.set_xlabel(f"bits per pixel (mean, n = {len(results.images)}{unless})")
    figure.legend(handles=handles, loc="outside right upper", fontsize=8.5)
    return figure


def _panel(axes: Axes, metric: MetricInfo, lines: Sequence[_Line], results: Results) -> None:
    from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

    unit = f" ({metric.unit})" if metric.unit else ""
    direction = "higher is better ↑" if metric.higher_better else "lower is better ↓"
    if over := results.over(metric):
        direction += f", {over}"
    axes.set_title(f"{metric.label}{unit}", pad=18)
    axes.annotate(direction, (0, 1), (0, 6), "axes fraction", "offset points", color="#4a4f55", fontsize=8.5)
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(FixedLocator(TICKS))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda rate, _: f"{rate:g}"))
    axes.xaxis.set_minor_locator(NullLocator())
    if metric.name in NEAR_ONE:
        axes.set_yscale("function", functions=(lambda v: -np.log10(np.maximum(1 - v, 1e-6)), lambda d: 1 - 10**-d))
        axes.yaxis.set_major_locator(FixedLocator(NEAR_ONE_TICKS))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.yaxis.set_minor_locator(NullLocator())
    for line in lines:
        if points := line.points.get(metric.name):
            rates, values = zip(*points, strict=True)
            axes.plot(rates, values, **line.style)
    if (originals := results.originals.get(metric.name)) and (keys := results.common(metric.name)):
        mean = sum(originals[key] for key in keys) / len(keys)
        axes.axhline(mean, color="#4a4f55", lw=1, ls=":", zorder=1)
        # Right of the panel, where no curve is.
        axes.annotate(
            "originals",
            (1, mean),
            (3, 0),
            ("axes fraction", "data"),
            "offset points",
            annotation_clip=False,
            va="center",
            rotation=90,
            fontsize=8,
        )
