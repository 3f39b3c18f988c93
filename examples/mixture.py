"""The method on a line: quantising numbers is a diffusion, and its flow brings them back.

python examples/mixture.py --output docs/images/method --json docs/results/mixture.json

The numbers y come from a mixture of three Gaussians, whose denoiser is known in closed form: nothing is trained here.
What carries y forward and back is gic's own (``gic.method.sde``, ``gic.method.samplers``). It prints two tables and
draws the figures of docs/method.md. It needs gic and matplotlib, and some seconds.
"""

from __future__ import annotations

import argparse
import json
import math
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from gic.method import sde
from gic.method.samplers import Denoiser, reverse, sampler_of
from gic.runtime.posterior import truncated_normal_mean

Array = NDArray[np.float64]

WEIGHTS = np.array([0.5, 0.35, 0.15])
MEANS = np.array([0.0, 1.5, -1.3])
DEVIATIONS = np.array([0.3, 0.2, 0.12])
Q = 2.0
"""The step that the figures are about: coarser than the mixture's peaks are wide."""
STEPS = (1, 2, 4, 8, 16, 32)
SAMPLERS = ("euler", "heun", "sde(alpha=0.5)", "restart")
COLOURS = {"y": "#888888", "y_q": "#c26a00", "r=0": "#1f77b4", "r=1": "#00796b", "sde(alpha=0.5)": "#b03060"}
_erf = np.vectorize(math.erf, otypes=[float])


# --- the mixture ----------------------------------------------------------------------------------------------


def density(y: Array) -> Array:
    """p_0, the density of y."""
    t = (y[..., None] - MEANS) / DEVIATIONS
    return (WEIGHTS / DEVIATIONS * np.exp(-(t**2) / 2)).sum(-1) / math.sqrt(2 * math.pi)


def component_cdf(y: Array) -> Array:
    """The distribution function of each Gaussian, in a last dimension."""
    return (1 + _erf((y[..., None] - MEANS) / DEVIATIONS / math.sqrt(2))) / 2


_grid = np.linspace(-4, 4, 40_001)
_cdf = (component_cdf(_grid) * WEIGHTS).sum(-1)


def quantiles(count: int) -> Array:
    """Numbers that follow the mixture as evenly as ``count`` numbers can: the middles of equal shares of it."""
    return np.interp((np.arange(count) + 0.5) / count, _cdf, _grid)


def cell_masses(y_q: Array, q: Any) -> Array:
    """The share of each component, times its weight, that lies in the cell [y_q - q/2, y_q + q/2]."""
    masses: Array = WEIGHTS * (component_cdf(y_q + q / 2) - component_cdf(y_q - q / 2))
    return masses


def marginal(y_q: Array, q: float) -> Array:
    """p_q, the density of y_q = y + q eps: the mass of the cell over its width."""
    return cell_masses(y_q, q).sum(-1) / q


def denoiser(y_q: Array, q: Any) -> Array:
    """D(y_q, q) = E[y | y_q]: the components' means within the cell, each as likely as its mass there.

    For one Gaussian this is DESIGN 4 (3), which gic's codec computes for every latent.
    """
    masses = cell_masses(y_q, q)
    means = np.empty_like(masses)
    for k, (mean, deviation) in enumerate(zip(MEANS, DEVIATIONS, strict=True)):
        like = np.full_like(y_q, 1.0)
        means[..., k] = truncated_normal_mean(y_q, q, mean * like, deviation * like)
    total = masses.sum(-1)
    inside = (masses * means).sum(-1) / np.maximum(total, 1e-300)
    return np.where(total > 1e-12, inside, y_q)  # a cell where nothing is: no sample gets there


def score(y_q: Array, q: float) -> Array:
    """The exact gradient of log p_q."""
    return (density(y_q + q / 2) - density(y_q - q / 2)) / q / marginal(y_q, q)


# --- there and back -------------------------------------------------------------------------------------------


def quantised(y: Array, q: float, seed: int) -> Array:
    """Dithered rounding with step q, as a decoder sees it (DESIGN 2): symbols, which a file holds, and y_q."""
    u = sde.uniform(y, np.random.Philox(seed))
    symbols = sde.quantize(y, q, u=u)
    return sde.dequantize(symbols, q, u=u)


def distance(values: Array) -> float:
    """The Wasserstein distance W1 between values and the mixture: how far they have to be moved, in the mean."""
    return float(np.abs(np.sort(values.ravel()) - quantiles(values.size)).mean())


class Quality(NamedTuple):
    """How good values are: W1 to the mixture, and the mean squared error to the true y."""

    distance: float
    error: float


def quality(values: Array, y: Array) -> Quality:
    """Both distances of values that stand for y."""
    return Quality(distance(values), float(((values - y) ** 2).mean()))


def by_step(y: Array, steps: tuple[float, ...] = (0.25, 0.5, 1.0, 2.0, 4.0)) -> list[dict[str, Any]]:
    """For each q: what a number costs, and the quality of y_q, of r = 0 and of r = 1."""
    rows = []
    for q in steps:
        y_q = quantised(y, q, seed=1)
        bits = float(-np.log2(cell_masses(y_q, q).sum(-1)).mean())
        found = {"y_q": y_q}
        for r in (0.0, 1.0):
            found[f"r={r:g}"] = reverse(denoiser, y_q, q, sampler="heun", steps=16, realism=r)
        rows.append({"q": q, "bits": bits} | {name: quality(v, y)._asdict() for name, v in found.items()})
    return rows


def by_sampler(y: Array, y_q: Array) -> list[dict[str, Any]]:
    """For each sampler and number of steps, from q = 2 at r = 1: evaluations of D and quality."""
    rows = []
    for name in SAMPLERS:
        for n in STEPS:
            calls = 0

            def counted(y: Array, q: Any) -> Array:
                nonlocal calls
                calls += 1
                return denoiser(y, q)

            values = reverse(counted, y_q, Q, sampler=sampler_of(name), steps=n, generator=np.random.Philox(2))
            rows.append({"sampler": name, "steps": n, "evaluations": calls} | quality(values, y)._asdict())
    return rows


# --- figures --------------------------------------------------------------------------------------------------


def paths(denoise: Denoiser, starts: Array, steps: int = 32) -> tuple[Array, Array]:
    """Levels and values along the flow, from q down to 0, as Euler's steps pass them."""
    levels, values = [], []

    def seen(y: Array, q: Any) -> Array:
        levels.append(float(np.ravel(q)[0]))
        values.append(y[0].copy())
        return denoise(y, q)

    end = reverse(seen, starts[None], Q, sampler="euler", steps=steps)
    return np.array([*levels, 0.0]), np.array([*values, end[0]])


def figures(folder: Path, y: Array, y_q: Array, samplers: list[dict[str, Any]]) -> None:
    """Draw all figures."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    plt.rcParams |= {
        "svg.hashsalt": "gic",
        "svg.fonttype": "none",
        "font.family": "sans-serif",
        "font.size": 9,
        "axes.spines.top": False,
        "axes.spines.right": False,
    }
    folder.mkdir(parents=True, exist_ok=True)
    x = np.linspace(-3.2, 3.6, 500)

    def save(figure: Any, name: str) -> None:
        figure.savefig(folder / f"{name}.svg", metadata={"Date": None})
        plt.close(figure)

    def histogram(axis: Any, values: Array, colour: str, label: str) -> None:
        counts, edges = np.histogram(values, 80, (x[0], x[-1]), density=True)
        axis.stairs(counts, edges, fill=True, color=colour, alpha=0.45, label=label)

    # Forward: quantised values against p_q.
    figure, axes = plt.subplots(1, 4, figsize=(7.8, 2.7), layout="constrained", sharex=True, sharey=True)
    for axis, q in zip(axes, (0.25, 1.0, 2.0, 4.0), strict=True):
        histogram(axis, quantised(y, q, seed=1), COLOURS["y_q"], "quantised")
        axis.plot(x, marginal(x, q), color="black", lw=1, label="p_q")
        axis.plot(x, density(x), color=COLOURS["y"], lw=1, ls=":", label="p_0")
        axis.set(title=f"q = {q:g}", xlabel="value")
    figure.legend(*axes[0].get_legend_handles_labels(), frameon=False, ncols=3, loc="outside lower center")
    save(figure, "forward")

    # The velocity, and the score.
    figure, (left, right) = plt.subplots(1, 2, figsize=(7.8, 2.8), layout="constrained")
    middle = x[(x > -2.2) & (x < 2.9)]
    edges = np.linspace(middle[0], middle[-1], 41)
    cell, eps = np.digitize(y_q[0], edges), ((y_q - y) / Q)[0]
    means = [eps[cell == i].mean() for i in range(1, len(edges))]
    left.plot((edges[1:] + edges[:-1]) / 2, means, "o", ms=3, color=COLOURS["y_q"], label="mean of eps, measured")
    left.plot(middle, sde.velocity(middle[None], Q, denoiser(middle[None], Q))[0], "k", lw=1, label="(y_q - D) / q")
    left.set(title="velocity v(y_q, q), q = 2", xlabel="y_q")
    right.plot(middle, score(middle, Q), "k", lw=1, label="gradient of log p_q, exact")
    surrogate = sde.score(middle[None], Q, denoiser(middle[None], Q))[0]
    right.plot(middle, surrogate, color="#b03060", label="(D - y_q) / (q² / 12)")
    right.set(title="score, q = 2", xlabel="y_q", ylim=(-6, 4))
    for axis in (left, right):
        axis.legend(frameon=False)
    save(figure, "velocity")

    # The flow: paths between p_q on the left and p_0 on the right.
    figure, axes = plt.subplots(1, 3, figsize=(7.8, 3.6), layout="constrained", sharey=True, width_ratios=(1, 4, 1))
    levels, values = paths(denoiser, np.linspace(-2.25, 2.65, 36))
    axes[1].plot(levels, values, color=COLOURS["r=1"], lw=0.8)
    axes[1].plot(levels[[0, 0]], [-1, -1], alpha=0)
    axes[1].set(title="along the flow", xlabel="level q", xlim=(Q, 0))
    for axis, p, name in ((axes[0], marginal(x, Q), "p_q, q = 2"), (axes[2], density(x), "p_0")):
        axis.fill_betweenx(x, p, color=COLOURS["y_q" if axis is axes[0] else "y"], alpha=0.5, lw=0)
        axis.set(title=name, xticks=[], ylim=(-2.6, 2.9))
    axes[0].invert_xaxis()
    axes[0].set_ylabel("value")
    save(figure, "flow")

    # Back: r = 0 and r = 1.
    figure, axes = plt.subplots(1, 3, figsize=(7.8, 2.6), layout="constrained", sharex=True)
    shown = {"y_q": ("sent: y_q", y_q)}
    shown |= {f"r={r}": (f"r = {r}", reverse(denoiser, y_q, Q, steps=16, realism=float(r))) for r in (0, 1)}
    for axis, (key, (title, v)) in zip(axes, shown.items(), strict=True):
        histogram(axis, v, COLOURS[key], title)
        axis.plot(x, density(x), color="black", lw=1)
        axis.set(title=f"{title}\nW1 {distance(v):.3f}, squared error {((v - y) ** 2).mean():.3f}", xlabel="value")
        axis.set_ylim(0, 1.6)
    save(figure, "back")

    # Distance and error against evaluations of D.
    figure, axes = plt.subplots(1, 2, figsize=(7.8, 3), layout="constrained", sharex=True)
    for name, mark in zip(SAMPLERS, "osDv", strict=True):
        rows = [row for row in samplers if row["sampler"] == name]
        for axis, key in zip(axes, ("distance", "error"), strict=True):
            axis.plot([row["evaluations"] for row in rows], [row[key] for row in rows], marker=mark, ms=4, label=name)
    axes[0].set(xscale="log", yscale="log", title="W1 to the mixture", xlabel="evaluations of D")
    axes[0].set_xticks(ticks := [1, 2, 4, 8, 16, 32, 64, 128], map(str, ticks))
    axes[0].set_yticks([0.01, 0.02, 0.05, 0.1], ["0.01", "0.02", "0.05", "0.1"])
    axes[0].minorticks_off()
    axes[1].minorticks_off()
    axes[1].set(title="mean squared error to y", xlabel="evaluations of D")
    axes[1].legend(frameon=False)
    save(figure, "steps")


# --- all of it ------------------------------------------------------------------------------------------------


def main(words: list[str] | None = None) -> dict[str, Any]:
    """Measure, print, draw; returns what the JSON file holds."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=20_000)
    parser.add_argument("--output", type=Path, help="folder of the figures; none are drawn without it")
    parser.add_argument("--json", type=Path, help="file of the numbers")
    args = parser.parse_args(words)

    y = quantiles(args.samples)[None]  # a batch of one
    y_q = quantised(y, Q, seed=1)
    found: dict[str, Any] = {"samples": args.samples, "q": by_step(y), "sampler": by_sampler(y, y_q)}
    print("                 W1 to the mixture        squared error to y\n   q  bits" + "     y_q   r = 0   r = 1" * 2)
    for row in found["q"]:
        numbers = [row[name][key] for key in ("distance", "error") for name in ("y_q", "r=0", "r=1")]
        print(f"{row['q']:4g}{row['bits']:6.2f}" + "".join(f"{value:8.4f}" for value in numbers))
    print("\nsampler          steps  evaluations      W1   error")
    for row in found["sampler"]:
        numbers = [f"{row['sampler']:<16}", f"{row['steps']:5}", f"{row['evaluations']:12}"]
        print(*numbers, f"{row['distance']:7.4f} {row['error']:7.4f}")
    if args.output:
        figures(args.output, y, y_q, found["sampler"])
    if args.json:
        args.json.write_text(json.dumps(found, indent=1) + "\n")
    return found


if __name__ == "__main__":
    main()
