"""Rate and distortion of a run's validations against the step, as a picture."""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from gic.errors import MissingExtraError, require
from gic.files import write_bytes
from gic.training.evaluation import BEFORE, LevelResult, load_means

WIDEST = (9.0, 3.6)
"""Inches."""


class Validation(NamedTuple):
    """One validation of a run.

    Attributes:
        step: Optimiser step.
        means: Means over the images at each level and realism.
    """

    step: int
    means: Sequence[LevelResult]


def read_history(results: Path) -> list[Validation]:
    """Read the validations in a run's folder of results, by step.

    Raises:
        ConfigError: If a file there is no file of validation results.
    """
    files = [path for path in [results / BEFORE, *results.glob("val-*.json")] if path.is_file()]
    found = {}
    for path in files:
        means = load_means(path)
        found[int(json.loads(path.read_text())["step"])] = means
    return [Validation(step, found[step]) for step in sorted(found)]


def draw_history(results: Path, picture: Path) -> bool:
    """Draw bits per pixel, and PSNR at the least realism, against the step: a line for each level.

    Args:
        results: Folder of validation results.
        picture: PNG to write.

    Returns:
        Whether it was written: it takes two validations, and matplotlib.

    Raises:
        ConfigError: If a file in the folder is no file of validation results.
    """
    history = read_history(results)
    if len(history) < 2:
        return False
    try:
        require("matplotlib")
    except MissingExtraError:
        return False
    from matplotlib.figure import Figure
    from matplotlib.ticker import LogLocator

    least = min(mean.realism for mean in history[-1].means)
    levels = sorted({mean.q for mean in history[-1].means})
    figure = Figure(figsize=WIDEST, layout="constrained", dpi=120)
    rate, distortion = figure.subplots(1, 2)
    for place, q in enumerate(levels):
        shade = str(0.75 * place / max(1, len(levels) - 1))  # grey, darkest for the finest level
        rows = [(v.step, m) for v in history for m in v.means if m.q == q and m.realism == least]
        steps = [step for step, _ in rows]
        rate.plot(steps, [m.bits_per_pixel for _, m in rows], "o-", color=shade, label=f"q {q:g}", ms=4)
        values = [m.metrics.get("psnr") for _, m in rows]
        distortion.plot(steps, [float("nan") if v is None else v for v in values], "o-", color=shade, ms=4)
    rate.set(title="bits per pixel", xlabel="step", yscale="log")
    rate.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    rate.yaxis.set_major_formatter("{x:g}")
    rate.yaxis.set_minor_formatter("")
    distortion.set(title=f"PSNR at r = {least:g}, dB", xlabel="step")
    for axes in (rate, distortion):
        axes.grid(True, color="0.92")
        axes.spines[["top", "right"]].set_visible(False)
    figure.legend(*rate.get_legend_handles_labels(), loc="outside right center", frameon=False)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    write_bytes(picture, buffer.getvalue())
    return True
