"""Tables of measured numbers, written into the pages from the JSON files beside them.

    python docs/tools/tables.py

A page marks the place of a table by ``<!-- table: NAME -->`` and ``<!-- /table -->``. Between them this writes the
table of that name, so that no number is copied by hand. A test says when a page is old.
"""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from gic.benchmark.results import Curve, Results, load_results
from gic.codec.zoo import shipped_weights

REPOSITORY = Path(__file__).resolve().parents[2]
RESULTS = REPOSITORY / "docs" / "results"
MARK = re.compile(r"(<!-- table: ([a-z0-9-]+) -->\n).*?(<!-- /table -->)", re.S)

CURVES = {"gic r=1": "gic, r = 1", "gic r=0": "gic, r = 0", "avif": "AVIF", "webp": "WebP", "jpeg": "JPEG"}
"""Names of curves in the tables, in their order."""
COLUMNS = {
    "bits_per_pixel": ("bits per pixel", ".3f"),
    "psnr": ("PSNR", ".2f"),
    "ms_ssim": ("MS-SSIM", ".4f"),
    "ssimulacra2": ("SSIMULACRA 2", ".1f"),
    "lpips_alex": ("LPIPS", ".3f"),
    "fid768": ("FID-768", ".3f"),
    "niqe": ("NIQE", ".2f"),
}
"""Title and format of each measure."""
SHOWN = {
    "avif": ("quality=10", "quality=30", "quality=50"),
    "webp": ("quality=2", "quality=20", "quality=60"),
    "jpeg": ("quality=5", "quality=20", "quality=50"),
}
"""Settings of the other codecs that the long table has; of gic it has all."""
SHORT = {
    "gic r=1": ("q=11.3", "q=5.66", "q=2.83"),
    "gic r=0": ("q=11.3", "q=5.66", "q=2.83"),
    "avif": ("quality=10", "quality=20", "quality=40"),
}
"""What the short table has."""


def table(head: Sequence[str], rows: Iterable[Sequence[str]], left: int = 1) -> str:
    """A Markdown table whose first ``left`` columns are text."""
    rule = "|".join("---" if column < left else "---:" for column in range(len(head)))
    lines = [f"| {' | '.join(line)} |" for line in (head, *rows)]
    return "\n".join([lines[0], f"|{rule}|", *lines[1:], ""])


def percent(value: float | None) -> str:
    """A difference in per cent, or a dash."""
    return "-" if value is None else f"{value:+.0f} %"


def read(path: str) -> Any:
    """A JSON file of the repository."""
    return json.loads((REPOSITORY / path).read_text())


def points(results: Results, shown: dict[str, tuple[str, ...]], measures: Sequence[str]) -> str:
    """Means of some points of curves."""
    curves: dict[str, Curve] = {curve.name: curve for curve in results.curves}
    rows = []
    for name, title in CURVES.items():
        for point in curves[name].points if name in curves else ():
            if name in shown and point.setting not in shown[name]:
                continue
            values = [point.mean(measure) for measure in measures]
            cells = ["-" if v is None else format(v, COLUMNS[m][1]) for m, v in zip(measures, values, strict=True)]
            rows.append([title, point.setting, *cells])
    return table(["codec", "setting", *(COLUMNS[measure][0] for measure in measures)], rows, left=2)


def kodak() -> str:
    """All levels of gic, and some settings of others."""
    return points(load_results(RESULTS / "kodak-benchmark.json"), SHOWN, list(COLUMNS))


def kodak_short() -> str:
    """Some rates."""
    results = load_results(RESULTS / "kodak-benchmark.json")
    return points(results, {**dict.fromkeys(CURVES, ()), **SHORT}, list(COLUMNS))


def bd_rates(path: str = "docs/results/kodak-bd-rates.json", named: Mapping[str, str] = CURVES) -> str:
    """Bits beside AVIF for equal quality."""
    found = {(each["curve"], each["metric"]): each["percent"] for each in read(path)}
    measures = ("psnr", "ms_ssim", "ssimulacra2", "lpips_alex", "lpips_squeeze", "fid768", "kid768")
    others = {"lpips_squeeze": "LPIPS, SqueezeNet", "kid768": "KID-768"}
    titles = [COLUMNS[measure][0] if measure in COLUMNS else others[measure] for measure in measures]
    rows = [
        [title, *(percent(found.get((name, measure))) for measure in measures)]
        for name, title in named.items()
        if name != "avif"
    ]
    return table(["bits beside AVIF", *titles], rows)


def bd_rates_before() -> str:
    """The same of the weights before these."""
    return bd_rates("docs/results/small-0.4-bd-rates.json", {f"gic r={r}": f"small-0.4, r = {r}" for r in (1, 0)})


def samplers() -> str:
    """Each sampler at both levels."""
    results = load_results(RESULTS / "samplers.json")
    rows = []
    for curve in results.curves:
        if curve.codec != "gic":
            continue
        cells = []
        for setting in ("q=8", "q=3"):
            point = next(p for p in curve.points if p.setting == setting)
            cells += [f"{point.mean('psnr'):.2f}", f"{point.mean('lpips_alex'):.4f}", f"{point.mean('fid768'):.3f}"]
        rows.append([curve.decoding.replace("r=", "r = "), *cells])
    return table(["decoding", "PSNR, q = 8", "LPIPS", "FID-768", "PSNR, q = 3", "LPIPS", "FID-768"], rows)


def quantisers() -> str:
    """Both quantisers at both levels."""
    results = load_results(RESULTS / "samplers.json")
    rows = []
    for title, codec in (("round", "gic"), ("dither", "gic dither")):
        mine = [curve for curve in results.curves if curve.codec == codec]
        close = next(c for c in mine if c.decoding.startswith("r=0"))
        real = next(c for c in mine if c.decoding == "r=1, heun, 2 steps")
        cells = []
        for setting in ("q=8", "q=3"):
            near, far = (next(p for p in c.points if p.setting == setting) for c in (close, real))
            cells += [f"{near.mean('bits_per_pixel'):.4f}", f"{near.mean('psnr'):.2f}"]
            cells += [f"{far.mean('lpips_alex'):.4f}", f"{far.mean('fid768'):.3f}"]
        rows.append([title, *cells])
    head = [
        f"{what}, q = {q}" for q in (8, 3) for what in ("bits per pixel", "PSNR (r = 0)", "LPIPS (r = 1)", "FID-768")
    ]
    return table(["quantiser", *head], rows)


def rates() -> str:
    """How exactly a wanted rate is met."""
    found = read("benchmarks/results/rate_control.json")
    rows = [
        (
            "bytes between the real file and the estimate of the rate search",
            f"{found['largest_estimate_error_bytes']}",
        ),
        ("bytes of the file that are neither z nor y", f"{found['largest_overhead_bytes']}"),
        (
            "distance from `--bpp` (0.1, 0.2, 0.4, 0.8, if the model reaches them)",
            f"{found['largest_bpp_error_percent']:.3f} %",
        ),
        ("distance below `--max-bytes` at the same targets", f"{found['largest_max_bytes_slack_percent']:.3f} %"),
        ("files above `--max-bytes`", f"{found['max_bytes_exceeded']}"),
    ]
    return table(["what", "largest over all pictures and rates"], rows)


def priors() -> str:
    """Laplace tables beside Gaussian ones."""
    found = read("benchmarks/results/priors.json")
    cells = [f"{100 * change:+.1f} %" for change in found["laplace beside gaussian"]]
    return table(["", *(f"q = {level:g}" for level in found["levels"])], [["bits", *cells]])


def seam() -> str:
    """Errors near the borders of tiles."""
    found = read("benchmarks/results/seam.json")
    rows = [
        [title, *(f"{found[f'{name}_{what}']:.3f}" for what in ("error_near", "error_elsewhere", "step"))]
        for title, name in (("in tiles", "tiled"), ("in one piece", "whole"))
    ]
    head = ["", "within 32 pixels of a tile border", "elsewhere", "step across borders, relative to the original's"]
    return table(head, rows)


def progressive() -> str:
    """Progressive files beside plain ones."""
    summary = read("docs/results/progressive-kodak.json")["summary"]
    means, largest = (summary[f"size_of_levels_{what}"] for what in ("mean", "largest"))
    rows = [
        [f"q = {q}", f"{100 * (mean - 1):+.1f} %", f"{100 * (most - 1):+.1f} %"]
        for q, mean, most in zip((27, 9, 3, 1), means, largest, strict=True)
    ]
    return table(["up to", "mean", "largest"], rows)


def orders() -> str:
    """Other orders of the elements of a progressive file."""
    found = read("docs/results/progressive-orders.json")
    rows = [
        [name, f"{sum(losses) / len(losses):.2f}", f"{found['loss_between_largest_mean'][name]:.2f}"]
        for name, losses in found["loss_between_mean"].items()
    ]
    return table(["order", "mean", "largest"], rows)


def slider() -> str:
    """The pictures under the divider of the first page."""
    found = read("docs/images/slider/slider.json")["pictures"]
    pictures = {
        "original": ("A stream between stones and trees", "original"),
        "gic-r1": ("The same from gic's file", f"gic, realism 1: {found['gic-r1']['bytes']} bytes"),
        "gic-r0": ("The same file decoded for closeness", f"gic, realism 0: the same {found['gic-r1']['bytes']} bytes"),
        "avif": ("The same from an AVIF file", f"AVIF: {found['avif']['bytes']} bytes"),
    }
    return "".join(
        f'<figure><img src="images/slider/{name}.webp" width="640" height="400" alt="{alt}">'
        f"<figcaption>{caption}</figcaption></figure>\n"
        for name, (alt, caption) in pictures.items()
    )


def published() -> str:
    """Points that others published."""
    with (RESULTS / "published-2026.csv").open(newline="") as file:
        found = sorted(csv.DictReader(file), key=lambda each: (not each["lpips"], -float(each["bpp"])))
    rows = [
        [
            each["codec"],
            each["size"] or "-",
            f"{float(each['bpp']):.3f}",
            f"{float(each['psnr']):.2f}",
            f"{float(each['lpips']):.3f}" if each["lpips"] else "-",
        ]
        for each in found
    ]
    return table(["codec", "size", "bits per pixel", "PSNR", "LPIPS"], rows, left=2)


def preference() -> str:
    """What was preferred, blind."""
    found = read("docs/results/preference.json")
    rows = [[f"{each['bpp']:g}", str(each["gic"]), str(each["AVIF"]), str(each["neither"])] for each in found["rates"]]
    return table(["bits per pixel", "gic, r = 1", "AVIF", "neither"], rows, left=0)


TABLES: dict[str, Callable[[], str]] = {
    "kodak": kodak,
    "kodak-short": kodak_short,
    "bd-rates": bd_rates,
    "bd-rates-before": bd_rates_before,
    "samplers": samplers,
    "quantisers": quantisers,
    "rates": rates,
    "seam": seam,
    "priors": priors,
    "progressive": progressive,
    "orders": orders,
    "slider": slider,
    "published": published,
    "preference": preference,
}


def filled(page: str) -> str:
    """A page with its tables as the JSON files have them.

    Raises:
        KeyError: If it marks a table that there is not.
    """
    return MARK.sub(lambda found: found[1] + "\n" + TABLES[found[2]]() + "\n" + found[3], page)


def pages() -> list[Path]:
    """The pages that have tables."""
    found = [REPOSITORY / "README.md", *sorted((REPOSITORY / "docs").glob("*.md"))]
    return [path for path in found if MARK.search(path.read_text())]


def write_rates() -> None:
    """Write what `gic models` says of the rates of the weights that ship beside them."""
    results = load_results(RESULTS / "kodak-benchmark.json")
    points = next(curve for curve in results.curves if curve.codec == "gic").points
    about = {
        "pictures": f"the {len(results.images)} Kodak photographs",
        "bits_per_pixel": {p.setting.removeprefix("q="): round(p.mean("bits_per_pixel") or 0, 4) for p in points},
        "command": "gic test --config configs/test/kodak.yaml --data ~/kodak",
    }
    shipped_weights().with_suffix(".json").write_text(json.dumps({"rates": about}, indent=2) + "\n")


def main() -> None:
    """Write the tables."""
    write_rates()
    for path in pages():
        old = path.read_text()
        if (new := filled(old)) != old:
            path.write_text(new)
            print(f"written: {path.relative_to(REPOSITORY)}")


if __name__ == "__main__":
    main()
