"""One benchmark: measures everything that a config names, on one process or several, and writes the results."""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import Any

import torch
from PIL import Image

from gic.benchmark.bd_rate import bd_renderable, bd_table
from gic.benchmark.cache import Cache
from gic.benchmark.codecs import BenchmarkCodec, Gic, curve_name
from gic.benchmark.curves import save_curves
from gic.benchmark.published import PublishedCurve, of_as_many, read_published
from gic.benchmark.report import write_report
from gic.benchmark.results import Point, Results, save_results
from gic.benchmark.runner import ProcessGroup, Record, Runner, about_run
from gic.codec.zoo import locate
from gic.data.stream import EvalImages
from gic.errors import ConfigError, GicError, in_words, require
from gic.files import write_bytes
from gic.quality.metric import ImageMetric, SetMetric
from gic.quality.metrics import make_metrics
from gic.quality.weights import missing_files

DEFAULT_METRICS = ("psnr", "ms_ssim", "lpips_alex")


class Benchmark:
    """One benchmark: what is measured, with what, and where the results go.

    Args:
        data: Images: a folder, files, patterns or shards, or several of them; every image counts once.
        codecs: gic with its rate points and decodings; several to compare sets of weights.
        baselines: Other codecs, measured on the same images.
        metrics: Names of metrics, see ``gic weights``, or metrics of your own by ``class_path``.
        weights: Local weights of metrics by name; the others are searched for, then downloaded.
        output: Folder for results.json, results.csv, bd_rates.json, curves/, report.html and TensorBoard's log.
        cache: Folder for finished measurements, which other runs may share; ``cache`` in the output if left out.
        limit: Only the first so many images.
        report_images: Number of images that the report shows.
        anchor: Reference curve of the BD-rates; if left out avif if it was measured, else the last one.
        published: CSV file with published rate points to draw in, if they are over as many images as the run.
        published_dataset: Name of the data set in that file.
        published_codecs: Names of the codecs in that file; all if left out.
    """

    def __init__(
        self,
        data: str | list[str],
        codecs: list[Gic] | None = None,
        baselines: list[BenchmarkCodec] | None = None,
        metrics: list[str | ImageMetric | SetMetric] = list(DEFAULT_METRICS),  # noqa: B006
        weights: dict[str, str] | None = None,
        output: str = "runs/test",
        cache: str | None = None,
        limit: int | None = None,
        report_images: int = 6,
        anchor: str | None = None,
        published: str | None = None,
        published_dataset: str = "kodak",
        published_codecs: list[str] | None = None,
    ) -> None:
        self.data = data
        self.codecs = [Gic()] if codecs is None else codecs
        self.baselines = baselines or []
        if not self.codecs and not self.baselines:
            raise ConfigError("there is nothing to measure: name codecs or baselines")
        curves = [curve_name(each.name, way) for each in (*self.codecs, *self.baselines) for way in each.decodings]
        if anchor is None:
            anchor = "avif" if "avif" in curves else curves[-1]
        if anchor not in curves:
            raise ConfigError(f"BD-rates are against the anchor {anchor!r}; it must be one of: {', '.join(curves)}")
        if not metrics:
            raise ConfigError("there is nothing to measure with: name metrics")
        self.metrics = list(dict.fromkeys(metrics))
        self.weights = weights
        self.output = Path(output)
        self.cache = Path(cache) if cache else self.output / "cache"
        self.limit = limit
        self.report_images = report_images
        self.anchor = anchor
        self.published: Sequence[PublishedCurve] = (
            read_published(Path(published), published_dataset, published_codecs) if published else ()
        )

    def check(self, checkpoint: str | None = None) -> None:
        """Look for the images, the weights of the codecs and a place to write, before anything slow begins.

        Args:
            checkpoint: Weights of the codecs that name none.

        Raises:
            ConfigError: If any are missing; the text names them all.
        """
        problems = []
        try:
            EvalImages(self.data, limit=self.limit)
        except GicError as error:
            problems.append(str(error))
        for name in dict.fromkeys(codec.checkpoint or checkpoint for codec in self.codecs):
            try:
                path = locate(name)
            except GicError as error:
                problems.append(str(error))
                continue
            if not path.is_file():
                problems.append(f"no checkpoint {path}: name an existing .ckpt or .safetensors file")
        for folder in dict.fromkeys((self.output, self.cache)) if not problems else ():
            try:
                folder.mkdir(parents=True, exist_ok=True)
                with NamedTemporaryFile(dir=folder) as file:
                    file.write(bytes(1 << 12))
            except OSError as error:
                problems.append(f"nothing can be written in {folder}: {in_words(error)}")
        if problems:
            raise ConfigError("; ".join(problems))

    def run(
        self, team: ProcessGroup, command: Sequence[str], checkpoint: str | None = None, trust: Sequence[str] = ()
    ) -> Results | None:
        """Measure everything; returns the results on the first process, None on the others.

        Args:
            team: The processes.
            command: Words that started the run, for the record.
            checkpoint: Weights of the codecs that name none.
            trust: Packages of the user's own whose classes weights may name.

        Raises:
            GicError: If an image fails or settings are wrong; earlier measurements are kept.
        """
        for codec in self.codecs:
            codec.checkpoint = codec.checkpoint or checkpoint
            codec.trust = trust
        first = team.rank == 0
        runner = Runner(
            [*self.codecs, *self.baselines], (), (), Cache(self.cache), team, report_images=self.report_images
        )
        named = [name for name in self.metrics if isinstance(name, str)]
        if first:
            with suppress(GicError):  # make_metrics says what is wrong
                if absent := missing_files(named, self.weights):
                    print(f"not here, to be downloaded: {', '.join(absent)}", file=sys.stderr)
        image_metrics, set_metrics, missing = make_metrics(self.metrics, self.weights, str(team.device))
        if not image_metrics and not set_metrics:
            raise ConfigError("none of the metrics can be computed: " + "; ".join(missing.values()))
        runner.measure_with(image_metrics, set_metrics)
        runner.not_computed.update(missing)
        for name, reason in runner.not_computed.items():
            if first:
                print(f"not computed: {name}: {reason}", file=sys.stderr)
        weights = checkpoint or next((c.checkpoint for c in self.codecs if c.checkpoint), None)
        about = about_run(command, team.device, weights)  # before the run, since the code may change meanwhile
        with ProgressReporter(self._count(team)) as runner.say:
            mine, failures = runner.run(self.data, self.limit)
        records = runner.collect(mine, failures)
        sets = runner.set_values(records, mine)
        if not first:
            return None
        results = runner.results(records, sets, about)
        self.published, undrawn = of_as_many(self.published, len(results.images))
        if undrawn:
            results = replace(results, not_computed={**results.not_computed, "published points": undrawn})
            print(f"WARNING: {undrawn}", file=sys.stderr)
        self._write(results, records)
        return results

    def _count(self, team: ProcessGroup) -> int | None:
        """Number of this process' images, if that is known before they are read."""
        sources = EvalImages(self.data).sources
        if any(isinstance(source, str) for source in sources):  # shards
            return None
        count = len(sources) if self.limit is None else min(self.limit, len(sources))
        return len(range(team.rank, count, team.size))

    def _write(self, results: Results, records: Sequence[Record]) -> None:
        written = save_results(self.output, results)
        rows = bd_table(results, self.anchor)
        path = self.output / "bd_rates.json"
        write_bytes(path, (json.dumps(rows, indent=1) + "\n").encode())
        written += [path, *save_curves(self.output / "curves", results, self.published)]
        report = self.output / "report.html"
        pictures = RecordPictures([record for record in records if record.pictures])
        write_report(report, results, bd_rows=rows, published=self.published, pictures=pictures)
        self._tensorboard(results)
        print_summary(results, rows)
        print(
            f"written: {self.output}/ ({', '.join(str(p.relative_to(self.output)) for p in [*written[:3], report])}, "
            "curves/)"
        )

    def _tensorboard(self, results: Results) -> None:
        """Each metric of each curve over the rate, as in the figures; the step is thousandths of a bit per pixel."""
        require("tensorboard")
        from torch.utils.tensorboard import SummaryWriter

        with SummaryWriter(str(self.output / "tensorboard")) as board:
            for curve in results.curves:
                for name, metric in results.metrics.items():
                    keys = results.common(name)
                    over = f" ({results.over(metric)})" if metric.kind == "image" and results.over(metric) else ""
                    for point in curve.points:
                        if keys and point.having(name):
                            rate, value = point.mean("bits_per_pixel", keys), point.mean(name, keys)
                            assert rate is not None
                            board.add_scalar(f"test/{name}/{curve.name}{over}", value, round(1000 * rate))


class RecordPictures:
    """Pictures of the report, from the records that kept them."""

    def __init__(self, records: Sequence[Record]) -> None:
        self._records = {record.key: record for record in records}

    @property
    def keys(self) -> Sequence[str]:
        """Names of the images that are shown."""
        return list(self._records)

    def original(self, key: str) -> Image.Image:
        """The original."""
        return _open(self._records[key].pictures["", ""])

    def file(self, curve: str, setting: str, key: str) -> tuple[bytes, str] | None:
        """The compressed file and its MIME type, if browsers show it."""
        data, mime = self._records[key].files[curve, setting]
        return (data, mime) if mime else None

    def reconstruction(self, curve: str, setting: str, key: str) -> Image.Image | None:
        """The decoded picture, if browsers cannot decode the file themselves."""
        data = self._records[key].pictures.get((curve, setting))
        return None if data is None else _open(data)


def _open(data: bytes) -> Image.Image:
    return Image.open(io.BytesIO(data))


class FabricProcessGroup:
    """The processes that Lightning's Fabric started.

    Args:
        fabric: Launched.
    """

    def __init__(self, fabric: Any) -> None:
        self.rank: int = fabric.global_rank
        self.size: int = fabric.world_size
        self.device: torch.device = fabric.device

    def gather(self, item: Any) -> list[Any]:
        """The items of all processes."""
        if self.size == 1:
            return [item]
        items: list[Any] = [None] * self.size
        torch.distributed.all_gather_object(items, item)
        return items


class ProgressReporter:
    """Shows which image is being measured: a progress bar on a terminal, else a line for each image."""

    def __init__(self, total: int | None) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

        console = Console(stderr=True)
        self._lines = not console.is_terminal
        columns = [BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TextColumn("{task.description}")]
        self._progress = Progress(*columns, console=console, transient=True, disable=self._lines)
        self._task = self._progress.add_task("", total=total)
        self._total = total
        self._current, self._count = "", 0

    def __enter__(self) -> ProgressReporter:
        self._progress.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._progress.stop()

    def __call__(self, key: str, what: str) -> None:
        """Show the current step of an image."""
        name = Path(key).name
        if key != self._current:
            if self._lines:
                total = f" of {self._total}" if self._total else ""
                print(f"image {self._count + 1}{total}: {name}", file=sys.stderr, flush=True)
            self._progress.update(self._task, completed=self._count)
            self._current, self._count = key, self._count + 1
        self._progress.update(self._task, description=f"{name} {what}")


def _cell(point: Point, name: str) -> str:
    """A mean as text, with the number of its images where they are not all."""
    mean, count = point.mean(name), len(point.having(name))
    if mean is None:
        return "–"
    text = f"{mean:.4f}" if abs(mean) < 10 else f"{mean:.2f}"
    return f"{text} (n = {count})" if count < len(point.images) else text


def print_summary(results: Results, bd_rows: Sequence[Mapping[str, Any]]) -> None:
    """Print means and BD-rates as tables."""
    from rich.console import Console
    from rich.table import Table

    console = Console()
    table = Table(title=f"means of {len(results.images)} images, real files")
    for heading in ("curve", "setting", "bits per pixel", *map(results.label, results.metrics.values()), "s", "s"):
        table.add_column(heading, justify="left" if heading in ("curve", "setting") else "right")
    table.columns[-2].header, table.columns[-1].header = "encode s", "decode s"
    for curve in results.curves:
        for point in curve.points:
            names = ("bits_per_pixel", *results.metrics, "encode_seconds", "decode_seconds")
            table.add_row(curve.name, point.setting, *(_cell(point, name) for name in names))
        table.add_section()
    if not console.is_terminal:  # a log file has no width limit
        console.width = max(console.width, console.measure(table, options=console.options.update(width=10_000)).maximum)
    console.print(table)
    for remark in results.remarks():
        print(f"WARNING: {remark}", file=sys.stderr)
    if bd_rows:
        console.print(bd_renderable(bd_rows, results))
