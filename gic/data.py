"""Pictures for training and evaluation, from WebDataset shards or plain folders.

A shard is a tar file whose members are images (and anything else, which is passed over); WebDataset reads
them, from disk or over the network. Who reads what is planned in :mod:`gic.plan`, decoding is done by
:func:`gic.images.load_rgb`; no member is ever unpickled.

::

    expand_shards -> TrainStream (in each worker) -> TrainLoader (per rank) --.
                     EvalImages  (in each worker) -> DataLoader  (per rank) ---+-> ImageData

Training is an endless, reshuffled stream cut into epochs of a fixed number of batches, the same for every
rank, and can be resumed at any batch. Evaluation reads each image exactly once, at its full size.
"""

from __future__ import annotations

import glob
import os
import re
import shlex
import tarfile
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, TypedDict, cast

import braceexpand
import lightning
import numpy as np
import torch
from lightning.pytorch.utilities import rank_zero_warn
from PIL import Image
from torch.utils.data import DataLoader, IterableDataset, get_worker_info
from webdataset import tariterators
from webdataset.gopen import gopen

from gic.errors import ConfigError, DataError, ImageError
from gic.images import IMAGE_SUFFIXES, find_images, load_rgb, to_tensor
from gic.plan import Part, random_stream, resume_position, shard_plan
from gic.synthetic import ensure_synthetic_shards

# Names of the random streams that are drawn from here; gic.plan has its own.
_SHUFFLE, _AUGMENT = 100, 101

_JUDGED_AFTER = 100  # samples a worker must have seen before max_bad_fraction is applied
_SHARDS_JUDGED_AFTER = 20  # the same for shards
_BARREN_SHARDS = 16  # shards in a row without a sample after which a worker gives up

_SUFFIXES = frozenset(suffix.lstrip(".") for suffix in IMAGE_SUFFIXES)
_SKIPPED_BY_WEBDATASET = re.compile(r"__[^/]*__($|/)")
_URL = re.compile(r"^[A-Za-z][A-Za-z0-9+.-]+:")  # two letters at least: "C:" is a drive


class TrainBatch(TypedDict):
    """What :class:`TrainLoader` yields.

    Attributes:
        image: Shape (B, 3, crop, crop), uint8.
        key: Names of the B samples in their shards.
        position: Number of the batch in this rank's epoch, from 0.
        skipped: Samples and shards passed over since the worker's last batch, by reason: ``undecodable``,
            ``too_small``, ``no_image``, ``damaged_shard`` and ``unreadable_shard``.
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


def expand_shards(spec: str | Sequence[str]) -> list[str]:
    """List the shards that names and patterns stand for.

    Args:
        spec: One or several of: a file; a pattern with braces (``train-{000..003}.tar``,
            ``{a,b}.tar``) or wildcards (``train-*.tar``); a folder, which stands for all its ``*.tar``
            in sorted order; a URL (``https:``, ``s3:``, ``gs:``, or ``pipe:`` with a shell command), which
            may hold braces.

    Returns:
        Paths and URLs in the order given. URLs are not checked.

    Raises:
        DataError: If nothing is named, a brace is unbalanced, a folder holds no shard, or files are missing
            or empty.

    Example:
        >>> expand_shards("https://example.org/train-{08..10}.tar")[-1]
        'https://example.org/train-10.tar'
    """
    shards: list[str] = []
    for pattern in [spec] if isinstance(spec, str) else spec:
        if not _is_url(pattern) and Path(pattern).is_dir():
            inside = sorted(str(path) for path in Path(pattern).glob("*.tar"))
            if not inside:
                raise DataError(f"there is no shard (*.tar) in the folder {pattern}")
            shards += inside
            continue
        if not _is_url(pattern) and (matches := glob.glob(pattern)):  # noqa: PTH207 - may be absolute
            shards += sorted(matches)
            continue
        try:
            shards += braceexpand.braceexpand(pattern, escape=False)
        except ValueError as error:  # UnbalancedBracesError, which the package declares oddly
            raise DataError(f"the shard pattern {pattern!r} has an unbalanced brace") from error
    if not shards or "" in shards:
        raise DataError("no shards are named: give files, a folder or a pattern such as train-{000..099}.tar")

    wrong = []
    for shard in shards:
        if not _is_url(shard):
            path = Path(shard)
            if not path.is_file():
                wrong.append(f"{shard} (missing)")
            elif path.stat().st_size == 0:
                wrong.append(f"{shard} (empty)")
    if wrong:
        names = ", ".join(wrong[:3]) + (", ..." if len(wrong) > 3 else "")
        raise DataError(f"{len(wrong)} of {len(shards)} shards are missing or empty: {names}; check the path")
    return shards


def _is_url(name: str) -> bool:
    return _URL.match(name) is not None


# Reading shards


class _Raw(NamedTuple):
    """An image as it is stored, or word of what is wrong in its place.

    Attributes:
        key: Name of the sample in its shard, or path.
        name: What to call it in errors.
        data: The file's bytes or its path; None if there is a problem.
        problem: Reason, as in :attr:`TrainBatch.skipped`; empty if there is none.
    """

    key: str
    name: str
    data: bytes | Path | None
    problem: str = ""


_WHOLE = Part(shard=0, part=0, parts=1, start=0.0, stop=1.0, lap=0)


def _read_shard(url: str, part: Part = _WHOLE) -> Iterator[_Raw]:
    """Read the encoded images of one part of a shard, in order.

    Damage is told and not raised: as an item with a problem for each sample without an image, and one at
    the end if the shard is damaged, cannot be opened, or holds nothing.
    """
    problems: list[str] = []

    def note(error: Exception) -> bool:
        problems.append(_one_line(error))
        return True  # go on

    samples = 0
    try:
        with _open_shard(url, part.start, part.stop) as opened:
            if opened is None:
                return
            stream, first = opened
            files = tariterators.tar_file_expander([{"url": url, "stream": stream}], handler=note)
            grouped = tariterators.group_by_keys(files, suffixes=_SUFFIXES, handler=note)
            for index, sample in enumerate(grouped, first):
                samples += 1
                if index % part.parts == part.part:
                    yield _pick_image(url, sample)
    except (OSError, ValueError) as error:
        note(error)
    if problems:
        yield _Raw(url, f"{url}: {problems[0]}", None, "damaged_shard" if samples else "unreadable_shard")
    elif not samples:
        yield _Raw(url, f"{url}: there is no sample in it", None, "unreadable_shard")


def _pick_image(url: str, sample: dict[str, Any]) -> _Raw:
    """Take the first image out of a sample as WebDataset groups it."""
    key = str(sample["__key__"])
    for suffix, data in sample.items():
        if suffix in _SUFFIXES:
            return _Raw(key, f"{key}.{suffix} in {url}", data)
    return _Raw(key, f"{key} in {url}: there is no image in the sample", None, "no_image")


@contextmanager
def _open_shard(url: str, start: float, stop: float) -> Iterator[tuple[BinaryIO, int] | None]:
    """Open a stretch of a shard.

    Only uncompressed local files can be entered in the middle. Of any other shard the stretch
    ``(start, 1)`` is all of it, and ``(0, stop)`` nothing.

    Yields:
        A stream of tar members that begins with a whole sample, and that sample's index in the shard; None
        if there is nothing in the stretch.
    """
    if _is_url(url):
        if stop < 1:
            yield None
            return
        # WebDataset has no reader for s3: and takes any command instead.
        command = f"pipe:aws s3 cp --only-show-errors {shlex.quote(url)} -" if url.startswith("s3:") else url
        stream = gopen(command)
        try:
            yield stream, 0
        finally:
            with suppress(Exception):  # a command that is left early complains of a broken pipe
                stream.close()
        return
    with Path(url).open("rb") as file:
        whole = start == 0 and stop == 1
        found = None if whole else _find_sample(file, start if start > 0 else stop)
        file.seek(0)
        if stop < 1:
            yield None if found is None else (cast(BinaryIO, _Head(file, found[0])), 0)
        elif found is None:
            yield file, 0
        else:
            file.seek(found[0])
            yield file, found[1]


def _find_sample(file: BinaryIO, fraction: float) -> tuple[int, int] | None:
    """Find the first sample that begins at or after a fraction of a tar file's bytes.

    Reads the headers before it and no data. Counts samples the way WebDataset does: members next to each
    other that share a name up to its first dot.

    Returns:
        Byte offset and index of the sample; None if there is none, or the file is compressed or damaged.
    """
    size = os.fstat(file.fileno()).st_size
    current, samples = None, 0
    try:
        with tarfile.open(fileobj=file, mode="r:") as tar:
            while (member := tar.next()) is not None:
                tar.members = []  # type: ignore[attr-defined]  # or it remembers every member
                key, _ = tariterators.base_plus_ext(member.name)
                if not member.isreg() or key is None or _SKIPPED_BY_WEBDATASET.match(member.name):
                    continue
                if key != current:
                    if member.offset >= fraction * size:
                        return member.offset, samples
                    current, samples = key, samples + 1
    except tarfile.TarError:
        pass
    return None


class _Head:
    """The first bytes of a file as a stream; all that tarfile asks for is ``read``."""

    def __init__(self, file: BinaryIO, length: int) -> None:
        self._file = file
        self._left = length

    def read(self, size: int) -> bytes:
        data = self._file.read(min(size, self._left))
        self._left -= len(data)
        return data


def _one_line(error: Exception) -> str:
    """Text of an exception without what WebDataset appends to it."""
    text = str(error.args[0]) if error.args and isinstance(error.args[0], str) else str(error)
    return " ".join(text.split(" @ <")[0].split()) or type(error).__name__


# Training


class _Tally:
    """Counts good and bad samples of one worker, and gives up when there are too many bad ones."""

    def __init__(self, max_bad_fraction: float) -> None:
        self.max_bad_fraction = max_bad_fraction
        self.unreported: Counter[str] = Counter()
        self._good = self._bad = 0
        self._shards = self._bad_shards = 0
        self._barren = 0  # bad shards in a row
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
            self._example = example

    def shard_read(self, shards: int, *, sample_seen: bool) -> None:
        """Judge the shards, after one of them (or a part of one) was read; ``shards`` is how many there are."""
        self._shards += 1
        if sample_seen:
            self._barren = 0
        if self._barren >= min(shards, _BARREN_SHARDS):
            raise DataError(
                f"no training sample could be read from {self._barren} shards in a row; "
                f"for example {self._shard_example}"
            )
        too_many = self._bad_shards > self.max_bad_fraction * self._shards
        if self._shards >= _SHARDS_JUDGED_AFTER and too_many:
            raise DataError(
                f"{self._bad_shards} of {self._shards} training shards could not be read, more than "
                f"max_bad_fraction = {self.max_bad_fraction:g} allows; for example {self._shard_example}"
            )

    def judge(self, *, end_of_pass: bool = False) -> None:
        """Raise a DataError if too many samples were bad."""
        total = self._good + self._bad
        if total == 0 or (total < _JUDGED_AFTER and not end_of_pass):
            return
        allowed = self.max_bad_fraction * total
        if not end_of_pass:  # bad samples may have come early by chance: allow three standard deviations
            allowed += 3 * allowed**0.5
        if self._bad > allowed or self._good == 0:
            raise DataError(
                f"{self._bad} of {total} training samples cannot be used, more than max_bad_fraction = "
                f"{self.max_bad_fraction:g} allows; for example {self._example}"
            )

    def take(self) -> dict[str, int]:
        """Counts by reason since the last call."""
        counts = dict(self.unreported)
        self.unreported.clear()
        return counts


@dataclass(frozen=True)
class _Failure:
    """A DataError on its way out of a worker: one raised there would arrive wrapped in a traceback."""

    message: str


class TrainStream(IterableDataset[Any]):
    """Batches of random crops from shards, for one epoch of one rank.

    Inside a DataLoader (with ``batch_size=None``) each worker reads its own share of the shards. The
    encoded samples pass through a shuffle buffer, are decoded, scaled, cropped and flipped. Everything
    random follows from (seed, epoch, rank, worker, number of the sample), so an epoch can be repeated from
    any batch on; to do so the batches before are read and decoded again, not cropped.

    Samples that cannot be used are passed over and counted in the next batch.

    Attributes:
        epoch: Number of the epoch that the next iteration reads, from 0.
        batches_done: Batches of that epoch, of this rank, to pass over at its beginning.

    Args:
        shards: Paths and URLs, as :func:`expand_shards` returns them.
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
        max_bad_fraction: Share of bad samples, in [0, 1], above which a worker gives up: at the end of a pass
            over what it reads, and already after 100 samples where the share is clearly above. If all are
            bad it gives up whatever is allowed.

    Raises:
        ConfigError: If a setting lies outside its range.
        DataError: While iterating, if there are too many bad samples or no shard can be read. In a worker
            process a private item carries the message instead, and :class:`TrainLoader` raises it.
    """

    def __init__(
        self,
        shards: Sequence[str],
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
    ) -> None:
        _check_settings(
            crop_size=crop_size,
            batch_size=batch_size,
            batches_per_epoch=batches_per_epoch,
            scale_range=scale_range,
            shuffle_buffer=shuffle_buffer,
            seed=seed,
            max_bad_fraction=max_bad_fraction,
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
        self.epoch = 0
        self.batches_done = 0

    def __iter__(self) -> Iterator[TrainBatch | _Failure]:
        info = get_worker_info()
        if info is None:
            yield from self._batches(worker=0, workers=1)
            return
        try:
            yield from self._batches(info.id, info.num_workers)
        except DataError as error:
            yield _Failure(str(error))

    def _batches(self, worker: int, workers: int) -> Iterator[TrainBatch]:
        """Yield this worker's share of the epoch's batches."""
        worker, to_skip = resume_position(worker, workers, self.batches_done)
        tally = _Tally(self.max_bad_fraction)
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
                rng = random_stream(self.seed, _AUGMENT, self.epoch, self.rank, worker, number)
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

    def _draw(self, worker: int, workers: int, tally: _Tally) -> Iterator[_Raw]:
        """Yield encoded samples, shuffled through the buffer; each pass is emptied before the next begins."""
        rng = random_stream(self.seed, _SHUFFLE, self.epoch, self.rank, worker)
        buffer: list[_Raw] = []
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

    def _read(self, worker: int, workers: int, tally: _Tally) -> Iterator[_Raw | None]:
        """Yield encoded samples of this worker's share in the planned order; None at the end of a pass."""
        slot, slots = self.rank * workers + worker, self.world_size * workers
        lap = 0
        for part in shard_plan(len(self.shards), seed=self.seed, epoch=self.epoch, slot=slot, slots=slots):
            if part.lap != lap:
                lap = part.lap
                yield None
            sample_seen = False
            for raw in _read_shard(self.shards[part.shard], part):
                if raw.problem:
                    tally.skip(raw.problem, raw.name)
                else:
                    sample_seen = True
                    yield raw
            tally.shard_read(len(self.shards), sample_seen=sample_seen)

    def _decode(self, raw: _Raw, tally: _Tally) -> Image.Image | None:
        """Decode a sample; None, and counted, if it cannot be used."""
        assert raw.data is not None
        try:
            image = load_rgb(raw.data, name=raw.name).image
        except ImageError as error:
            tally.skip("undecodable", _one_line(error))
            return None
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


class TrainLoader:
    """Iterates over a :class:`TrainStream` epoch by epoch, with workers, from wherever a run was left.

    Each iteration is the next epoch; its workers are started with the number of the epoch, so that every
    epoch has its own order. It is no DataLoader but has one, since a DataLoader over an iterable dataset
    has no length without warnings.

    Lightning's fit loop (2.6) is relied on for this: it asks for no batch before the first one is needed
    (so an iterator that is made and dropped costs nothing); having a length, it fetches nothing ahead, so
    that what was yielded was used; after a restart within an epoch it counts on from the batches that it
    had, so that the length stays that of a full epoch while only the rest is to be yielded. In one case the
    epochs shift: of a checkpoint saved after ``max_steps`` had ended a fit within an epoch, Lightning holds
    that epoch for done and begins the next; the data go on where they were, and that epoch is their rest.

    Args:
        stream: The batches of this rank.
        num_workers: Worker processes; 0 reads in this process, with the same result as 1.
        pin_memory: Whether to put batches into page-locked memory.
        multiprocessing_context: How to start workers, for example ``"spawn"``; None for the default.
        trainer: Told from it: whether the last batch was used, and whether it cuts epochs short.
        same_epoch: Whether to repeat epoch 0 again and again, for overfitting on purpose.
    """

    def __init__(
        self,
        stream: TrainStream,
        *,
        num_workers: int = 0,
        pin_memory: bool = False,
        multiprocessing_context: str | None = None,
        trainer: lightning.Trainer | None = None,
        same_epoch: bool = False,
    ) -> None:
        self.stream = stream
        self.num_workers = num_workers
        self._trainer = trainer
        self._same_epoch = same_epoch
        self._loader: DataLoader[Any] = DataLoader(
            stream,
            batch_size=None,
            num_workers=num_workers,
            pin_memory=pin_memory,
            multiprocessing_context=multiprocessing_context,
            generator=torch.Generator(),  # the default one is the model's: its numbers would be used up
        )
        self._epoch = 0
        self._batches = 0  # of the epoch, yielded so far
        self._begun = False  # whether an iteration has begun at (epoch, batches)

    def __len__(self) -> int:
        return self.stream.batches_per_epoch

    def __iter__(self) -> Iterator[TrainBatch]:
        # A generator: nothing happens until the first batch is asked for.
        if self._begun:  # an epoch that was left early is over too
            self._epoch, self._batches = self._epoch + 1, 0
        self._begun = True
        self.stream.epoch = 0 if self._same_epoch else self._epoch
        self.stream.batches_done = self._batches
        batches = iter(self._loader)
        while self._batches < len(self):
            batch = next(batches, None)
            if isinstance(batch, _Failure):
                raise DataError(batch.message)
            if batch is None:
                raise RuntimeError("the training stream ended before its epoch did")
            self._batches += 1
            if self._batches == len(self):
                del batches  # stops the workers now, not after the validation that may follow
            yield batch

    def state_dict(self) -> dict[str, int]:
        """Where to go on: number of the epoch, and batches of it that were used."""
        epoch, batches, length = self._epoch, self._batches, float(len(self))
        if self._trainer is not None:
            progress: Any = self._trainer.fit_loop.epoch_loop.batch_progress.current
            batches -= progress.ready - progress.processed  # 1 while a batch is in training_step, else 0
            length = min(length, self._trainer.num_training_batches)
        if batches >= length:
            epoch, batches = epoch + 1, 0
        return {"epoch": epoch, "batches": batches}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Let the next iteration go on where ``state`` was taken."""
        self._epoch, self._batches, self._begun = state["epoch"], state["batches"], False
        if self._batches >= len(self):  # epochs are shorter now
            self._epoch, self._batches = self._epoch + 1, 0


# Evaluation


class EvalImages(IterableDataset[EvalItem]):
    """Whole images from shards, folders or files, each exactly once over all ranks and workers.

    Image ``i`` goes to worker ``i % (world_size * workers)``, counted over the ranks; shards are read by
    all workers, who decode only what is theirs. An image, sample or shard that cannot be read is not left
    out but yielded with its error.

    Args:
        source: One or several of: shards as :func:`expand_shards` takes them (a folder stands for its
            ``*.tar`` if it has any), image files, folders of images and patterns as
            :func:`gic.images.find_images` takes them.
        limit: Read this many of the images, the first ones; None for all.
        rank: This process, in [0, world_size).
        world_size: Number of processes.

    Raises:
        DataError: If shards, files or folders are missing or empty.
        ConfigError: If ``limit`` is below 1.
    """

    def __init__(
        self, source: str | Sequence[str], *, limit: int | None = None, rank: int = 0, world_size: int = 1
    ) -> None:
        _check_settings(limit=limit)
        self.sources: list[str | Path] = []  # shards are text
        for entry in [source] if isinstance(source, str) else source:
            self.sources += expand_shards(entry) if _names_shards(entry) else find_images([entry])
        if not self.sources:
            raise DataError("no images to evaluate are named: give shards, files or folders")
        self.limit = limit
        self.rank = rank
        self.world_size = world_size

    def __iter__(self) -> Iterator[EvalItem]:
        info = get_worker_info()
        worker, workers = (0, 1) if info is None else (info.id, info.num_workers)
        slot, slots = self.rank * workers + worker, self.world_size * workers
        for index, raw in enumerate(self._read()):
            if self.limit is not None and index >= self.limit:
                return
            if index % slots == slot:
                yield _load_item(raw)

    def _read(self) -> Iterator[_Raw]:
        for source in self.sources:
            if isinstance(source, Path):
                yield _Raw(str(source), str(source), source)
            else:
                yield from _read_shard(source)


def _names_shards(entry: str) -> bool:
    """Whether an evaluation source is shards and not images."""
    if _is_url(entry):
        return True
    path = Path(entry)
    if path.is_dir():
        return any(path.glob("*.tar"))
    return re.search(r"\.tar(\.\w+)?$|\.tgz$", entry) is not None or (not path.exists() and ".tar" in entry)


def _load_item(raw: _Raw) -> EvalItem:
    if raw.data is None:
        return {"image": None, "key": raw.key, "error": raw.name}
    try:
        return {"image": to_tensor(load_rgb(raw.data, name=raw.name).image), "key": raw.key}
    except ImageError as error:
        return {"image": None, "key": raw.key, "error": _one_line(error)}


# All of it for Lightning


class ImageData(lightning.LightningDataModule):
    """Training, validation and test images.

    Training batches are :class:`TrainBatch`, evaluation items :class:`EvalItem`. A checkpoint holds how far
    training has come in the data, and a run resumed from it sees exactly the batches that an uninterrupted
    run would have seen, wherever the checkpoint was taken. What passes for used are batches, whatever
    ``accumulate_grad_batches`` is.

    Args:
        train: Shards, as :func:`expand_shards` takes them; None for synthetic images, which are made in
            ``synthetic_dir`` at first use.
        val: Shards, files or folders, as :class:`EvalImages` takes them; None for synthetic images.
        test: The same; None for those of ``val``.
        synthetic_dir: Folder for the shards of synthetic images.
        crop_size: Side of the training crops in pixels.
        batch_size: Crops per batch and rank.
        cuda_batch_size: The same where the run is on CUDA devices; None for ``batch_size``.
        batches_per_epoch: Batches per epoch and rank.
        scale_range: Smallest and largest factor that training images are scaled by before the crop.
        flip: Whether to mirror half of the training crops.
        shuffle_buffer: Encoded samples that each worker holds to draw from.
        num_workers: Worker processes per rank and loader; 0 reads in the training process.
        val_limit: Use this many of the validation images; None for all.
        seed: Seed of the order and of the crops; None for the one of ``seed_everything``, or else 0.
        max_bad_fraction: Share of unusable training samples above which training stops.

    Raises:
        ConfigError: If a setting lies outside its range.
    """

    def __init__(
        self,
        train: str | list[str] | None = None,
        val: str | list[str] | None = None,
        test: str | list[str] | None = None,
        *,
        synthetic_dir: str = "data/synthetic",
        crop_size: int = 256,
        batch_size: int = 8,
        cuda_batch_size: int | None = None,
        batches_per_epoch: int = 1000,
        scale_range: tuple[float, float] = (0.5, 1.0),
        flip: bool = True,
        shuffle_buffer: int = 256,
        num_workers: int = 2,
        val_limit: int | None = None,
        seed: int | None = None,
        max_bad_fraction: float = 0.05,
    ) -> None:
        super().__init__()
        _check_settings(
            crop_size=crop_size,
            batch_size=batch_size,
            cuda_batch_size=cuda_batch_size,
            batches_per_epoch=batches_per_epoch,
            scale_range=scale_range,
            shuffle_buffer=shuffle_buffer,
            num_workers=num_workers,
            val_limit=val_limit,
            seed=seed,
            max_bad_fraction=max_bad_fraction,
        )
        self.train = train
        self.val = val
        self.test = test
        self.synthetic_dir = Path(synthetic_dir)
        self.crop_size = crop_size
        self.batch_size = batch_size
        self.cuda_batch_size = cuda_batch_size
        self.batches_per_epoch = batches_per_epoch
        self.scale_range = scale_range
        self.flip = flip
        self.shuffle_buffer = shuffle_buffer
        self.num_workers = num_workers
        self.val_limit = val_limit
        self.seed = seed
        self.max_bad_fraction = max_bad_fraction
        self._loader: TrainLoader | None = None
        self._resume: dict[str, Any] | None = None  # a state that was loaded and not yet used

    def prepare_data(self) -> None:
        """Make the synthetic images, unless they are there or not needed; called on one rank per node."""
        if self.train is None or self.val is None:
            ensure_synthetic_shards(self.synthetic_dir)

    def setup(self, stage: str) -> None:
        """Look for the files before anything slow begins.

        Raises:
            DataError: If shards or images are missing.
        """
        if stage == "fit":
            self._loader = None  # a new run begins with epoch 0, or where load_state_dict says
            expand_shards(self._source("train"))
        if stage in ("fit", "validate"):
            self._images("val", self.val_limit)
        if stage == "test":
            self._images("test", None)

    def train_dataloader(self) -> TrainLoader:
        """Training batches of this rank, from where a loaded state left off."""
        rank, world_size = self._process()
        on_cuda = self.trainer is not None and self.trainer.strategy.root_device.type == "cuda"
        loader = TrainLoader(
            TrainStream(
                expand_shards(self._source("train")),
                crop_size=self.crop_size,
                batch_size=(self.cuda_batch_size if on_cuda else None) or self.batch_size,
                batches_per_epoch=self.batches_per_epoch,
                scale_range=self.scale_range,
                flip=self.flip,
                shuffle_buffer=self.shuffle_buffer,
                seed=self._seed(),
                rank=rank,
                world_size=world_size,
                max_bad_fraction=self.max_bad_fraction,
            ),
            num_workers=self.num_workers,
            pin_memory=torch.cuda.is_available(),
            trainer=self.trainer,
            same_epoch=getattr(self.trainer, "overfit_batches", 0) > 0,
        )
        if self._resume is not None:
            loader.load_state_dict(self._resume)
            self._warn_of_changes(self._resume.get("settings", {}), _settings(loader))
            self._resume = None
        elif self._loader is not None:  # Lightning asks again: reload_dataloaders_every_n_epochs
            loader.load_state_dict(self._loader.state_dict())
        self._loader = loader
        return loader

    def val_dataloader(self) -> DataLoader[EvalItem]:
        """Validation images of this rank, one by one."""
        return self._eval_loader("val", self.val_limit)

    def test_dataloader(self) -> DataLoader[EvalItem]:
        """Test images of this rank, one by one."""
        return self._eval_loader("test", None)

    def state_dict(self) -> dict[str, Any]:
        """How far training has come in the data; the same on every rank."""
        if self._loader is None:
            return dict(self._resume or {})
        return {**self._loader.state_dict(), "settings": _settings(self._loader)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Let the next training loader go on where ``state_dict`` was taken."""
        self._resume = dict(state_dict) or None

    def _source(self, split: str) -> str | list[str]:
        """What the split reads, with the defaults filled in."""
        source: str | list[str] | None = getattr(self, split)
        if source is None and split == "test":
            return self._source("val")
        if source is not None:
            return source
        shards = sorted(str(path) for path in self.synthetic_dir.glob(f"{split}-*.tar"))
        if not shards:
            raise DataError(f"there are no synthetic images in {self.synthetic_dir}: call prepare_data() first")
        return shards

    def _images(self, split: str, limit: int | None) -> EvalImages:
        rank, world_size = self._process()
        return EvalImages(self._source(split), limit=limit, rank=rank, world_size=world_size)

    def _eval_loader(self, split: str, limit: int | None) -> DataLoader[EvalItem]:
        return DataLoader(
            self._images(split, limit),
            batch_size=None,
            num_workers=self.num_workers,
            pin_memory=torch.cuda.is_available(),
            generator=torch.Generator(),  # as in TrainLoader
        )

    def _process(self) -> tuple[int, int]:
        """Rank and number of processes."""
        return (0, 1) if self.trainer is None else (self.trainer.global_rank, self.trainer.world_size)

    def _seed(self) -> int:
        return int(os.environ.get("PL_GLOBAL_SEED", 0)) if self.seed is None else self.seed

    @staticmethod
    def _warn_of_changes(before: dict[str, int], now: dict[str, int]) -> None:
        changes = [f"{name} {before[name]} -> {now[name]}" for name in now if before.get(name) != now[name]]
        if changes:
            rank_zero_warn(
                f"resuming with other settings ({', '.join(changes)}): training goes on at the same batch "
                "number, but the order of the data differs from that of an uninterrupted run"
            )


def _settings(loader: TrainLoader) -> dict[str, int]:
    """The settings that the order of the data depends on."""
    stream = loader.stream
    return {
        "world_size": stream.world_size,
        "num_workers": max(1, loader.num_workers),  # 0 reads what 1 reads
        "batch_size": stream.batch_size,
        "seed": stream.seed,
        "shuffle_buffer": stream.shuffle_buffer,
        "shards": len(stream.shards),
    }


def _check_settings(**settings: Any) -> None:
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
