"""Assignment of training shards to readers: their order, and where a resumed run continues.

Pure functions of their arguments, so that every rank and every worker can compute its own share without
communication, and compute it again after a restart.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

# Names of the random streams that the plan draws from.
_ORDER, _START = 0, 1


class Part(NamedTuple):
    """One stretch of reading for one slot.

    Attributes:
        shard: Index of the shard.
        part: First sample to read; the reader takes samples ``part, part + parts, part + 2 parts, ...``.
        parts: Stride in samples, 1 for a shard that is not divided.
        start: Where to begin, as a fraction of the shard's length, in [0, 1).
        stop: Where to end, in (0, 1]; a stretch ``(x, 1)`` and a stretch ``(0, x)`` make one whole.
        lap: Number of the pass over all shards, from 0.
    """

    shard: int
    part: int
    parts: int
    start: float
    stop: float
    lap: int


def shard_plan(shard_count: int, *, seed: int, epoch: int, slot: int, slots: int) -> Iterator[Part]:
    """Plan what one slot reads in one epoch, without end.

    Each pass over the data is a fresh permutation of the shards, dealt round robin to the slots: within a
    pass every sample belongs to exactly one slot. With fewer shards than slots each shard is divided into
    ``ceil(slots / shard_count)`` interleaved parts, and the parts are dealt.

    A slot starts its first shard of an epoch at a random place and reads the part before it at the end of
    the pass. Otherwise every epoch that is much shorter than the data would read only the first samples of
    each shard.

    Args:
        shard_count: Number of shards, at least 1.
        seed: Seed of the run, at least 0.
        epoch: Number of the epoch, from 0; each has its own permutations.
        slot: This reader, ``rank * workers + worker``, in [0, slots).
        slots: Number of readers, ``world size * workers``.

    Yields:
        Parts of pass 0, then of pass 1, and so on; at least one in every pass.

    Raises:
        ValueError: If ``shard_count`` or ``slots`` is below 1 or ``slot`` is not one of them.
    """
    if shard_count < 1 or not 0 <= slot < slots:
        raise ValueError(f"no plan for slot {slot} of {slots} over {shard_count} shards")
    parts = -(-slots // shard_count)  # 1 unless there are fewer shards than slots
    lap = 0
    while True:
        units = random_stream(seed, _ORDER, epoch, lap).permutation(shard_count * parts)
        mine = [Part(int(unit) // parts, int(unit) % parts, parts, 0.0, 1.0, lap) for unit in units[slot::slots]]
        if lap == 0:
            place = float(random_stream(seed, _START, epoch, slot).random())
            if place > 0:
                mine = [mine[0]._replace(start=place), *mine[1:], mine[0]._replace(stop=place)]
        yield from mine
        lap += 1


def random_stream(seed: int, *key: int) -> np.random.Generator:
    """Random numbers that depend on the seed and the key alone.

    Args:
        seed: Seed of the run, at least 0.
        key: Numbers, at least 0, that name the stream; other numbers give an independent stream.

    Returns:
        A new generator at its beginning.
    """
    return np.random.Generator(np.random.Philox(np.random.SeedSequence(seed, spawn_key=key)))


def resume_position(worker: int, workers: int, batches_done: int) -> tuple[int, int]:
    """Find where a worker continues after a restart.

    PyTorch's DataLoader takes batches from its workers round robin and begins with worker 0. So batch ``k``
    of an epoch came from worker ``k % workers``; when a restarted run takes batch ``k`` from worker 0, that
    worker has to act as virtual worker ``k % workers``.

    Args:
        worker: Index of the worker in the restarted run, in [0, workers).
        workers: Number of workers, at least 1, the same before and after.
        batches_done: Batches of the epoch that were used before the restart, at least 0.

    Returns:
        The virtual worker to act as, and how many batches that one had already delivered.
    """
    virtual = (worker + batches_done) % workers
    return virtual, len(range(virtual, batches_done, workers))
