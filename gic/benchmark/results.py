"""Results of a benchmark run: one schema for every codec, kept as JSON and CSV (DESIGN 10).

A *codec* at one *setting* (a level q, a JPEG quality, ...) turns each image into one file; a *decoding* (realism,
sampler, steps) turns files back into images. A curve is a codec with a decoding; its points are the settings.
"""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from gic.errors import DataError
from gic.files import write_bytes
from gic.quality.metric import MetricInfo

SCHEMA = "gic-benchmark/1"

MEASURES = ("bytes", "bits_per_pixel", "encode_seconds", "decode_seconds", "encode_peak_bytes", "decode_peak_bytes")


@dataclass(frozen=True)
class Measurement:
    """One image at one point.

    Attributes:
        bytes: Size of the file.
        bits_per_pixel: Bits of the file over the pixels of the original.
        encode_seconds: Image in memory to file in memory, synchronised.
        decode_seconds: File in memory to image in memory, synchronised.
        encode_peak_bytes: Peak memory while encoding, beyond the memory in use before; None if unknown.
        decode_peak_bytes: The same while decoding.
        metrics: Values of the metrics of kind ``image``; None where there is none.
        reasons: Why there is none, by name of the metric.
    """

    bytes: int
    bits_per_pixel: float
    encode_seconds: float
    decode_seconds: float
    encode_peak_bytes: int | None
    decode_peak_bytes: int | None
    metrics: Mapping[str, float | None]
    reasons: Mapping[str, str] = field(default_factory=dict)

    def value(self, measure: str) -> float | None:
        """A measure or a metric."""
        return getattr(self, measure) if measure in MEASURES else self.metrics.get(measure)


@dataclass(frozen=True)
class Point:
    """One setting of a curve: measurements of every image, and values derived from them.

    Attributes:
        setting: For example ``q=2`` or ``quality=30``.
        images: Measurements by the image's key.
        sets: Values of the metrics of kind ``set``.
    """

    setting: str
    images: Mapping[str, Measurement]
    sets: Mapping[str, float] = field(default_factory=dict)

    def having(self, measure: str) -> list[str]:
        """Keys of the images that have a value; all of them for a metric of kind ``set`` that has one."""
        if measure in self.sets:
            return list(self.images)
        return [key for key, measured in self.images.items() if measured.value(measure) is not None]

    def mean(self, measure: str, keys: Collection[str] | None = None) -> float | None:
        """Mean of a measure or a metric; the value itself for a metric of kind ``set``.

        Args:
            measure: Its name.
            keys: The images, each with a value; if left out those of :meth:`having`, whose number belongs beside the
                mean wherever they are not all.

        Returns:
            None if there is no image with a value.
        """
        if measure in self.sets:
            return self.sets[measure]
        values = [self.images[key].value(measure) for key in (self.having(measure) if keys is None else keys)]
        return math.fsum(values) / len(values) if values else None  # type: ignore[arg-type]


def common_images(points: Iterable[Point], metric: str) -> list[str]:
    """Keys of the images that have a value at every point that has any: only those can be compared.

    Args:
        points: At least one.
        metric: Name of the metric.
    """
    lists = [having for point in points if (having := point.having(metric))]
    shared = set.intersection(*map(set, lists)) if lists else set()
    return [key for key in lists[0] if key in shared] if lists else []


@dataclass(frozen=True)
class Curve:
    """A codec with a decoding, measured at several settings.

    Attributes:
        name: Unique in a run, for example ``gic r=1`` or ``avif``.
        codec: Name of the codec, for example ``gic``; curves of one codec share their files.
        decoding: For example ``r=1, heun, 2 steps``; empty where there is no choice.
        version: Program or library and its version; for gic the model id.
        parameters: Settings that all points share.
        points: From the smallest files to the largest.
    """

    name: str
    codec: str
    decoding: str
    version: str
    parameters: Mapping[str, Any]
    points: Sequence[Point]


@dataclass(frozen=True)
class Results:
    """A whole run.

    Attributes:
        about: How and where it was made: command, commit, versions, machine, time.
        images: For each image ``key``, ``width``, ``height`` and ``sha256`` of its pixels.
        metrics: The metrics that were computed, by name.
        not_computed: Why others were not computed, by name of the metric or the codec.
        curves: Measurements.
        originals: Values of the no-reference metrics for the originals, by metric and image, where there are any.
        patches: How many patches of the images the metrics of kind ``set`` compare, by metric.
    """

    about: Mapping[str, Any]
    images: Sequence[Mapping[str, Any]]
    metrics: Mapping[str, MetricInfo]
    not_computed: Mapping[str, str]
    curves: Sequence[Curve]
    originals: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    patches: Mapping[str, int] = field(default_factory=dict)

    def label(self, metric: MetricInfo) -> str:
        """A metric's label, with the number of patches of one of kind ``set``."""
        return metric.label + (f", n = {self.patches[metric.name]}" if metric.name in self.patches else "")

    def common(self, metric: str) -> list[str]:
        """Keys of the images that curves are drawn over: with a value at every point of every curve.

        The originals count as a curve if they have any.
        """
        keys = common_images([point for curve in self.curves for point in curve.points], metric)
        originals = self.originals.get(metric)
        return [key for key in keys if key in originals] if originals else keys

    def over(self, metric: MetricInfo) -> str:
        """What a curve is over, ``n = 23 of 24 images`` or ``n = 192 patches``; empty if that is all images."""
        if metric.name in self.patches:
            return f"n = {self.patches[metric.name]} patches"
        count, total = len(self.common(metric.name)), len(self.images)
        return "" if metric.kind == "set" or count == total else f"n = {count} of {total} images"

    def remarks(self) -> list[str]:
        """What must be known to read the values: means over fewer images, and sets of too few patches."""
        lines = []
        for name, info in self.metrics.items():
            points = [point for curve in self.curves for point in curve.points]
            if info.kind == "set":
                lines += [text] if name in self.patches and (text := info.caution(self.patches[name])) else []
                without_any = sum(name not in point.sets for point in points)
                lines += [f"{info.label} has no value at {without_any} of {len(points)} points"] if without_any else []
                continue
            without: dict[str, str] = {}
            for point in points:
                for key, measured in point.images.items():
                    if measured.metrics.get(name) is None:
                        without.setdefault(key, measured.reasons.get(name, "the reason was not kept"))
            if without:
                shown = "; ".join(f"{key}: {reason}" for key, reason in [*without.items()][:3])
                some = "" if all(set(without).isdisjoint(point.having(name)) for point in points) else " at some points"
                lines.append(
                    f"{info.label} has no value for {len(without)} of {len(self.images)} images{some}, and its means "
                    f"are over the others: {shown}" + ("; ..." if len(without) > 3 else "")
                )
        return lines

    def under_test(self, curve: Curve) -> bool:
        """Whether a curve is of a codec under test: one with a choice of decoding, or the first if none has one."""
        if any(other.decoding for other in self.curves):
            return bool(curve.decoding)
        return curve.codec == self.curves[0].codec

    def to_json(self) -> str:
        """All results as JSON, with means beside the values, and the number of images of those over fewer than all."""
        data = {"schema": SCHEMA, **asdict(self)}
        for curve, plain in zip(self.curves, data["curves"], strict=True):
            for point, entry in zip(curve.points, plain["points"], strict=True):
                names = [*MEASURES, *(name for name, info in self.metrics.items() if info.kind == "image")]
                entry["mean"] = {name: point.mean(name) for name in names}
                counts = {name: len(point.having(name)) for name in names}
                entry["n"] = {name: count for name, count in counts.items() if count < len(point.images)}
        return json.dumps(data, indent=1, allow_nan=False) + "\n"

    def to_csv(self) -> str:
        """Means, one line for each point; a column ``n_...`` counts the images of a metric that lacks values."""
        out = io.StringIO()
        writer = csv.writer(out, lineterminator="\n")
        points = [point for curve in self.curves for point in curve.points]
        fewer = [name for name in self.metrics if any(len(p.having(name)) < len(p.images) for p in points)]
        counts = [f"n_{name}" for name in fewer]
        writer.writerow(["curve", "codec", "decoding", "setting", "images", *MEASURES, *self.metrics, *counts])
        for curve in self.curves:
            for point in curve.points:
                means = [point.mean(name) for name in (*MEASURES, *self.metrics)]
                cells = ["" if value is None else f"{value:.8g}" for value in means]
                cells += [str(len(point.having(name))) for name in fewer]
                writer.writerow([curve.name, curve.codec, curve.decoding, point.setting, len(point.images), *cells])
        return out.getvalue()

    @classmethod
    def from_json(cls, text: str | bytes) -> Results:
        """Read what :meth:`to_json` wrote.

        Raises:
            DataError: If it is something else.
        """
        try:
            data = json.loads(text)
            if data["schema"] != SCHEMA:
                raise DataError(f"results of schema {data['schema']!r}, this version of gic reads {SCHEMA!r}")
            curves = []
            for curve in data["curves"]:
                points = [
                    Point(p["setting"], {key: Measurement(**m) for key, m in p["images"].items()}, p["sets"])
                    for p in curve.pop("points")
                ]
                curves.append(Curve(**curve, points=points))
            return cls(
                data["about"],
                data["images"],
                {name: MetricInfo(**info) for name, info in data["metrics"].items()},
                data["not_computed"],
                curves,
                data["originals"],
                data.get("patches", {}),
            )
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            raise DataError(f"these are no results of gic test: {error!r}") from error


def load_results(path: str | Path) -> Results:
    """Read a results file.

    Raises:
        DataError: If it is missing or something else.
    """
    try:
        return Results.from_json(Path(path).read_bytes())
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}") from error


def save_results(folder: Path, results: Results) -> list[Path]:
    """Write ``results.json`` and ``results.csv``, each whole or not at all; returns their paths."""
    paths = [folder / "results.json", folder / "results.csv"]
    for path, text in zip(paths, (results.to_json(), results.to_csv()), strict=True):
        write_bytes(path, text.encode())
    return paths
