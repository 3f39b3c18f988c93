"""Runs the benchmark: files are written and read back, images measured, and the results collected (DESIGN 10).

Each process takes its share of the images, each once, and writes its measurements to a folder at once: an interrupted
run continues where it stopped. One process computes the means over all images in a fixed order, so that they do not
depend on how the images were distributed.
"""

from __future__ import annotations

import hashlib
import io
import os
import platform
import shlex
import subprocess
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime, timezone
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from gic.benchmark.cache import Cache, key_of
from gic.benchmark.codecs import BenchmarkCodec, bits_per_pixel, check_names, curve_name
from gic.benchmark.measure import timed
from gic.benchmark.results import SCHEMA, Curve, Measurement, Point, Results
from gic.data.stream import EvalImages
from gic.errors import DataError, GicError, words_of
from gic.pictures.tensors import to_image, to_tensor
from gic.quality.metric import FAILURES
from gic.version import __version__

if TYPE_CHECKING:
    from gic.quality.metrics import ImageMetric
    from gic.quality.set_metrics import SetMetric

PACKAGES = ("torch", "numpy", "pillow", "compressai", "torchmetrics", "lpips", "pyiqa", "torch-fidelity", "bjontegaard")


class ProcessGroup(Protocol):
    """The processes of a run; :class:`SingleProcess` or Lightning's Fabric behind :mod:`gic.benchmark.benchmark`."""

    rank: int
    size: int
    device: torch.device

    def gather(self, item: Any) -> list[Any]:
        """The items of all processes, in the order of their ranks, on every process."""


class SingleProcess:
    """A run of one process."""

    rank, size = 0, 1

    def __init__(self, device: str = "cpu") -> None:
        self.device = torch.device(device)

    def gather(self, item: Any) -> list[Any]:
        """The item itself."""
        return [item]


@dataclass
class Record:
    """Measurements of one image; plain data that is sent between processes.

    Attributes:
        key: Name of the image in its source.
        width: In pixels.
        height: In pixels.
        sha256: Of its RGB pixels.
        originals: No-reference metrics of the original, or why there is no value.
        measured: Measurements by curve and setting.
        features: Keys of the kept features by extractor, curve and setting; the original's curve and setting are empty.
        files: For the report: files by curve and setting, with their MIME type.
        pictures: For the report: reconstructions that no browser can decode, and the original, as PNG.
    """

    key: str
    width: int
    height: int
    sha256: str
    originals: dict[str, float | str] = field(default_factory=dict)
    measured: dict[tuple[str, str], Measurement] = field(default_factory=dict)
    features: dict[tuple[str, str, str], str] = field(default_factory=dict)
    files: dict[tuple[str, str], tuple[bytes, str]] = field(default_factory=dict)
    pictures: dict[tuple[str, str], bytes] = field(default_factory=dict)


class Progress(Protocol):
    """Callback for the progress of a process."""

    def __call__(self, key: str, what: str) -> None:
        """Report the current step of the image with that key."""


class Runner:
    """Measures codecs on images with metrics.

    Args:
        codecs: Codecs, those under test first.
        image_metrics: Metrics of one image.
        set_metrics: Metrics of all images together.
        cache: Where finished measurements are kept.
        team: The processes of the run.
        report_images: Number of images whose files and pictures are kept for the report.
        say: Called with the current step.

    Raises:
        ConfigError: If two codecs have the same name.
    """

    def __init__(
        self,
        codecs: Sequence[BenchmarkCodec],
        image_metrics: Sequence[ImageMetric],
        set_metrics: Sequence[SetMetric],
        cache: Cache,
        team: ProcessGroup | None = None,
        report_images: int = 0,
        say: Progress | None = None,
    ) -> None:
        check_names(codecs)
        self.measure_with(image_metrics, set_metrics)
        self.cache = cache
        self.team = team or SingleProcess()
        self.report_images = report_images
        self.say = say or (lambda key, what: None)
        self.not_computed: dict[str, str] = {}
        self.patches: dict[str, int] = {}
        self.codecs: list[BenchmarkCodec] = []
        for codec in codecs:
            if (reason := codec.unavailable()) is not None:
                self.not_computed[codec.name] = reason
            else:
                codec.start(str(self.team.device))
                self.codecs.append(codec)
        self._warm: set[str] = set()

    def measure_with(self, image_metrics: Sequence[ImageMetric], set_metrics: Sequence[SetMetric]) -> None:
        """Take these metrics, before the first image."""
        self.image_metrics = list(image_metrics)
        self.set_metrics = list(set_metrics)
        self.extractors = {metric.features_identity: metric.features for metric in set_metrics}

    # --- measuring ------------------------------------------------------------------------------------------------

    def run(self, source: str | Sequence[str], limit: int | None = None) -> tuple[list[Record], list[str]]:
        """Measure this process' share of the images.

        Args:
            source: Folders, files or shards, as :class:`gic.data.stream.EvalImages` takes them.
            limit: Use only this many images, the first ones.

        Returns:
            Records of this process' images, and a line for each image that could not be read or coded.
        """
        images = EvalImages(source, limit=limit, rank=self.team.rank, world_size=self.team.size)
        records: list[Record] = []
        failures: list[str] = []
        for number, item in enumerate(images):
            keep = number * self.team.size + self.team.rank < self.report_images
            pixels = item["image"]
            if pixels is None:
                failures.append(f"{item['key']}: {item['error']}")
                continue
            try:
                records.append(self.measure(item["key"], pixels, keep))
            except GicError as error:
                failures.append(f"{item['key']}: {error}")
        return records, failures

    def measure(self, key: str, pixels: Tensor, keep: bool = False) -> Record:
        """Measure one image, uint8 (3, H, W), with every codec, setting and decoding; ``keep`` is for the report."""
        digest = hashlib.sha256(np.ascontiguousarray(pixels.permute(1, 2, 0).numpy()).tobytes())
        digest.update(f"{tuple(pixels.shape)}".encode())
        record = Record(key, pixels.shape[-1], pixels.shape[-2], digest.hexdigest())
        self.say(key, "original")
        x = pixels.to(self.team.device)
        self._measure_original(record, x, keep)
        for codec in self.codecs:
            for setting in codec.settings:
                self.say(key, f"{codec.name} {setting}")
                self._measure_setting(record, codec, setting, x, keep)
        return record

    def _measure_original(self, record: Record, x: Tensor, keep: bool) -> None:
        judges = [metric for metric in self.image_metrics if not metric.needs_reference]
        key = key_of(SCHEMA, "original", record.sha256)
        record.originals = self._values(key, judges, lambda: x, x)
        self._keep_features(record, "", "", key, lambda: x)
        if keep:
            record.pictures["", ""] = _png(x)

    def _measure_setting(self, record: Record, codec: BenchmarkCodec, setting: str, x: Tensor, keep: bool) -> None:
        identity = (codec.name, codec.version, dict(codec.parameters), codec.fingerprint)
        encoded = key_of(SCHEMA, *identity, setting, record.sha256)
        for decoding in codec.decodings:
            curve = curve_name(codec.name, decoding)
            decoded = key_of(encoded, decoding)
            attempt = _Attempt(self, codec, setting, decoding, encoded, x)
            facts = self.cache.read_json(decoded)
            if facts is None:
                facts = attempt.measure()
                self.cache.write_json(decoded, facts)
            values = self._values(decoded, self.image_metrics, attempt.picture, x)
            rate = bits_per_pixel(facts["bytes"], record.width, record.height)
            reasons = {name: value for name, value in values.items() if isinstance(value, str)}
            metrics = {name: None if isinstance(value, str) else value for name, value in values.items()}
            record.measured[curve, setting] = Measurement(
                **facts, bits_per_pixel=rate, metrics=metrics, reasons=reasons
            )
            self._keep_features(record, curve, setting, decoded, attempt.picture)
            if keep:
                record.files[curve, setting] = (attempt.file(), codec.mime)
                if not codec.mime:
                    record.pictures[curve, setting] = self.cache.read(decoded, ".png") or _png(attempt.picture())
                    self.cache.write(decoded, ".png", record.pictures[curve, setting])

    def warm_up(self, codec: BenchmarkCodec, image: Image.Image, setting: str, decoding: str) -> None:
        """Code one image without measuring: the first call includes setup of tables, buffers and kernels."""
        if codec.name not in self._warm:
            codec.decode(codec.encode(image, setting), decoding)
            self._warm.add(codec.name)

    def _values(
        self, key: str, metrics: Sequence[ImageMetric], picture: Callable[[], Tensor], x: Tensor
    ) -> dict[str, float | str]:
        """Values of the metrics, or why there are none, from the cache if they are there."""
        place = key_of(key, "metrics")
        kept: dict[str, float | str] = self.cache.read_json(place) or {}
        missing = [metric for metric in metrics if kept.get(metric.info.identity) is None]
        for metric in missing:
            kept[metric.info.identity] = metric.judge(picture(), x)
        if missing:
            self.cache.write_json(place, kept)
        return {metric.info.name: kept[metric.info.identity] for metric in metrics}

    def _keep_features(self, record: Record, curve: str, setting: str, key: str, picture: Callable[[], Tensor]) -> None:
        for identity, extractor in self.extractors.items():
            place = key_of(key, identity)
            if self.cache.read_array(place) is None:
                image = picture()
                try:
                    features = extractor(image)
                except FAILURES as error:
                    raise DataError(f"{identity.split(',')[0]} fails: {words_of(error)[:200]}") from error
                self.cache.write_array(place, features)
            record.features[identity, curve, setting] = place

    # --- putting together -----------------------------------------------------------------------------------------

    def collect(self, records: list[Record], failures: list[str]) -> list[Record]:
        """Records of all processes, sorted by image, with names that are unique.

        Raises:
            DataError: If an image failed, with its name: means are never over fewer images.
        """
        everything = [record for part in self.team.gather(records) for record in part]
        failed = sorted(line for part in self.team.gather(failures) for line in part)
        if failed:
            total = len(everything) + len(failed)
            raise DataError(
                f"{len(failed)} of {total} images failed, so that no means are given: {failed[0]}"
                + (f" (and {len(failed) - 1} more: {'; '.join(failed[1:5])})" if len(failed) > 1 else "")
            )
        if not everything:
            raise DataError("there is no image to measure")
        names = short_names([record.key for record in everything])
        for record in everything:
            record.key = names[record.key]
        return sorted(everything, key=lambda record: record.key)

    def set_values(self, records: Sequence[Record], mine: Sequence[Record]) -> dict[tuple[str, str], dict[str, float]]:
        """Metrics of all images together, by curve and setting, from the features that the processes keep."""
        values: dict[tuple[str, str], dict[str, float]] = {}
        if not self.set_metrics:
            return values
        order = {record.sha256: position for position, record in enumerate(records)}
        cells = [("", ""), *(records[0].measured if records else ())]
        originals: dict[str, NDArray[np.float32]] = {}
        for identity in self.extractors:
            for curve, setting in cells:
                here = [(order[r.sha256], self.cache.read_array(r.features[identity, curve, setting])) for r in mine]
                parts = sorted((item for part in self.team.gather(here) for item in part), key=lambda item: item[0])
                together = np.concatenate([array for _, array in parts])
                judges = [metric for metric in self.set_metrics if metric.features_identity == identity]
                if not curve:
                    originals[identity] = together
                    self.patches.update({metric.info.name: len(together) for metric in judges})
                    if len(together) < 2:
                        few = f"the images have {len(together)} patches in all, and it takes two"
                        self.not_computed.update({metric.info.name: few for metric in judges})
                    continue
                for metric in judges:
                    if len(together) > 1 and metric.info.name not in self.not_computed:
                        try:
                            value = metric.value(together, originals[identity])
                        except FAILURES as error:
                            self.not_computed[metric.info.name] = f"its computation fails: {words_of(error)[:200]}"
                            continue
                        if np.isfinite(value):
                            values.setdefault((curve, setting), {})[metric.info.name] = value
        return values

    def results(
        self, records: Sequence[Record], sets: Mapping[tuple[str, str], Mapping[str, float]], about: Mapping[str, Any]
    ) -> Results:
        """Collect the measurements; the same on every process. A metric without any value is not computed."""
        for metric in self.image_metrics:
            name = metric.info.name
            measured = [each for record in records for each in record.measured.values()]
            if measured and all(each.metrics[name] is None for each in measured):
                self.not_computed[name] = f"it has no value for any image: {measured[0].reasons[name]}"
        metrics: list[ImageMetric | SetMetric] = [*self.image_metrics, *self.set_metrics]
        infos = {metric.info.name: metric.info for metric in metrics if metric.info.name not in self.not_computed}
        curves = []
        for codec in self.codecs:
            for decoding in codec.decodings:
                name = curve_name(codec.name, decoding)
                points = [
                    Point(
                        setting,
                        {record.key: record.measured[name, setting] for record in records},
                        sets.get((name, setting), {}),
                    )
                    for setting in codec.settings
                ]
                curves.append(Curve(name, codec.name, decoding, codec.version, dict(codec.parameters), points))
        judges = [metric.info.name for metric in self.image_metrics if not metric.needs_reference]
        originals = {
            name: {r.key: value for r in records if not isinstance(value := r.originals[name], str)} for name in judges
        }
        images = [{"key": r.key, "width": r.width, "height": r.height, "sha256": r.sha256} for r in records]
        patches = {name: count for name, count in self.patches.items() if name in infos}
        return Results(about, images, infos, self.not_computed, curves, originals, patches)


class _Attempt:
    """One image through one codec: runs each requested step once."""

    def __init__(
        self, runner: Runner, codec: BenchmarkCodec, setting: str, decoding: str, encoded: str, x: Tensor
    ) -> None:
        self.runner, self.codec, self.setting, self.decoding = runner, codec, setting, decoding
        self.encoded = encoded
        self.x = x
        self._picture: Tensor | None = None

    def file(self) -> bytes:
        """The file, from the cache or encoded now."""
        data = self.runner.cache.read(self.encoded, self.codec.suffix)
        return self.encode()[0] if data is None else data

    def encode(self) -> tuple[bytes, dict[str, Any]]:
        """The file and the cost of encoding it."""
        cache, device = self.runner.cache, self.runner.team.device
        data, facts = cache.read(self.encoded, self.codec.suffix), cache.read_json(self.encoded)
        if data is None or facts is None:
            image = to_image(self.x.cpu())
            self.runner.warm_up(self.codec, image, self.setting, self.decoding)
            made = timed(lambda: self.codec.encode(image, self.setting), device)
            data, facts = made.value, {"encode_seconds": made.seconds, "encode_peak_bytes": made.peak_bytes}
            cache.write(self.encoded, self.codec.suffix, data)
            cache.write_json(self.encoded, facts)
        return data, facts

    def measure(self) -> dict[str, Any]:
        """Encode, unless that is done, and decode: sizes, seconds and memory."""
        data, facts = self.encode()
        self.runner.warm_up(self.codec, to_image(self.x.cpu()), self.setting, self.decoding)
        read = timed(lambda: self.codec.decode(data, self.decoding), self.runner.team.device)
        self._keep(read.value)
        return {
            "bytes": len(data),
            **facts,
            "decode_seconds": read.seconds,
            "decode_peak_bytes": read.peak_bytes,
        }

    def picture(self) -> Tensor:
        """The decoded picture, uint8 (3, H, W)."""
        if self._picture is None:
            self._keep(self.codec.decode(self.file(), self.decoding))
        assert self._picture is not None
        return self._picture

    def _keep(self, image: Image.Image) -> None:
        picture = to_tensor(image.convert("RGB"))
        if picture.shape != self.x.shape:
            name = curve_name(self.codec.name, self.decoding)
            raise DataError(f"{name} at {self.setting} decodes to {tuple(picture.shape)}, not {tuple(self.x.shape)}")
        self._picture = picture.to(self.x.device)


def short_names(keys: Sequence[str]) -> dict[str, str]:
    """Names of images: the last part of each key where that is unique among them, else the whole key.

    >>> short_names(["kodak/kodim01.png", "kodak/kodim02.png"])
    {'kodak/kodim01.png': 'kodim01.png', 'kodak/kodim02.png': 'kodim02.png'}

    Raises:
        DataError: If two keys are equal.
    """
    twice = [key for key, count in Counter(keys).items() if count > 1]
    if twice:
        raise DataError(f"the image {twice[0]} is named twice: every image counts once")
    last = Counter(Path(key).name for key in keys)
    return {key: Path(key).name if last[Path(key).name] == 1 else key for key in keys}


def about_run(command: Sequence[str], device: torch.device, checkpoint: str | None) -> dict[str, Any]:
    """How and where a run was made."""
    versions = {"python": platform.python_version(), "gic": __version__}
    for package in PACKAGES:
        with suppress(PackageNotFoundError):
            versions[package] = version(package)
    machine: dict[str, Any] = {"system": f"{platform.system()} {platform.machine()}", "processor": _processor()}
    machine["cores"], machine["threads"] = os.cpu_count(), torch.get_num_threads()
    machine["device"] = torch.cuda.get_device_name(device) if device.type == "cuda" else str(device)
    return {
        "command": shlex.join(command),
        "commit": _commit(),
        "created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "checkpoint": checkpoint,
        "versions": versions,
        "machine": machine,
    }


def _processor() -> str:
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor()


def _commit() -> str | None:
    """Commit of the checkout that gic is run from, with ``+`` where it was changed; None outside a checkout."""
    folder = Path(__file__).parent

    def git(*words: str) -> str:
        return subprocess.run(["git", "-C", folder, *words], capture_output=True, text=True, check=True).stdout.strip()

    try:
        if Path(git("rev-parse", "--show-toplevel")) != folder.parent.parent:
            return None
        changed = git("status", "--porcelain", "--untracked-files=no", "--", "gic")
        return git("rev-parse", "HEAD") + ("+" if changed else "")
    except (OSError, subprocess.CalledProcessError):
        return None


def _png(picture: Tensor) -> bytes:
    buffer = io.BytesIO()
    to_image(picture.cpu()).save(buffer, "PNG")
    return buffer.getvalue()
