"""Pictures for training and evaluation, from WebDataset shards or plain folders.

A shard is a tar file whose members are images (other members are ignored); see :mod:`gic.data.reading`
and :mod:`gic.data.stream`. This module makes loaders of the streams and hands them to Lightning.

::

    expand_sources -> TrainStream (in each worker) -> TrainLoader (per rank) --.
                      EvalImages  (in each worker) -> DataLoader  (per rank) ---+-> ImageData

A LightningDataModule of your own replaces it in a config by its ``class_path``. Its training batches are mappings
with ``image``, uint8 (B, 3, h, w), h and w multiples of 64; its validation items, one image each, mappings with
``image``, uint8 (3, H, W) of any size, and ``key``, a name.
"""

from __future__ import annotations

import os
import shutil
import signal
import sys
import threading
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import lightning
import numpy as np
import torch
from lightning.pytorch.utilities import rank_zero_warn
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from gic.data.reading import PATIENT, expand_sources
from gic.data.remote import Remote
from gic.data.stream import (
    EvalImages,
    EvalItem,
    StreamFailure,
    TrainBatch,
    TrainStream,
    check_settings,
    outlast_signals,
)
from gic.data.synthetic import ensure_synthetic_shards
from gic.errors import DataError

_DEATHS = 3  # of workers without a batch in between, after which a run stops


class WorkerDiedError(DataError):
    """A worker process was killed, most often by lack of memory."""


_SHARED_MEMORY = "/dev/shm"


class _Sent(NamedTuple):
    """Last item of a worker: how many it has sent before."""

    number: int


class _ByValue(NamedTuple):
    """An item that came through a pipe, with arrays in the place of tensors."""

    item: dict[str, Any]
    free: int
    """Bytes that were free in the shared memory."""


class _Sender(IterableDataset[Any]):
    """Items of a dataset as workers hand them over: in shared memory where there is room, else through a pipe.

    PyTorch itself puts a tensor into shared memory in a thread of the worker, prints the error if it is full, and loses
    the item.
    """

    def __init__(self, dataset: IterableDataset[Any]) -> None:
        self.dataset = dataset

    def __iter__(self) -> Iterator[Any]:
        count = 0
        for item in self.dataset:
            yield item if get_worker_info() is None else _shared(item)
            count += 1
        yield _Sent(count)


def _shared(item: Any) -> Any:
    """The item with its tensors in shared memory, or by value if there is no room."""
    tensors = [value for value in item.values() if isinstance(value, torch.Tensor)] if isinstance(item, dict) else []
    if not tensors:
        return item
    try:
        free = shutil.disk_usage(_SHARED_MEMORY).free
    except OSError:  # not a Linux system
        free = sys.maxsize
    try:
        # A failed attempt leaves its file behind: look before.
        if sum(tensor.nbytes for tensor in tensors) + 2**16 < free:
            for tensor in tensors:
                tensor.share_memory_()  # type: ignore[no-untyped-call]
            return item
    except RuntimeError:  # another process was faster
        pass
    plain = {key: value.numpy() if isinstance(value, torch.Tensor) else value for key, value in item.items()}
    return _ByValue(plain, free)


def _unchanged(item: Any) -> Any:
    """In the place of PyTorch's default, which makes tensors of arrays."""
    return item


class Workers(DataLoader[Any]):
    """A DataLoader of whole items whose workers survive a signal to the run, and whose death is a clear error.

    A scheduler sends its signals to every process. PyTorch's workers would exit, while the run needs a few more batches
    to stop cleanly. No item is lost: where shared memory is full, as in a container with 64 MB of it, they come through
    a pipe, and at the end the items that came are counted.
    """

    def __init__(self, dataset: IterableDataset[Any], **options: Any) -> None:
        # The default generator is the model's, and its state would change.
        options = {"generator": torch.Generator(), "worker_init_fn": outlast_signals, **options}
        super().__init__(_Sender(dataset), batch_size=None, collate_fn=_unchanged, **options)
        self._warned = False

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        """Yield the items.

        Raises:
            WorkerDiedError: If a worker was killed.
            DataError: If items were lost on the way.
        """
        before: Any = signal.getsignal(signal.SIGCHLD)
        if before is None or getattr(before, "__module__", None) == "torch.utils.data._utils.signal_handling":
            before = signal.SIG_DFL
        batches = super().__iter__()
        if threading.current_thread() is threading.main_thread():
            # PyTorch's handler raises an error at any point of the run when a worker dies, possibly inside an
            # optimiser step; without the handler the death is noticed here, within five seconds.
            signal.signal(signal.SIGCHLD, before)
        try:
            yield from self._received(batches)
        except (RuntimeError, ConnectionError, FileNotFoundError, EOFError) as error:
            text = str(error)
            # The last three are raised if an item was in transit when the worker was killed.
            died = text.startswith("DataLoader worker (pid") or not isinstance(error, RuntimeError)
            if self.num_workers == 0 or not died or text.startswith("Caught "):
                raise
            raise WorkerDiedError(
                f"a process that reads images was killed ({text.split(': ')[-1].strip() or type(error).__name__}): if "
                "the machine runs out of memory, use fewer of them (--data.num_workers) or a smaller shuffle_buffer"
            ) from error

    def _received(self, items: Iterator[Any]) -> Iterator[Any]:
        """Undo what :class:`_Sender` has done."""
        arrived = sent = 0
        for item in items:
            if isinstance(item, _Sent):
                sent += item.number
                continue
            arrived += 1
            if isinstance(item, _ByValue):
                self._warn(item.free)
                values = item.item.items()
                item = {key: torch.from_numpy(v) if isinstance(v, np.ndarray) else v for key, v in values}
            yield item
        if arrived != sent:
            raise DataError(
                f"{sent - arrived} of {sent} images were lost between the processes that read and this one: "
                f"enlarge {_SHARED_MEMORY} (docker run --shm-size=2g) or read in this process (--data.num_workers 0)"
            )

    def _warn(self, free: int) -> None:
        if not self._warned:
            self._warned = True
            warnings.warn(
                f"{_SHARED_MEMORY} has only {free / 1e6:.1f} MB free: images come through pipes, which is slower; "
                "enlarge it (docker run --shm-size=2g), or read in this process (--data.num_workers 0)",
                stacklevel=2,
            )


class TrainLoader:
    """Iterates over a :class:`TrainStream` epoch by epoch, with workers, and can be resumed at any batch.

    Each iteration is the next epoch; its workers are started with the number of the epoch, so that every
    epoch has its own order. It wraps a DataLoader, since a DataLoader over an iterable dataset gives warnings
    if it has a length.

    It relies on Lightning's fit loop (2.6) for this: Lightning requests no batch before the first one is needed
    (so an unused iterator costs nothing). As the loader has a length, Lightning fetches nothing ahead, so
    every yielded batch was used. After a restart within an epoch it continues its count of batches, so the
    length stays that of a full epoch while only the rest is yielded. In one case the epochs shift: if
    ``max_steps`` ended a fit within an epoch, Lightning takes that epoch of the checkpoint as finished and
    begins the next; the data continue where they were, and the next epoch is their rest.

    When a worker is killed all are started again at the same batch, with a warning, and the batches stay the same.

    Args:
        stream: The batches of this rank.
        num_workers: Worker processes; 0 reads in this process, with the same result as 1.
        pin_memory: Whether to put batches into page-locked memory.
        multiprocessing_context: How to start workers, for example ``"spawn"``; None for the default.
        trainer: Source of two facts: whether the last batch was used, and whether epochs are shortened.
        same_epoch: Whether to repeat epoch 0, to overfit on purpose.
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
        self._loader = Workers(
            stream, num_workers=num_workers, pin_memory=pin_memory, multiprocessing_context=multiprocessing_context
        )
        self._epoch = 0
        self._batches = 0  # of the epoch, yielded so far
        self._begun = False  # whether an iteration has begun at (epoch, batches)

    def __len__(self) -> int:
        return self.stream.batches_per_epoch

    def __iter__(self) -> Iterator[TrainBatch]:
        # A generator: nothing happens until the first batch is asked for.
        if self._begun:  # an epoch that was left early is finished too
            self._epoch, self._batches = self._epoch + 1, 0
        self._begun = True
        self.stream.epoch = 0 if self._same_epoch else self._epoch
        self.stream.batches_done = self._batches
        batches = iter(self._loader)
        deaths = 0
        while self._batches < len(self):
            try:
                batch = next(batches, None)
                deaths = 0
            except WorkerDiedError as error:
                deaths += 1
                if deaths == _DEATHS:
                    raise
                warnings.warn(f"{error}; starting anew from batch {self._batches}", stacklevel=2)
                self.stream.batches_done = self._batches
                batches = iter(self._loader)
                continue
            if isinstance(batch, StreamFailure):
                raise DataError(batch.message)
            if batch is None:
                raise RuntimeError("the training stream ended before its epoch did")
            self._batches += 1
            if self._batches == len(self):
                del batches  # stops the workers now, not after the validation that may follow
            yield batch

    def state_dict(self) -> dict[str, int]:
        """Position in the data: number of the epoch, and batches of it that were used."""
        epoch, batches, length = self._epoch, self._batches, float(len(self))
        if self._trainer is not None:
            progress: Any = self._trainer.fit_loop.epoch_loop.batch_progress.current
            batches -= progress.ready - progress.processed  # 1 while a batch is in training_step, else 0
            length = min(length, self._trainer.num_training_batches)
        if batches >= length:
            epoch, batches = epoch + 1, 0
        return {"epoch": epoch, "batches": batches}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Let the next iteration continue from ``state``."""
        self._epoch, self._batches, self._begun = state["epoch"], state["batches"], False
        if self._batches >= len(self):  # epochs are shorter now
            self._epoch, self._batches = self._epoch + 1, 0


class ImageData(lightning.LightningDataModule):
    """Training and validation images.

    Training batches are :class:`TrainBatch`, evaluation items :class:`EvalItem`. A checkpoint holds the
    position in the data, and a run resumed from it gets exactly the batches that an uninterrupted run would
    have had, at any point of an epoch. The position counts batches, independent of
    ``accumulate_grad_batches``.

    Args:
        train: Shards or folders of images, as :func:`expand_sources` takes them; None for synthetic images, which are
            made in ``synthetic_dir`` at first use.
        val: Shards, files or folders, as :class:`EvalImages` takes them; None for synthetic images.
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
        cache_mb: Megabytes of decoded training pictures that each worker keeps: this halves the work of a crop, for
            few pictures and a fast GPU.
        remote: How shards are read over the network: timeouts, retries and cache.

    Raises:
        ConfigError: If a setting lies outside its range.
    """

    def __init__(
        self,
        train: str | list[str] | None = None,
        val: str | list[str] | None = None,
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
        cache_mb: int = 0,
        remote: Remote = PATIENT,
    ) -> None:
        super().__init__()
        check_settings(
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
            cache_mb=cache_mb,
        )
        self.train = train
        self.val = val
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
        self.cache_mb = cache_mb
        self.remote = remote
        self._loader: TrainLoader | None = None
        self._resume: dict[str, Any] | None = None  # a state that was loaded and not yet used

    def find(self) -> None:
        """Look for the files that are named, before the synthetic images are made or a run begins.

        Raises:
            DataError: If shards or images are missing.
        """
        if self.train is not None:
            expand_sources(self.train)
        if self.val is not None:
            EvalImages(self.val)

    def prepare_data(self) -> None:
        """Create the synthetic images if they are needed and missing; called on one rank per node."""
        if self.train is None or self.val is None:
            ensure_synthetic_shards(self.synthetic_dir)

    def setup(self, stage: str) -> None:
        """Find the files before anything slow begins.

        Raises:
            DataError: If shards or images are missing.
        """
        if stage == "fit":
            self._loader = None  # a new run begins with epoch 0, or at the state of load_state_dict
            expand_sources(self._source("train"))
        self._images()

    def train_dataloader(self) -> TrainLoader:
        """Training batches of this rank, from a loaded state on."""
        rank, world_size = self._process()
        on_cuda = self.trainer is not None and self.trainer.strategy.root_device.type == "cuda"
        loader = TrainLoader(
            TrainStream(
                expand_sources(self._source("train")),
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
                cache_mb=self.cache_mb,
                remote=self.remote,
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
        return Workers(self._images(), num_workers=self.num_workers, pin_memory=torch.cuda.is_available())

    def state_dict(self) -> dict[str, Any]:
        """Position of training in the data; the same on every rank."""
        if self._loader is None:
            return dict(self._resume or {})
        return {**self._loader.state_dict(), "settings": _settings(self._loader)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Let the next training loader continue from ``state_dict``."""
        self._resume = dict(state_dict) or None

    def _source(self, split: str) -> str | list[str]:
        """What the split reads, with the defaults filled in."""
        source: str | list[str] | None = getattr(self, split)
        if source is not None:
            return source
        shards = sorted(str(path) for path in self.synthetic_dir.glob(f"{split}-*.tar"))
        if not shards:
            raise DataError(f"there are no synthetic images in {self.synthetic_dir}: call prepare_data() first")
        return shards

    def _images(self) -> EvalImages:
        rank, world_size = self._process()
        source = self._source("val")
        return EvalImages(source, limit=self.val_limit, rank=rank, world_size=world_size, remote=self.remote)

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
        "num_workers": max(1, loader.num_workers),  # 0 reads the same as 1
        "batch_size": stream.batch_size,
        "seed": stream.seed,
        "shuffle_buffer": stream.shuffle_buffer,
        "shards": len(stream.shards),
    }
