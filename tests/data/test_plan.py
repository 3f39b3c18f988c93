"""The plan deals every sample to exactly one reader, differently in every epoch, and can be resumed."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterator

import pytest
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from gic.data.plan import Part, random_stream, resume_position, shard_plan


def laps(count: int, *, shards: int, slot: int, slots: int, seed: int = 0, epoch: int = 0) -> list[Part]:
    plan = shard_plan(shards, seed=seed, epoch=epoch, slot=slot, slots=slots)
    return list(itertools.takewhile(lambda part: part.lap < count, plan))


@pytest.mark.parametrize("shards", [1, 2, 3, 5, 8, 13])
@pytest.mark.parametrize(("ranks", "workers"), [(1, 1), (1, 3), (2, 1), (2, 2), (3, 4), (8, 2)])
def test_every_sample_belongs_to_one_slot_in_each_pass(shards: int, ranks: int, workers: int) -> None:
    samples = 40  # of each shard
    seen = {lap: Counter[tuple[int, int]]() for lap in range(3)}
    for slot in range(ranks * workers):
        for part in laps(3, shards=shards, slot=slot, slots=ranks * workers):
            first, last = round(part.start * samples), round(part.stop * samples)
            for index in range(part.part, samples, part.parts):
                if first <= index < last:
                    seen[part.lap][part.shard, index] += 1
    everything = Counter(itertools.product(range(shards), range(samples)))
    assert all(seen[lap] == everything for lap in seen)


@pytest.mark.parametrize(("shards", "slots"), [(1, 7), (4, 3), (16, 16)])
def test_every_slot_has_something_to_read_in_each_pass(shards: int, slots: int) -> None:
    for slot in range(slots):
        assert {part.lap for part in laps(5, shards=shards, slot=slot, slots=slots)} == set(range(5))


def test_shards_are_divided_only_when_they_are_fewer_than_the_slots() -> None:
    assert {part.parts for part in laps(2, shards=6, slot=0, slots=6)} == {1}
    assert {part.parts for part in laps(2, shards=5, slot=0, slots=6)} == {2}


def test_order_depends_on_seed_epoch_and_pass_only() -> None:
    def order(seed: int, epoch: int, lap: int) -> list[int]:
        parts = laps(lap + 1, shards=50, slot=0, slots=1, seed=seed, epoch=epoch)
        return list(dict.fromkeys(part.shard for part in parts if part.lap == lap))

    orders = {key: order(*key) for key in itertools.product(range(2), range(3), range(2))}
    assert len({tuple(shards) for shards in orders.values()}) == len(orders)
    assert all(order(*key) == shards for key, shards in orders.items())


def test_epochs_enter_the_first_shard_at_different_places() -> None:
    starts = [next(shard_plan(1, seed=0, epoch=epoch, slot=0, slots=1)).start for epoch in range(200)]
    thirds = Counter(int(3 * start) for start in starts)
    assert min(thirds[0], thirds[1], thirds[2]) > 40  # uniform would be 67 each


def test_random_streams_repeat_and_differ_by_key() -> None:
    assert random_stream(1, 2, 3).random() == random_stream(1, 2, 3).random()
    values = {random_stream(*key).random() for key in itertools.product(range(4), repeat=3)}
    assert len(values) == 64


@pytest.mark.parametrize(("shards", "slot", "slots"), [(0, 0, 1), (3, 2, 2), (3, -1, 2), (3, 0, 0)])
def test_impossible_plans_are_refused(shards: int, slot: int, slots: int) -> None:
    with pytest.raises(ValueError, match="no plan"):
        next(shard_plan(shards, seed=0, epoch=0, slot=slot, slots=slots))


class Numbers(IterableDataset[int]):
    """Worker v yields v, v + workers, v + 2 workers, ... below 7, from the point of resumption."""

    def __init__(self, done: int) -> None:
        self.done = done

    def __iter__(self) -> Iterator[int]:
        info = get_worker_info()
        worker, workers = (0, 1) if info is None else (info.id, info.num_workers)
        virtual, delivered = resume_position(worker, workers, self.done)
        yield from list(range(virtual, 7, workers))[delivered:]


@pytest.mark.parametrize("workers", [0, 1, 2, 3])
def test_resumed_workers_deliver_the_rest_in_order(workers: int) -> None:
    for done in range(8):
        loader = DataLoader(Numbers(done), batch_size=None, num_workers=workers)
        assert list(loader) == list(range(done, 7))
