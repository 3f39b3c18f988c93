"""``report.html``: one page with the results of a benchmark run, including pictures (DESIGN 10).

The page needs no network and no other file, and its Content-Security-Policy forbids both: everything is embedded,
pictures as base64 text that the browser decodes when they are shown. Its parts lie in ``page/``, and in ``gic/pages/``
those that the demo has too.
"""

from __future__ import annotations

import base64
import hashlib
import io
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from html import escape
from importlib.resources import files
from pathlib import Path
from string import Template
from typing import Any, Protocol

from PIL import Image, features

from gic.benchmark.bd_rate import fewer_images
from gic.benchmark.palette import looks, published_looks
from gic.benchmark.results import Curve, Point, Results
from gic.errors import DataError
from gic.files import write_bytes
from gic.quality.metric import MetricInfo

SHOWN_BY_BROWSERS = frozenset({"image/jpeg", "image/webp", "image/avif", "image/png", "image/gif"})
"""MIME types of files that are embedded unchanged; for others the reconstruction is embedded."""

THUMBNAIL = (208, 140)
"""Largest width and height of a thumbnail, in pixels."""


class PictureSource(Protocol):
    """Where the viewer gets its pictures from."""

    @property
    def keys(self) -> Sequence[str]:
        """The images that get a viewer, by their keys in the results."""

    def original(self, key: str) -> Image.Image:
        """The original."""

    def file(self, curve: str, setting: str, key: str) -> tuple[bytes, str] | None:
        """The compressed file and its MIME type, empty where it has none; None if the file was not kept."""

    def reconstruction(self, curve: str, setting: str, key: str) -> Image.Image | None:
        """The decoded picture, requested only if browsers cannot show the file; None if it was not kept."""


def write_report(
    path: Path,
    results: Results,
    *,
    bd_rows: Sequence[Mapping[str, Any]],
    published: Sequence[Mapping[str, Any]] = (),
    pictures: PictureSource,
) -> None:
    """Write the report, whole or not at all.

    The viewer compares each file of the codecs under test (those with a choice of decoding, or else the first) with
    the file of every other codec that is nearest in bytes; only those files are embedded.

    Args:
        path: Target file.
        results: The measurements.
        bd_rows: BD-rates: ``curve``, ``metric``, ``percent`` or else a ``reason``, the ``metric_range`` and
            ``rate_range`` (bits per pixel) that they cover, and optionally the ``anchor``.
        published: Published curves: ``name``, ``source``, optionally a ``note``, and ``points``, each with
            ``bits_per_pixel`` and ``metrics``.
        pictures: Pictures for the viewer.

    Raises:
        DataError: If a picture belongs to no image of the results.
    """
    embedded = _Embedded()
    drawn = looks(results)
    common = {name: results.common(name) for name in results.metrics}
    outside = published_looks([curve["name"] for curve in published])
    images = [_image_data(results, key, pictures, embedded) for key in pictures.keys]
    data = {
        "metrics": [
            {
                "name": m.name,
                "label": m.label,
                "unit": m.unit,
                "higher": m.higher_better,
                "kind": m.kind,
                "over": results.over(m),
            }
            for m in results.metrics.values()
        ],
        "curves": [_curve_data(curve, results, common) | drawn[curve.name]._asdict() for curve in results.curves],
        "published": [
            {
                "name": curve["name"],
                **outside[curve["name"]]._asdict(),
                "source": curve["source"],
                "points": [
                    {"values": {name: [p["bits_per_pixel"], value] for name, value in p["metrics"].items()}}
                    for p in curve["points"]
                ],
            }
            for curve in published
        ],
        "images": images,
    }
    plotly = f"/*\n{_part('plotly.LICENSE')}*/\n{_part('plotly-basic.min.js')}"
    script = _shared("stage.js") + _part("page.js")
    thumbnails = "".join(_thumbnail(number, key, pictures.original(key)) for number, key in enumerate(pictures.keys))
    viewer = Template(_part("viewer.html")).substitute(
        thumbnails=thumbnails, note=_viewer_note(results), stage=_shared("stage.html"), sides=_shared("sides.html")
    )
    sections = {"pictures": images, "curves": True, "bd-rates": bd_rows, "means": True, "details": True}
    page = Template(_part("page.html")).substitute(
        policy=_policy(plotly, script),
        style=_shared("base.css") + _shared("stage.css") + _part("page.css"),
        lead=_lead(results),
        sections="".join(f'<a href="#{name}">{SECTIONS[name]}</a>' for name, there in sections.items() if there),
        viewer=viewer if images else "",
        bd_rates=_bd_rates(bd_rows, results) if bd_rows else "",
        means=_means(results),
        details=_details(results, published),
        data=json.dumps(data, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c"),
        plotly=plotly,
        script=script,
        pictures="".join(embedded.blocks),
    )
    # The name of a file may hold bytes that are not text: they are shown as escapes.
    write_bytes(path, page.encode("utf-8", errors="backslashreplace"))


SECTIONS = {
    "pictures": "Pictures",
    "curves": "Curves",
    "bd-rates": "BD-rates",
    "means": "Means",
    "details": "Details",
}


def _part(name: str) -> str:
    return (files("gic.benchmark") / "page" / name).read_text(encoding="utf-8")


def _shared(name: str) -> str:
    """What this page and the demo's have in common."""
    return (files("gic") / "pages" / name).read_text(encoding="utf-8")


def _policy(*scripts: str) -> str:
    """Content-Security-Policy: only these scripts, and no external sources."""
    hashes = [base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() for script in scripts]
    allowed = " ".join(f"'sha256-{value}'" for value in hashes)
    return (
        f"default-src 'none'; script-src {allowed}; style-src 'unsafe-inline'; img-src data: blob:; "
        "base-uri 'none'; form-action 'none'"
    )


# --- pictures and their data ------------------------------------------------------------------------------------------


class _Embedded:
    """Pictures embedded in the page, each once, identified by number."""

    def __init__(self) -> None:
        self.blocks: list[str] = []

    def add(self, data: bytes, mime: str) -> int:
        number = len(self.blocks)
        text = base64.b64encode(data).decode()
        self.blocks.append(f'<script type="text/plain" id="picture-{number}" data-mime="{mime}">{text}</script>\n')
        return number


def _saved(image: Image.Image, form: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.convert("RGB").save(buffer, form, **options)
    return buffer.getvalue()


def _reconstruction_file(image: Image.Image) -> tuple[bytes, str]:
    """A reconstruction as a file that browsers show.

    AVIF of quality 95 without chroma subsampling is 44 to 48 dB from Kodak pictures and reconstructions of them, at two
    fifths of the size of lossless WebP, which is used if Pillow was built without AVIF.
    """
    if features.check("avif"):
        return _saved(image, "AVIF", quality=95, subsampling="4:4:4", speed=8), "image/avif"
    return _saved(image, "WEBP", lossless=True), "image/webp"


def _curve_data(curve: Curve, results: Results, common: Mapping[str, Sequence[str]]) -> dict[str, Any]:
    """A curve for the charts: each value with its rate, both over the images that all curves have in common."""

    def pair(point: Point, name: str) -> list[float | None] | None:
        keys = common[name]
        return [point.mean("bits_per_pixel", keys), point.mean(name, keys)] if keys and point.having(name) else None

    return {
        "name": curve.name,
        "tested": results.under_test(curve),
        "points": [
            {
                "setting": point.setting,
                "values": {name: pair(point, name) for name in results.metrics},
            }
            for point in curve.points
        ],
    }


def _image_data(results: Results, key: str, pictures: PictureSource, embedded: _Embedded) -> dict[str, Any]:
    """Data of an image for the viewer; its pictures are embedded."""
    size = next(((image["width"], image["height"]) for image in results.images if image["key"] == key), None)
    if size is None:
        raise DataError(f"there is a picture of {key}, which is not among the images that were measured")
    original = embedded.add(_saved(pictures.original(key), "WEBP", lossless=True), "image/webp")

    near: dict[int, list[list[int | None]]] = {}
    closest: dict[int, list[int | None]] = {}
    for number, curve in enumerate(results.curves):
        if results.under_test(curve):
            near[number] = [_partners(results, curve, position, key) for position in range(len(curve.points))]
            closest[number] = [
                _closest(results, key, curve.points[position].images[key].bytes, partners)
                for position, partners in enumerate(near[number])
            ]
    used = {
        (number, position)
        for rows in near.values()
        for partners in rows
        for number, position in enumerate(partners)
        if position is not None
    }

    def picture(curve: Curve, setting: str) -> int | None:
        kept = pictures.file(curve.name, setting, key)
        if kept is not None and kept[1] in SHOWN_BY_BROWSERS:
            return embedded.add(*kept)
        image = pictures.reconstruction(curve.name, setting, key)
        return None if image is None else embedded.add(*_reconstruction_file(image))

    return {
        "key": key,
        "width": size[0],
        "height": size[1],
        "original": original,
        "originals": {name: values.get(key) for name, values in results.originals.items()},
        "files": [
            [
                {
                    "bytes": measured.bytes,
                    "bpp": measured.bits_per_pixel,
                    "encode": measured.encode_seconds,
                    "decode": measured.decode_seconds,
                    "metrics": measured.metrics,
                    "picture": picture(curve, point.setting) if (number, position) in used else None,
                }
                for position, point in enumerate(curve.points)
                for measured in (point.images[key],)
            ]
            for number, curve in enumerate(results.curves)
        ],
        "near": near,
        "closest": closest,
    }


def _partners(results: Results, chosen: Curve, position: int, key: str) -> list[int | None]:
    """For every curve the point that is compared with one of ``chosen``.

    Curves of the same codec share the file; other codecs use the file with the nearest size.
    """
    point = chosen.points[position]
    size = point.images[key].bytes
    partners: list[int | None] = []
    for curve in results.curves:
        if curve.codec == chosen.codec:
            settings = [other.setting for other in curve.points]
            partners.append(settings.index(point.setting) if point.setting in settings else None)
        else:
            distances = [abs(other.images[key].bytes - size) for other in curve.points]
            partners.append(distances.index(min(distances)) if distances else None)
    return partners


def _closest(results: Results, key: str, size: int, partners: Sequence[int | None]) -> int | None:
    """Number of the baseline's curve whose file is nearest in size."""
    distances = {
        number: abs(curve.points[position].images[key].bytes - size)
        for number, (curve, position) in enumerate(zip(results.curves, partners, strict=True))
        if position is not None and not results.under_test(curve)
    }
    return min(distances, key=distances.__getitem__, default=None)


def _thumbnail(number: int, key: str, image: Image.Image) -> str:
    small = image.convert("RGB")
    small.thumbnail(THUMBNAIL)
    source = f"data:image/webp;base64,{base64.b64encode(_saved(small, 'WEBP', quality=80)).decode()}"
    name = escape(key)
    return (
        f'<label title="{name}"><input type="radio" name="image" value="{number}"><img src="{source}" alt="">'
        f"<span>{name}</span></label>\n"
    )


def _viewer_note(results: Results) -> str:
    shown = "AVIF of quality 95, 4:4:4" if features.check("avif") else "lossless WebP"
    realism = (
        "r is realism: 0 is closest to the original, 1 most like a photograph. "
        if any(curve.decoding.startswith("r=") for curve in results.curves)
        else ""
    )
    return (
        f"{realism}Other codecs are shown with the file whose size is nearest to the chosen one. JPEG, WebP and AVIF "
        "are the measured files, decoded by this browser; the pictures of other files are embedded as "
        f"{shown}, the originals as lossless WebP. Values were measured on the decoded pictures, not on these copies."
    )


# --- text and tables --------------------------------------------------------------------------------------------------


def _number(value: float | None, digits: int = 4) -> str:
    """A number with ``digits`` significant digits.

    >>> _number(27.98823), _number(0.3), _number(-0.00012346), _number(512.0), _number(None)
    ('27.99', '0.3000', '−0.0001235', '512.0', '–')
    """
    return "–" if value is None else f"{value:#.{digits}g}".rstrip(".").replace("-", "−")


def _count(number: int, noun: str) -> str:
    """A number and its noun.

    >>> _count(1, "image"), _count(24, "image")
    ('1 image', '24 images')
    """
    return f"{number} {noun}{'' if number == 1 else 's'}"


def _plain(value: Any) -> str:
    """A value of ``about`` or of a codec's parameters, for people."""
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {_plain(inner)}" for name, inner in value.items())
    if isinstance(value, (list, tuple)):
        return ", ".join(map(_plain, value))
    return str(value)


def _facts(facts: Iterable[tuple[str, str]]) -> str:
    rows = "".join(f"<dt>{escape(name)}</dt><dd>{escape(text)}</dd>" for name, text in facts)
    return f'<dl class="facts">{rows}</dl>'


def _section(name: str, *parts: str) -> str:
    title = f'<h2 id="{name}-title">{SECTIONS[name]}</h2>'
    return f'<section id="{name}" aria-labelledby="{name}-title">{title}{"".join(parts)}</section>'


def _table(label: str, heads: Sequence[str], bodies: str, kind: str = "") -> str:
    """A table that scrolls by itself, of class ``kind``; ``bodies`` is HTML."""
    head = "".join(f'<th scope="col">{escape(text)}</th>' for text in heads)
    return (
        f'<div class="scroll" role="region" tabindex="0" aria-label="{escape(label)}"><table class="{kind}">'
        f"<thead><tr>{head}</tr></thead>{bodies}</table></div>"
    )


def _row(name: str, cells: Iterable[str]) -> str:
    """A row of a table; ``cells`` are HTML."""
    return f'<tr><th scope="row">{escape(name)}</th>{"".join(f"<td>{cell}</td>" for cell in cells)}</tr>'


def _head(metric: MetricInfo, label: str) -> str:
    return f"{label}{', ' + metric.unit if metric.unit else ''} {'↑' if metric.higher_better else '↓'}"


def _lead(results: Results) -> str:
    counts = {
        "image": len(results.images),
        "codec": len({curve.codec for curve in results.curves}),
        "curve": len(results.curves),
        "metric": len(results.metrics),
    }
    return (
        f"{', '.join(_count(number, noun) for noun, number in counts.items())}. Sizes are those of whole files; bits "
        "per pixel are over the pixels of the original; means are over all images, or over n where that is stated."
    )


def _about(results: Results) -> str:
    facts = [(name, _plain(value)) for name, value in results.about.items() if value is not None]
    return f"<details><summary>How and where this was made</summary>{_facts(facts)}</details>"


def _means(results: Results) -> str:
    measures: dict[str, tuple[str, Callable[[float], str]]] = {
        "bytes": ("bytes", lambda value: f"{value:,.0f}"),
        "bits per pixel": ("bits_per_pixel", lambda value: f"{value:.4f}"),
        **{_head(metric, results.label(metric)): (name, _number) for name, metric in results.metrics.items()},
        "encode, s": ("encode_seconds", lambda value: _number(value, 3)),
        "decode, s": ("decode_seconds", lambda value: _number(value, 3)),
        "encode, peak MiB": ("encode_peak_bytes", lambda value: f"{value / 2**20:,.0f}"),
        "decode, peak MiB": ("decode_peak_bytes", lambda value: f"{value / 2**20:,.0f}"),
    }
    points = [point for curve in results.curves for point in curve.points]
    columns = {
        head: column for head, column in measures.items() if any(point.mean(column[0]) is not None for point in points)
    }
    bodies = ""
    for curve in results.curves:
        rows = ""
        for point in curve.points:
            rows += _row(point.setting, (_mean(point, name, text) for name, text in columns.values()))
        title = f"{escape(curve.name)}<small>{escape(curve.decoding)}</small>"
        bodies += (
            f'<tbody><tr><th scope="rowgroup" colspan="{len(columns) + 1}"><span>{title}</span></th></tr>{rows}</tbody>'
        )
    note = '<p class="note">↑ higher is better, ↓ lower is better. Encoding and decoding in seconds for an image.</p>'
    remarks = "".join(f"<li>{escape(remark)}</li>" for remark in results.remarks())
    absent = f'<div class="card"><h3>Not computed</h3>{_facts(results.not_computed.items())}</div>'
    return _section(
        "means",
        note,
        f'<ul class="note">{remarks}</ul>' if remarks else "",
        _table("Means", ["", *columns], bodies),
        absent if results.not_computed else "",
    )


def _mean(point: Point, name: str, text: Callable[[float], str]) -> str:
    """A cell of the table of means: a dash where there is none, and n where it is not over all images."""
    mean, count = point.mean(name), len(point.having(name))
    if mean is None:
        return "–"
    return text(mean) + (f" <small>(n = {count})</small>" if count < len(point.images) else "")


def _bd_rates(rows: Sequence[Mapping[str, Any]], results: Results) -> str:
    """BD-rates as a table of curves and metrics, with the reasons for missing ones below."""
    names = list(dict.fromkeys(row["metric"] for row in rows))
    labels = {name: results.metrics[name].label if name in results.metrics else name for name in names}
    reasons = list(dict.fromkeys(row["reason"] for row in rows if row["percent"] is None))

    def cell(row: Mapping[str, Any] | None) -> str:
        if row is None:
            return ""
        if row["percent"] is None:
            return f'<span class="none">–<sup>{reasons.index(row["reason"]) + 1}</sup></span>'
        kind = "fewer" if row["percent"] < 0 else "more"
        return f'<span class="{kind}">{_percent(row["percent"])}</span>{fewer_images(row, len(results.images))}'

    by_place = {(row["curve"], row["metric"]): row for row in rows}
    curves = dict.fromkeys(row["curve"] for row in rows)
    body = "".join(_row(curve, (cell(by_place.get((curve, name))) for name in names)) for curve in curves)
    notes = "".join(f"<li>{escape(str(reason))}</li>" for reason in reasons)
    listed = "".join(
        _row(
            row["curve"],
            [
                escape(labels[row["metric"]]),
                "–" if row["percent"] is None else _percent(row["percent"]),
                _range(row["metric_range"]),
                _range(row["rate_range"]),
            ],
        )
        for row in rows
    )
    anchors = list(dict.fromkeys(row["anchor"] for row in rows if row.get("anchor")))
    against = f" against {escape(', '.join(anchors))}" if anchors else ""
    return _section(
        "bd-rates",
        f'<p class="note">Bits{against} for the same value of a metric, on average over the values that both reach: '
        "−20 % is a fifth fewer.</p>",
        _table("BD-rates", ["", *labels.values()], f"<tbody>{body}</tbody>"),
        f'<ol class="note">{notes}</ol>' if notes else "",
        "<details><summary>Ranges of values and rates</summary>",
        _table(
            "Ranges of the BD-rates",
            ["", "metric", "BD-rate", "values", "bits per pixel"],
            f"<tbody>{listed}</tbody>",
        ),
        "</details>",
    )


def _percent(value: float) -> str:
    """A signed percentage.

    >>> _percent(-23.456), _percent(4.0)
    ('−23.5 %', '+4.0 %')
    """
    return f"{value:+.1f} %".replace("-", "−")


def _range(ends: Sequence[float] | None) -> str:
    return "–" if ends is None else f"{_number(ends[0])} to {_number(ends[1])}"


def _details(results: Results, published: Sequence[Mapping[str, Any]]) -> str:
    def listed(title: str, heads: Sequence[str], rows: Iterable[tuple[str, Sequence[str]]], opened: bool = True) -> str:
        body = "".join(_row(name, map(escape, cells)) for name, cells in rows)
        table = _table(title, ["", *heads], f"<tbody>{body}</tbody>", "text")
        return f"<details{' open' if opened else ''}><summary>{title}</summary>{table}</details>"

    over = {"image": "mean over the images", "set": "all images together"}
    return _section(
        "details",
        listed(
            "Metrics",
            ["value", "identity"],
            ((_head(m, m.label), [over[m.kind], m.identity]) for m in results.metrics.values()),
        ),
        listed(
            "Codecs",
            ["version", "settings"],
            ((curve.name, [curve.version, _plain(curve.parameters)]) for curve in results.curves),
        ),
        listed(
            "Published curves",
            ["source", "how it was measured"],
            ((curve["name"], [curve["source"], curve.get("note", "")]) for curve in published),
            opened=False,
        )
        if published
        else "",
        listed(
            "Images",
            ["size", "SHA-256 of the pixels"],
            ((str(i["key"]), [f"{i['width']} × {i['height']}", str(i["sha256"])]) for i in results.images),
            opened=False,
        ),
        _about(results),
        '<p class="note">The curves are drawn by plotly.js, © Plotly Technologies Inc., MIT licence.</p>',
    )
