"""Streams of pictures: random crops for training, whole images for evaluation.

Training is an endless, reshuffled stream cut into epochs of a fixed number of batches, the same for every rank, and can
be resumed at any batch; :mod:`gic.data.plan` assigns shards to readers. Evaluation reads each image exactly once, at
full size.
"""

from __future__ import annotations

import signal
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypedDict

import numpy as np
import torch
from PIL import Image
from torch.utils.data import IterableDataset, get_worker_info

from gic.data.plan import random_stream, resume_position, shard_plan
from gic.data.reading import PATIENT, WHOLE_SHARD, Files, RawImage, expand_shards, names_shards, read_shard
from gic.data.remote import Remote, reason
from gic.errors import ConfigError, DataError, ImageError, counted
from gic.files import printable
from gic.pictures.find import find_images
from gic.pictures.load import load_rgb
from gic.pictures.tensors import to_tensor

# Names of the random streams that are drawn from here; gic.data.plan has its own.
_SHUFFLE, _AUGMENT = 100, 101

_JUDGED_AFTER = 100  # samples that a worker must have read before max_bad_fraction is applied
_SHARDS_JUDGED_AFTER = 20  # the same for shards
_BARREN_SHARDS = 16  # consecutive shards without a sample after which a worker stops
_GRACE = 60  # seconds that a worker continues after SIGTERM


class TrainBatch(TypedDict):
    """What :class:`~gic.data.module.TrainLoader` yields.

    Attributes:
        image: Shape (B, 3, crop, crop), uint8.
        key: Names of the B samples in their shards.
        position: Number of the batch in this rank's epoch, from 0.
        skipped: Samples and shards skipped since the worker's last batch, by reason: ``undecodable``,
            ``too_small``, ``too_large``, ``no_image``, ``unreadable_file``, ``damaged_shard`` and ``unreadable_shard``.
    """

    image: torch.Tensor
    key: list[str]
    position: int
    skipped: dict[str, int]


class EvalItem(TypedDict, total=False):
    """What :class:`EvalImages` yields.

    Attributes:
        image: Shape (3, H, W), uint8; None if the image could not be read.
        key: Name of the sample in its shard, or path of the file.
        error: Why there is no image; absent if there is one.
    """

    image: torch.Tensor | None
    key: str
    error: str


class _Tally:
    """Counts good and bad samples of one worker, and raises when there are too many bad ones."""

    def __init__(self, max_bad_fraction: float, crop_size: int) -> None:
        self.max_bad_fraction = max_bad_fraction
        self.crop_size = crop_size
        self._small = 0
        self.unreported: Counter[str] = Counter()
        self._good = self._bad = 0
        self._shards = self._bad_shards = 0
        self._barren = 0  # consecutive bad shards
        self._example = self._shard_example = ""

    def good(self) -> None:
        self._good += 1

    def skip(self, problem: str, example: str) -> None:
        self.unreported[problem] += 1
        if problem == "unreadable_shard":
            self._bad_shards += 1
            self._barren += 1
            self._shard_example = example
        else:
            self._bad += 1
            self._small += problem == "too_small"
            self._example = example

    def shard_read(self, shards: int, *, sample_seen: bool) -> None:
        """Check the shards after one of them (or a part of one) was read; ``shards`` is their number."""
        self._shards += 1
        if sample_seen:
            self._barren = 0
        if self._barren >= min(shards, _BARREN_SHARDS):
            raise DataError(
                f"no training sample could be read from {counted(self._barren, 'shard')} in a row; "
                f"for example {self._shard_example}"
            )
        too_many = self._bad_shards > self.max_bad_fraction * self._shards
        if self._shards >= _SHARDS_JUDGED_AFTER and too_many:
            raise DataError(
                f"{self._bad_shards} of {self._shards} training shards could not be read, more than {self._allowed()} "
                f"allows; for example {self._shard_example}"
            )

    def judge(self, *, end_of_pass: bool = False) -> None:
        """Raise a DataError if too many samples were bad."""
        total = self._good + self._bad
        if total == 0 or (total < _JUDGED_AFTER and not end_of_pass):
            return
        allowed = self.max_bad_fraction * total
        if not end_of_pass:  # bad samples may be early by chance: allow three standard deviations
            allowed += 3 * allowed**0.5
        if self._bad > allowed or self._good == 0:
            which = "" if self._good else ", which is all of them"
            raise DataError(
                f"{self._bad} of {total} training samples cannot be used, more than {self._allowed()} allows{which}; "
                f"for example {self._example}{self._advice()}"
            )

    def _allowed(self) -> str:
        return f"max_bad_fraction = {self.max_bad_fraction:g}"

    def _advice(self) -> str:
        """What to do about small pictures."""
        if not self._small:
            return ""
        return (
            f" ({self._small} too small: gic shards --min-side {self.crop_size} leaves them out, and a larger "
            "data.max_bad_fraction or a smaller data.crop_size accepts them)"
        )

    def take(self) -> dict[str, int]:
        """Counts by reason since the last call."""
        counts = dict(self.unreported)
        self.unreported.clear()
        return counts


@dataclass(frozen=True)
class StreamFailure:
    """A DataError passed out of a worker as an item, since a raised one would arrive wrapped in a traceback."""

    message: str


class TrainStream(IterableDataset[Any]):
    """Batches of random crops from shards, for one epoch of one rank.

    Inside a DataLoader (with ``batch_size=None``) each worker reads its own share of the shards. The
    encoded samples pass through a shuffle buffer, are decoded, scaled, cropped and flipped. Everything
    random follows from (seed, epoch, rank * workers + worker, number of the sample), so an epoch can be repeated
    from any batch on; for this the batches before are read and decoded again, but not cropped. Two ranks of one
    worker each draw the same alternating batches as one rank of two workers.

    Unusable samples are skipped and counted in the next batch.

    Attributes:
        epoch: Number of the epoch that the next iteration reads, from 0.
        batches_done: Batches of that epoch, of this rank, to skip at its beginning.

    Args:
        shards: Shards, or files that replace them, as :func:`gic.data.reading.expand_sources` lists them.
        crop_size: Side of the crops in pixels.
        batch_size: Crops per batch.
        batches_per_epoch: Batches that the rank yields, over all its workers.
        scale_range: Smallest and largest factor that images are scaled by before the crop, drawn
            log-uniformly; raised where the shorter side would fall below the crop.
        flip: Whether to mirror half of the crops, left to right.
        shuffle_buffer: Encoded samples that each worker holds to draw from; 1 does not shuffle.
        seed: Seed of the run, at least 0.
        rank: This process, in [0, world_size).
        world_size: Number of processes.
        max_bad_fraction: Share of bad samples, in [0, 1], above which a worker stops: at the end of a pass over its
            share, or after 100 samples if the share of bad ones is clearly above. If all are bad it always stops.
        cache_mb: Megabytes of decoded pictures that each worker keeps instead of decoding them again; 0 keeps none.
        remote: How shards over the network are read.

    Raises:
        ConfigError: If a setting lies outside its range.
        DataError: While iterating, if there are too many bad samples or no shard can be read. In a worker
            process a private item carries the message instead, and its loader raises it.
    """

    def __init__(
        self,
        shards: Sequence[str | Files],
        *,
        crop_size: int,
        batch_size: int,
        batches_per_epoch: int,
        scale_range: tuple[float, float] = (0.5, 1.0),
        flip: bool = True,
        shuffle_buffer: int = 256,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
        max_bad_fraction: float = 0.05,
        cache_mb: int = 0,
        remote: Remote = PATIENT,
    ) -> None:
        check_settings(
            crop_size=crop_size,
            batch_size=batch_size,
            batches_per_epoch=batches_per_epoch,
            scale_range=scale_range,
            shuffle_buffer=shuffle_buffer,
            seed=seed,
            max_bad_fraction=max_bad_fraction,
            cache_mb=cache_mb,
        )
        self.shards = list(shards)
        self.crop_size = crop_size
        self.batch_size = batch_size
        self.batches_per_epoch = batches_per_epoch
        self.scale_range = (float(scale_range[0]), float(scale_range[1]))
        self.flip = flip
        self.shuffle_buffer = shuffle_buffer
        self.seed = seed
        self.rank = rank
        self.world_size = world_size
        self.max_bad_fraction = max_bad_fraction
        self.remote = remote
        self._room = cache_mb * 10**6  # bytes left in the cache
        self._cache: dict[tuple[str, int], Image.Image] = {}
        self.epoch = 0
        self.batches_done = 0

    def __iter__(self) -> Iterator[TrainBatch | StreamFailure]:
        info = get_worker_info()
        if info is None:
            yield from self._batches(worker=0, workers=1)
            return
        try:
            yield from self._batches(info.id, info.num_workers)
        except DataError as error:
            yield StreamFailure(str(error))

    def _batches(self, worker: int, workers: int) -> Iterator[TrainBatch]:
        """Yield this worker's share of the epoch's batches."""
        worker, to_skip = resume_position(worker, workers, self.batches_done)
        slot = self.rank * workers + worker
        tally = _Tally(self.max_bad_fraction, self.crop_size)
        crops: list[torch.Tensor] = []
        keys: list[str] = []
        position = worker  # of the batch that is being filled
        if position >= self.batches_per_epoch:
            return
        for number, raw in enumerate(self._draw(worker, workers, tally)):
            image = self._decode(raw, tally)
            tally.judge()
            if image is None:
                continue
            keys.append(raw.key)
            if not to_skip:
                rng = random_stream(self.seed, _AUGMENT, self.epoch, slot, number)
                crops.append(self._crop(image, rng))
            if len(keys) < self.batch_size:
                continue
            skipped = tally.take()
            if to_skip:
                to_skip -= 1
            else:
                yield {"image": torch.stack(crops), "key": keys, "position": position, "skipped": skipped}
            crops, keys = [], []
            position += workers
            if position >= self.batches_per_epoch:
                return

    def _draw(self, worker: int, workers: int, tally: _Tally) -> Iterator[RawImage]:
        """Yield encoded samples, shuffled through the buffer, which is emptied at the end of each pass."""
        rng = random_stream(self.seed, _SHUFFLE, self.epoch, self.rank * workers + worker)
        buffer: list[RawImage] = []
        for raw in self._read(worker, workers, tally):
            if raw is None:
                for index in rng.permutation(len(buffer)):
                    yield buffer[index]
                buffer.clear()
                tally.judge(end_of_pass=True)
            elif len(buffer) < self.shuffle_buffer:
                buffer.append(raw)
            else:
                index = int(rng.integers(len(buffer)))
                chosen, buffer[index] = buffer[index], raw
                yield chosen

    def _read(self, worker: int, workers: int, tally: _Tally) -> Iterator[RawImage | None]:
        """Yield encoded samples of this worker's share in the planned order; None at the end of a pass."""
        slot, slots = self.rank * workers + worker, self.world_size * workers
        lap = 0
        for part in shard_plan(len(self.shards), seed=self.seed, epoch=self.epoch, slot=slot, slots=slots):
            if part.lap != lap:
                lap = part.lap
                yield None
            sample_seen = False
            for raw in read_shard(self.shards[part.shard], part, self.remote):
                if raw.problem:
                    tally.skip(raw.problem, raw.name)
                else:
                    sample_seen = True
                    yield raw
            tally.shard_read(len(self.shards), sample_seen=sample_seen)

    def _decode(self, raw: RawImage, tally: _Tally) -> Image.Image | None:
        """Decode a sample; None, and counted, if it cannot be used."""
        assert isinstance(raw.data, bytes)
        place = (raw.name, zlib.crc32(raw.data)) if self._cache or self._room else ("", 0)
        image = self._cache.get(place)
        if image is None:
            try:
                image = load_rgb(raw.data, name=raw.name).image
            except ImageError as error:
                tally.skip("undecodable", reason(error))
                return None
            size = 3 * image.width * image.height
            if size <= self._room:
                self._room -= size
                self._cache[place] = image
        if min(image.size) < self.crop_size:
            width, height = image.size
            tally.skip("too_small", f"{raw.name}: {width} x {height} is smaller than the crop of {self.crop_size}")
            return None
        tally.good()
        return image

    def _crop(self, image: Image.Image, rng: np.random.Generator) -> torch.Tensor:
        """Scale, crop and flip at random; returns shape (3, crop, crop), uint8."""
        smallest = self.crop_size / min(image.size)  # at this scale the crop spans the shorter side
        low, high = (max(scale, smallest) for scale in self.scale_range)
        scale = float(np.exp(rng.uniform(np.log(low), np.log(high))))
        side = min(self.crop_size / scale, *image.size)  # of the crop, in pixels of the image
        left, top = (int(rng.integers(int(length - side) + 1)) for length in image.size)
        box = (left, top, left + side, top + side)
        # Lanczos widens its kernel when it reduces, so nothing aliases; at scale 1 it copies.
        size = (self.crop_size, self.crop_size)
        crop = to_tensor(image.resize(size, Image.Resampling.LANCZOS, box=box))
        return crop.flip(-1) if self.flip and rng.random() < 0.5 else crop


class EvalImages(IterableDataset[EvalItem]):
    """Whole images from shards, folders or files, each exactly once over all ranks and workers.

    Image ``i`` goes to worker ``i % (world_size * workers)``, counted over the ranks; shards are read by
    all workers, each of which decodes only its own images. An image, sample or shard that cannot be read is
    yielded with its error.

    Args:
        source: One or several of: shards as :func:`expand_shards` takes them (a folder stands for its
            ``*.tar`` if it has any), image files, folders of images and patterns as
            :func:`gic.pictures.find.find_images` takes them.
        limit: Read this many of the images, the first ones; None for all.
        rank: This process, in [0, world_size).
        world_size: Number of processes.
        remote: How shards over the network are read.

    Raises:
        DataError: If shards, files or folders are missing or empty.
        ConfigError: If ``limit`` is below 1.
    """

    def __init__(
        self,
        source: str | Sequence[str],
        *,
        limit: int | None = None,
        rank: int = 0,
        world_size: int = 1,
        remote: Remote = PATIENT,
    ) -> None:
        check_settings(limit=limit)
        self.sources: list[str | Path] = []  # shards are strings
        for entry in [source] if isinstance(source, str) else source:
            self.sources += expand_shards(entry) if names_shards(entry) else find_images([entry])
        if not self.sources:
            raise DataError("no images to evaluate are named: give shards, files or folders")
        self.limit = limit
        self.rank = rank
        self.world_size = world_size
        self.remote = remote

    def __iter__(self) -> Iterator[EvalItem]:
        info = get_worker_info()
        worker, workers = (0, 1) if info is None else (info.id, info.num_workers)
        slot, slots = self.rank * workers + worker, self.world_size * workers
        for index, raw in enumerate(self._read()):
            if self.limit is not None and index >= self.limit:
                return
            if index % slots == slot:
                yield _load_item(raw)

    def _read(self) -> Iterator[RawImage]:
        for source in self.sources:
            if isinstance(source, Path):
                yield RawImage(printable(source), printable(source), source)
            else:
                yield from read_shard(source, WHOLE_SHARD, self.remote)


def _load_item(raw: RawImage) -> EvalItem:
    if raw.data is None:
        return {"image": None, "key": raw.key, "error": raw.name}
    try:
        return {"image": to_tensor(load_rgb(raw.data, name=raw.name).image), "key": raw.key}
    except ImageError as error:
        return {"image": None, "key": raw.key, "error": reason(error)}


def outlast_signals(worker: int) -> None:
    """Let a worker continue after the signals that are meant for the run.

    SIGTERM may also come from PyTorch, for a worker that does not end by itself; so it ends the worker after a minute.
    """
    signal.set_wakeup_fd(-1)  # of the run, which would take the worker's signals for its own
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl+C reaches every process of the terminal
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda *_: signal.alarm(_GRACE))  # and SIGALRM ends a process


def check_settings(**settings: Any) -> None:
    """Check settings by their names.

    Raises:
        ConfigError: If one lies outside its range; the text names it.
    """
    smallest: Iterable[tuple[str, int]] = (
        ("crop_size", 1),
        ("batch_size", 1),
        ("cuda_batch_size", 1),
        ("batches_per_epoch", 1),
        ("shuffle_buffer", 1),
        ("num_workers", 0),
        ("cache_mb", 0),
        ("seed", 0),
        ("limit", 1),
        ("val_limit", 1),
    )
    for name, least in smallest:
        value = settings.get(name)
        if value is not None and value < least:
            raise ConfigError(f"{name} is {value} and must be at least {least}")
    if "scale_range" in settings:
        low, high = settings["scale_range"]
        if not 0 < low <= high < float("inf"):
            raise ConfigError(f"scale_range is ({low}, {high}) and must be two numbers with 0 < first <= second")
    fraction = settings.get("max_bad_fraction")
    if fraction is not None and not 0 <= fraction <= 1:
        raise ConfigError(f"max_bad_fraction is {fraction} and must lie between 0 and 1")
