"""Writing shards: tar files of pictures in WebDataset form, which training reads in sequence.

A shard ``train-000000.tar`` holds for each picture ``NNNNNN.jpg`` (or png, webp) and ``NNNNNN.json``. The
same input gives the same bytes: members carry no time and no owner. New shards are written beside the
output under a hidden name and moved into place once all are complete, so that an interrupted run leaves
no partial output.
"""

from __future__ import annotations

import io
import json
import os
import random
import re
import shutil
import tarfile
import tempfile
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import chain, islice
from pathlib import Path
from typing import Literal, NamedTuple

from PIL import Image
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from gic.errors import ConfigError, DataError, ImageError, counted
from gic.files import naming, printable, replacing
from gic.pictures.find import find_images
from gic.pictures.load import load_rgb

ImageFormat = Literal["jpg", "png", "webp"]
_STAGING = ".unfinished-"  # begin of the names of folders in which shards are written

TRAINING_CROP = 256
"""Side of the crops of training if the config says nothing else (``data.crop_size``), in pixels."""


class Sample(NamedTuple):
    """One picture of a shard.

    Attributes:
        key: Name of its members without ending, unique within a set of shards, without dots.
        extension: Ending of the image member, for example ``"jpg"``.
        image: The image file's bytes.
        about: Content of the json member.
    """

    key: str
    extension: str
    image: bytes
    about: dict[str, object]


@dataclass(frozen=True)
class ShardReport:
    """Result of :func:`write_shards`.

    Attributes:
        written: Number of pictures in the shards.
        copied: How many of these are the bytes of the source file, unchanged.
        shards: The shards, in order.
        notes: Count of each kind of change to pictures, for example "CMYK converted ...".
        skipped: Sources that were left out, with the reason.
        small: How many of those written have a shorter side below :data:`TRAINING_CROP`.
    """

    written: int = 0
    copied: int = 0
    shards: tuple[Path, ...] = ()
    notes: dict[str, int] = field(default_factory=dict)
    skipped: tuple[tuple[Path, str], ...] = ()
    small: int = 0


def write_tar(path: Path, samples: Iterable[Sample]) -> None:
    """Write one shard; the same samples give the same bytes.

    Args:
        path: The file to write; for a file that must appear whole, one in a :func:`staging` folder.
        samples: Its samples, in order.
    """
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as tar:
        for sample in samples:
            text = json.dumps(sample.about, ensure_ascii=False, sort_keys=True)
            about = text.encode(errors="backslashreplace")  # a name that is no UTF-8: JSON's own escape
            for extension, data in ((sample.extension, sample.image), ("json", about)):
                member = tarfile.TarInfo(f"{sample.key}.{extension}")  # time 0, owner 0
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))


@contextmanager
def staging(output: Path) -> Iterator[Path]:
    """Create a hidden folder inside the output folder to write in; it is always removed at the end.

    Args:
        output: Folder into which files are then moved by ``os.replace``; created if missing.

    Yields:
        An empty folder on the same file system.
    """
    output.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=_STAGING, dir=output) as folder:
        yield Path(folder)


def encode_image(image: Image.Image, image_format: ImageFormat, quality: int) -> bytes:
    """Encode a picture for a shard.

    Args:
        image: Mode "RGB".
        image_format: "jpg" (4:4:4, no chroma subsampling), "png" or "webp" (both lossless).
        quality: 1 to 100, for "jpg" only.

    Returns:
        The bytes of the image file.
    """
    buffer = io.BytesIO()
    if image_format == "jpg":
        image.save(buffer, "JPEG", quality=quality, subsampling="4:4:4", optimize=True)
    elif image_format == "png":
        image.save(buffer, "PNG")
    else:
        image.save(buffer, "WEBP", lossless=True)
    return buffer.getvalue()


def write_shards(
    sources: Sequence[str | Path],
    output: str | Path,
    *,
    prefix: str = "train",
    samples_per_shard: int = 1000,
    image_format: ImageFormat = "jpg",
    quality: int = 95,
    max_side: int | None = None,
    min_side: int = 0,
    shuffle_seed: int | None = 0,
    workers: int = 4,
    overwrite: bool = False,
    progress: bool = True,
) -> ShardReport:
    """Write shards from images of any size and mode.

    A source that is already an 8 bit sRGB JPEG, upright and small enough, is copied byte for byte (with
    all its metadata) if the shards hold JPEG; every other picture is converted by
    :func:`gic.pictures.load.load_rgb` and encoded again. Unreadable pictures are left out and reported.

    Args:
        sources: Files, folders and patterns, as for :func:`gic.pictures.find.find_images`.
        output: Folder for the shards; created if missing.
        prefix: Shards are named ``PREFIX-000000.tar`` and so on.
        samples_per_shard: Pictures in each shard but the last.
        image_format: "jpg", or lossless "png" or "webp".
        quality: JPEG quality, 1 to 100.
        max_side: Scale down (Lanczos) so that the longer side has at most this many pixels.
        min_side: Leave out pictures whose shorter side, as it would be stored, has fewer pixels.
        shuffle_seed: Shuffle the files by this seed; None keeps them sorted by path.
        workers: Number of threads that decode and encode; the result does not depend on it.
        overwrite: Replace the shards of this prefix that are already in the folder.
        progress: Show a progress bar on the error stream.

    Returns:
        Pictures and shards written, changes, and sources left out.

    Raises:
        ConfigError: If a setting lies outside its range.
        DataError: If there are no sources, none of them can be used, or the folder already has shards of
            this prefix.
    """
    _check_settings(prefix, samples_per_shard, image_format, quality, max_side, min_side, workers)
    output = Path(output)
    _existing_shards(output, prefix, overwrite)
    files = find_images(sources)
    names = _short_names(files)
    if shuffle_seed is not None:
        random.Random(shuffle_seed).shuffle(files)

    def prepare(file: Path) -> _Prepared | _Skipped:
        return _prepare(file, names[file], image_format, quality, max_side, min_side)

    notes: Counter[str] = Counter()
    skipped: list[tuple[Path, str]] = []
    written = copied = small = 0

    def samples() -> Iterator[Sample]:
        nonlocal written, copied, small
        with progress_bar(progress) as bar:
            for result in bar.track(_in_order(prepare, files, workers), total=len(files), description=prefix):
                if isinstance(result, _Skipped):
                    skipped.append((result.file, result.reason))
                    continue
                yield Sample(f"{written:06d}", image_format, result.image, result.about)
                notes.update(result.notes)
                written += 1
                copied += result.copied
                small += result.shorter_side < TRAINING_CROP

    with naming(output, output / _STAGING), staging(output) as folder:
        new: list[Path] = []
        stream = samples()
        while (first := next(stream, None)) is not None:
            new.append(folder / f"{prefix}-{len(new):06d}.tar")
            write_tar(new[-1], chain([first], islice(stream, samples_per_shard - 1)))
        if not new:
            file, reason = skipped[0]
            if len(files) == 1:
                raise DataError(f"{file} {reason}")
            raise DataError(f"none of the {len(files)} images can be used; the first, {file}: {reason}")
        old = _existing_shards(output, prefix, overwrite)
        shards = [_place(path, output / path.name) for path in new]
    for stale in set(old) - set(shards):
        stale.unlink()
    return ShardReport(written, copied, tuple(shards), dict(notes.most_common()), tuple(skipped), small)


def summary(report: ShardReport) -> Table:
    """Lay out a report for the terminal.

    Args:
        report: What :func:`write_shards` returned.

    Returns:
        A table of counts, ready for rich to print.
    """
    table = Table(
        "pictures", "what", title=f"{counted(len(report.shards), 'shard')} in {printable(report.shards[0].parent)}"
    )
    table.columns[0].justify = "right"
    table.add_row(str(report.written), "written")
    table.add_row(str(report.copied), "of these copied unchanged")
    for note, count in report.notes.items():
        table.add_row(str(count), escape(note))
    if report.skipped:
        table.add_row(str(len(report.skipped)), "left out")
    return table


def left_out(report: ShardReport, names: int = 20) -> list[str]:
    """Name the sources that were left out, and why.

    Args:
        report: What :func:`write_shards` returned.
        names: How many to name at most.

    Returns:
        Lines for the terminal; none if nothing was left out.
    """
    lines = [f"left out: {printable(file)}: {reason}" for file, reason in report.skipped[:names]]
    if len(report.skipped) > names:
        lines.append(f"left out: {len(report.skipped) - names} more")
    return lines


def too_small(report: ShardReport) -> str:
    """Warn of pictures that training passes over; empty if there are none.

    Args:
        report: What :func:`write_shards` returned.
    """
    if not report.small:
        return ""
    return (
        f"{report.small} of {counted(report.written, 'picture')} have a shorter side below {TRAINING_CROP} pixels, the "
        "crop of training (data.crop_size): training passes them over, and stops if they are more than "
        f"data.max_bad_fraction; --min-side {TRAINING_CROP} leaves them out"
    )


def progress_bar(shown: bool) -> Progress:
    """Make a progress bar for pictures, on the error stream if that is a terminal; silent if it is not to be shown."""
    console = Console(stderr=True)
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=console,
        disable=not (shown and console.is_terminal),
    )


class _Prepared(NamedTuple):
    """A picture ready for a shard."""

    image: bytes
    about: dict[str, object]
    notes: tuple[str, ...]
    copied: bool
    shorter_side: int


class _Skipped(NamedTuple):
    """A source that is left out."""

    file: Path
    reason: str


def _prepare(
    file: Path, name: str, image_format: ImageFormat, quality: int, max_side: int | None, min_side: int
) -> _Prepared | _Skipped:
    """Read, scale and encode one picture."""
    try:
        data = file.read_bytes()
        loaded = load_rgb(data, name=str(file))
    except ImageError as error:
        return _Skipped(file, str(error).removeprefix(f"{file} "))
    except OSError as error:
        return _Skipped(file, f"cannot be read: {error.strerror}")
    image, file_format, notes = loaded.image, loaded.format, list(loaded.notes)
    scale = max_side / max(image.size) if max_side else 1.0
    if scale < 1:
        width, height = (max(1, round(side * scale)) for side in image.size)
        image = image.resize((width, height), Image.Resampling.LANCZOS)
        notes.append(f"scaled down to {max_side} pixels on the longer side")
    if min(image.size) < min_side:
        return _Skipped(file, f"too small: {image.width} x {image.height}, the shorter side needs {min_side}")
    copied = file_format == "JPEG" and image_format == "jpg" and not notes
    if not copied:
        try:
            data = encode_image(image, image_format, quality)
        except (OSError, ValueError) as error:  # sides beyond what the format can hold
            return _Skipped(file, f"{image.width} x {image.height} cannot be saved as {image_format}: {error}")
    about: dict[str, object] = {
        "source": name,
        "width": image.width,
        "height": image.height,
        "notes": notes,
    }
    return _Prepared(data, about, tuple(notes), copied, min(image.size))


def _in_order(
    prepare: Callable[[Path], _Prepared | _Skipped], files: Sequence[Path], workers: int
) -> Iterator[_Prepared | _Skipped]:
    """Prepare files in threads, in order, with few results in memory at a time."""
    with ThreadPoolExecutor(workers) as pool:
        pending: deque[Future[_Prepared | _Skipped]] = deque()
        for file in files:
            pending.append(pool.submit(prepare, file))
            if len(pending) > 2 * workers:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()


def _short_names(files: Sequence[Path]) -> dict[Path, str]:
    """Name each file by its path below their common folder."""
    folders = {file.absolute().parent for file in files}
    common = os.path.commonpath(folders) if len({folder.anchor for folder in folders}) == 1 else ""
    return {file: file.absolute().relative_to(common).as_posix() for file in files}


def _place(shard: Path, target: Path) -> Path:
    """Move a finished shard to its name, through a link if that is one."""
    if target.is_symlink():
        with replacing(target) as temporary:
            shutil.copyfile(shard, temporary)
    else:
        shard.replace(target)
    return target


def _existing_shards(output: Path, prefix: str, overwrite: bool) -> list[Path]:
    """Shards of this prefix in a folder, refused unless they may be overwritten."""
    shard_name = re.compile(re.escape(prefix) + r"-\d{6}\.tar")
    old = sorted(path for path in output.glob("*.tar") if shard_name.fullmatch(path.name))
    if old and not overwrite:
        raise DataError(
            f"{output} already has {counted(len(old), 'shard')} {prefix}-*.tar: "
            "choose another folder or prefix, or give --overwrite (overwrite=True) to replace them"
        )
    if odd := [path for path in old if path.exists() and not path.is_file()]:
        raise DataError(f"{odd[0]} is in the way and no file: choose another folder or prefix")
    return old


def _check_settings(
    prefix: str,
    samples_per_shard: int,
    image_format: str,
    quality: int,
    max_side: int | None,
    min_side: int,
    workers: int,
) -> None:
    """Raise ConfigError for a setting outside its range."""
    if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_-]*", prefix):
        raise ConfigError(f"prefix must be made of letters, digits, - and _, not {prefix!r}")
    if image_format not in ("jpg", "png", "webp"):
        raise ConfigError(f"image_format must be jpg, png or webp, not {image_format!r}")
    if not 1 <= quality <= 100:
        raise ConfigError(f"quality must be 1 to 100, not {quality}")
    for name, value, least in (
        ("samples_per_shard", samples_per_shard, 1),
        ("max_side", max_side, 1),
        ("min_side", min_side, 0),
        ("workers", workers, 1),
    ):
        if value is not None and value < least:
            raise ConfigError(f"{name} must be at least {least}, not {value}")
    if max_side is not None and min_side > max_side:
        raise ConfigError(f"min_side ({min_side}) is above max_side ({max_side}): nothing would be left")
