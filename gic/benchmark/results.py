"""Results of a benchmark run: one schema for every codec, kept as JSON and CSV (DESIGN 10).

A *codec* at one *setting* (a level q, a JPEG quality, ...) turns each image into one file; a *decoding* (realism,
sampler, steps) turns files back into images. A curve is a codec with a decoding; its points are the settings.
"""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Mapping, Sequence
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
        metrics: Values of the metrics of kind ``image``; None where a metric is not defined (an image too small).
    """

    bytes: int
    bits_per_pixel: float
    encode_seconds: float
    decode_seconds: float
    encode_peak_bytes: int | None
    decode_peak_bytes: int | None
    metrics: Mapping[str, float | None]


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

    def mean(self, measure: str) -> float | None:
        """Mean over the images of a measure or a metric; the value itself for a metric of kind ``set``.

        None if there is none, or if it is not defined for every image: means are never over fewer images.
        """
        if measure in self.sets:
            return self.sets[measure]
        if measure in MEASURES:
            values = [getattr(m, measure) for m in self.images.values()]
        else:
            values = [m.metrics.get(measure) for m in self.images.values()]
        if not values or any(value is None for value in values):
            return None
        return math.fsum(values) / len(values)


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
        originals: Values of the no-reference metrics for the originals, by metric and image.
    """

    about: Mapping[str, Any]
    images: Sequence[Mapping[str, Any]]
    metrics: Mapping[str, MetricInfo]
    not_computed: Mapping[str, str]
    curves: Sequence[Curve]
    originals: Mapping[str, Mapping[str, float]] = field(default_factory=dict)

    def under_test(self, curve: Curve) -> bool:
        """Whether a curve is of a codec under test: one with a choice of decoding, or the first if none has one."""
        if any(other.decoding for other in self.curves):
            return bool(curve.decoding)
        return curve.codec == self.curves[0].codec

    def to_json(self) -> str:
        """All results as JSON, with means beside the values."""
        data = {"schema": SCHEMA, **asdict(self)}
        for curve, plain in zip(self.curves, data["curves"], strict=True):
            for point, entry in zip(curve.points, plain["points"], strict=True):
                names = [*MEASURES, *(name for name, info in self.metrics.items() if info.kind == "image")]
                entry["mean"] = {name: point.mean(name) for name in names}
        return json.dumps(data, indent=1, allow_nan=False) + "\n"

    def to_csv(self) -> str:
        """Means, one line for each point."""
        out = io.StringIO()
        writer = csv.writer(out, lineterminator="\n")
        writer.writerow(["curve", "codec", "decoding", "setting", "images", *MEASURES, *self.metrics])
        for curve in self.curves:
            for point in curve.points:
                means = [point.mean(name) for name in (*MEASURES, *self.metrics)]
                cells = ["" if value is None else f"{value:.8g}" for value in means]
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
