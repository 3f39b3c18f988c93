"""Every picture reaches training and evaluation as promised, and damage is met with counts or clear errors."""

from __future__ import annotations

import itertools
import sys
import tarfile
import warnings
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lightning
import numpy as np
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from PIL import Image
from shard_files import CROP, encoded, every_key, keys, picture, stream, write_shards, write_tar
from torch.utils.data import DataLoader

import gic.data.stream
from gic.data import reading as tarshards
from gic.data.module import ImageData, TrainLoader
from gic.data.plan import Part, shard_plan
from gic.data.reading import expand_shards
from gic.data.remote import Remote
from gic.data.stream import EvalImages
from gic.errors import ConfigError, DataError

pytestmark = [
    pytest.mark.filterwarnings("ignore:This DataLoader will create"),
    pytest.mark.filterwarnings("ignore:.*callbacks used to create the checkpoint"),
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
    pytest.mark.filterwarnings("ignore:Checkpoint directory"),
    pytest.mark.filterwarnings("ignore:You requested to overfit but enabled val dataloader shuffling"),
]


@pytest.fixture
def shards(tmp_path: Path) -> list[str]:
    return write_shards(tmp_path / "shards", [5, 3, 4])


def test_a_cache_spares_decoding_and_changes_no_batch(shards: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    decoded: list[str] = []

    def counted(data: bytes, name: str, load: Any = gic.data.stream.load_rgb) -> Any:
        decoded.append(name)
        return load(data, name=name)

    monkeypatch.setattr(gic.data.stream, "load_rgb", counted)
    plain = list(stream(shards, batches_per_epoch=30))
    assert len(decoded) == 60
    for cache_mb, most in ((1, 12), (0, 60)):
        decoded.clear()
        cached = list(stream(shards, batches_per_epoch=30, cache_mb=cache_mb))
        assert len(decoded) == most
        for one, other in zip(plain, cached, strict=True):
            assert one["key"] == other["key"] and torch.equal(one["image"], other["image"])
    with pytest.raises(ConfigError, match="cache_mb"):
        stream(shards, cache_mb=-1)


def test_a_full_cache_takes_no_more(shards: list[str]) -> None:
    small = stream(shards, batches_per_epoch=30, cache_mb=1)
    small._room = 2 * 3 * 24 * 20 + 100
    list(small)
    assert len(small._cache) == 2
    assert small._room == 100


# Naming shards


def test_patterns_folders_and_urls_are_expanded(shards: list[str]) -> None:
    folder = Path(shards[0]).parent
    assert expand_shards(f"{folder}/train-{{000000..000002}}.tar") == shards
    assert expand_shards(f"{folder}/train-{{000002,000000}}.tar") == [shards[2], shards[0]]
    assert expand_shards(str(folder)) == shards
    assert expand_shards([shards[1], "s3://bucket/x-{8..10}.tar"])[1:] == [
        f"s3://bucket/x-{number}.tar" for number in (8, 9, 10)
    ]
    command = "pipe:awk '{print}' \\n a.tar"
    assert expand_shards(command) == [command]


def test_missing_and_empty_shards_are_named_and_counted(shards: list[str], tmp_path: Path) -> None:
    folder = Path(shards[0]).parent
    (folder / "train-000003.tar").touch()
    with pytest.raises(DataError, match=r"3 of 6 shards .*000003.tar \(empty\).*000004.tar \(missing\)"):
        expand_shards(f"{folder}/train-{{000000..000005}}.tar")
    for spec in (str(tmp_path), [], "", f"{folder}/train-{{0.tar"):
        with pytest.raises(DataError):
            expand_shards(spec)


# Reading shards


@pytest.mark.parametrize("place", [0.001, 0.2, 0.5, 0.77, 0.999])
@pytest.mark.parametrize("parts", [1, 3])
def test_the_two_stretches_of_a_shard_make_one_whole(tmp_path: Path, place: float, parts: int) -> None:
    long_name = "folder/" + 120 * "x"  # needs an extended header of its own
    members = [(f"{long_name}{i}.{suffix}", encoded(picture(i))) for i in range(7) for suffix in ("png", "b.png")]
    shard = write_tar(tmp_path / "a.tar", [("__meta__", b"skip me"), ("README", b""), *members])
    everything = Counter(raw.key for raw in tarshards.read_shard(shard))
    assert len(everything) == 7
    read: Counter[str] = Counter()
    for part, (start, stop) in itertools.product(range(parts), [(place, 1.0), (0.0, place)]):
        for raw in tarshards.read_shard(shard, Part(0, part, parts, start, stop, 0)):
            assert not raw.problem or "no sample" in raw.name  # the stretch before the first sample
            read.update([] if raw.problem else [raw.key])
    assert read == everything


def test_commands_and_compressed_shards_are_read_whole(shards: list[str], tmp_path: Path) -> None:
    import gzip

    packed = tmp_path / "a.tar.gz"
    packed.write_bytes(gzip.compress(Path(shards[0]).read_bytes()))
    for shard in (str(packed), f"pipe:cat {shards[0]}"):
        head = [raw.key for raw in tarshards.read_shard(shard, Part(0, 0, 1, 0.0, 0.4, 0))]
        tail = [raw.key for raw in tarshards.read_shard(shard, Part(0, 0, 1, 0.4, 1.0, 0))]
        assert (head, tail) == ([], [f"s0-{index:03}" for index in range(5)])


# The training stream


def test_batches_have_the_promised_form(shards: list[str]) -> None:
    batches = list(stream(shards))
    assert [batch["position"] for batch in batches] == list(range(6))
    for batch in batches:
        assert batch["image"].shape == (2, 3, CROP, CROP)
        assert batch["image"].dtype == torch.uint8
        assert len(batch["key"]) == 2
        assert batch["skipped"] == {}


@pytest.mark.parametrize(("ranks", "workers"), [(1, 0), (1, 2), (2, 2), (3, 2)])
def test_one_pass_holds_every_sample_once_over_ranks_and_workers(shards: list[str], ranks: int, workers: int) -> None:
    # One batch of each slot's first pass at a time: read without a limit, keep what comes before the repeat.
    seen: Counter[str] = Counter()
    for rank in range(ranks):
        loader = DataLoader(
            stream(shards, rank=rank, world_size=ranks, batch_size=1, batches_per_epoch=60, shuffle_buffer=1),
            batch_size=None,
            num_workers=workers,
        )
        slots: dict[int, list[str]] = {}
        for batch in loader:
            slots.setdefault(batch["position"] % max(1, workers), []).extend(batch["key"])
        for worker, names in slots.items():
            slot = rank * max(1, workers) + worker
            seen.update(names[: share(shards, slot, ranks * max(1, workers))])
    assert seen == Counter(every_key([5, 3, 4]))


def share(shards: Sequence[str], slot: int, slots: int) -> int:
    """How many samples a slot has in its first pass, by the plan."""
    plan = itertools.takewhile(
        lambda part: part.lap == 0, shard_plan(len(shards), seed=0, epoch=0, slot=slot, slots=slots)
    )
    return sum(not raw.problem for part in plan for raw in tarshards.read_shard(shards[part.shard], part))


def test_each_pass_ends_before_the_next_begins(shards: list[str]) -> None:
    names = keys(stream(shards, batch_size=12, batches_per_epoch=3, shuffle_buffer=100))
    passes = [names[:12], names[12:24], names[24:]]
    assert all(sorted(one) == every_key([5, 3, 4]) for one in passes)
    assert passes[0] != passes[1] != passes[2]


def test_forked_and_spawned_workers_of_two_ranks_read_disjoint_shards(tmp_path: Path) -> None:
    shards = write_shards(tmp_path, [3, 3, 3, 3])
    read: list[Any] = []
    for rank, method in enumerate(["fork", "spawn"]):  # what spawned workers must not need is the process group
        source = stream(shards, rank=rank, world_size=2, batch_size=3, batches_per_epoch=2)
        read += list(TrainLoader(source, num_workers=2, multiprocessing_context=method))
    assert sorted(keys(read)) == every_key([3, 3, 3, 3])


def test_epochs_differ_and_repeat_exactly(shards: list[str]) -> None:
    def epoch(number: int, **settings: Any) -> list[Any]:
        source = stream(shards, **settings)
        source.epoch = number
        return list(source)

    first, again, second, seeded = epoch(0), epoch(0), epoch(1), epoch(0, seed=7)
    assert keys(first) == keys(again) != keys(second)
    assert keys(first) != keys(seeded)
    assert all(torch.equal(a["image"], b["image"]) for a, b in zip(first, again, strict=True))


def test_epochs_much_shorter_than_a_shard_reach_all_of_it(tmp_path: Path) -> None:
    source = stream(write_shards(tmp_path, [60]), batches_per_epoch=4)
    seen = Counter[str]()
    for source.epoch in range(60):  # 8 of 60 samples each
        seen.update(keys(source))
    assert set(seen) == set(every_key([60]))


def test_crops_of_one_sample_differ_each_time_it_is_met(tmp_path: Path) -> None:
    shard = write_tar(tmp_path / "a.tar", [("a.png", encoded(picture(0, (64, 64))))])
    batch = next(iter(stream([shard], batch_size=8, shuffle_buffer=1)))
    assert len({image.numpy().tobytes() for image in batch["image"]}) == 8


def test_at_scale_one_a_crop_is_a_window_of_the_image(tmp_path: Path) -> None:
    image = picture(0, (30, 22))
    shard = write_tar(tmp_path / "a.tar", [("a.png", encoded(image))])
    pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1)
    windows = pixels.unfold(1, CROP, 1).unfold(2, CROP, 1).permute(1, 2, 0, 3, 4).reshape(-1, 3, CROP, CROP)
    flips = set()
    for crop in next(iter(stream([shard], batch_size=20, scale_range=(1, 1), shuffle_buffer=1)))["image"]:
        plain, mirrored = ((windows == each).flatten(1).all(1).any().item() for each in (crop, crop.flip(-1)))
        assert plain != mirrored
        flips.add(mirrored)
    assert flips == {False, True}


def test_scaling_is_antialiased_and_keeps_the_crop_inside(tmp_path: Path) -> None:
    stripes = np.zeros((64, 256, 3), np.uint8)
    stripes[:, ::2] = 255  # the finest pattern there is: grey when reduced to a half or less
    shard = write_tar(tmp_path / "a.tar", [("a.png", encoded(Image.fromarray(stripes)))])
    settings = {"batch_size": 8, "shuffle_buffer": 1, "scale_range": (0.01, 0.5)}
    images = next(iter(stream([shard], **settings)))["image"].float()
    assert (images[..., 2:-2] - 127.5).abs().max() < 40
    tall = next(iter(stream([shard], crop_size=64, **settings)))["image"]  # the crop is as high as the image
    assert set(tall.unique().tolist()) == {0, 255}  # so it was not scaled at all


# Damage


def damaged(folder: Path) -> list[str]:
    """Ninety-six good samples and each kind of bad one."""
    good = [(f"good-{index:03}.png", encoded(picture(index))) for index in range(96)]
    broken = encoded(picture(0, (200, 200)), "JPEG")
    bad = [
        ("broken.jpg", broken[: len(broken) // 2]),
        ("noise.png", b"not an image"),
        ("small.png", encoded(picture(1, (CROP - 1, 90)))),
        ("text.txt", b"no image here"),
    ]
    return [write_tar(folder / "a.tar", good[:48] + bad), write_tar(folder / "b.tar", good[48:])]


def test_bad_samples_are_skipped_and_counted_by_reason(tmp_path: Path) -> None:
    batches = list(stream(damaged(tmp_path), batch_size=96, batches_per_epoch=1, shuffle_buffer=200))
    (batch,) = batches
    assert sorted(batch["key"]) == [f"good-{index:03}" for index in range(96)]
    source = stream(damaged(tmp_path), batch_size=8, batches_per_epoch=24, shuffle_buffer=200)
    skipped: Counter[str] = Counter()
    for batch in TrainLoader(source, num_workers=1):
        skipped.update(batch["skipped"])
    assert skipped["undecodable"] >= 2
    assert skipped["too_small"] >= 1
    assert skipped["no_image"] in (2, 3)  # the second pass, and perhaps the third, was read ahead
    assert set(skipped) == {"undecodable", "too_small", "no_image"}


@pytest.mark.parametrize("workers", [0, 1])
def test_too_many_bad_samples_stop_the_run_with_an_example(tmp_path: Path, workers: int) -> None:
    good = [(f"good-{index}.png", encoded(picture(index))) for index in range(9)]
    shard = write_tar(tmp_path / "a.tar", [*good, ("broken.jpg", b"\xff\xd8 nothing follows")])
    with pytest.raises(DataError) as caught:
        list(TrainLoader(stream([shard], batches_per_epoch=50), num_workers=workers))
    message = str(caught.value)
    assert message.startswith("1 of 10 training samples cannot be used")
    assert "broken.jpg" in message and str(shard) in message
    assert "\n" not in message and "Traceback" not in message
    allowed = stream([shard], batches_per_epoch=50, max_bad_fraction=0.1)
    assert len(list(TrainLoader(allowed, num_workers=workers))) == 50


def test_too_many_small_pictures_stop_the_run_with_what_to_do(tmp_path: Path) -> None:
    good = [(f"good-{index}.png", encoded(picture(index))) for index in range(9)]
    small = [(f"small-{index}.png", encoded(picture(index, (CROP - 1, 90)))) for index in range(2)]
    shard = write_tar(tmp_path / "a.tar", [*good, *small])
    with pytest.raises(DataError, match=r"^2 of 11 training samples cannot be used") as caught:
        list(stream([shard], batches_per_epoch=50))
    message = str(caught.value)
    for said in (f"2 too small: gic shards --min-side {CROP}", "data.max_bad_fraction", "data.crop_size", "small-"):
        assert said in message


@pytest.mark.parametrize("content", ["broken.jpg", "only.txt"])
def test_nothing_but_bad_samples_is_an_error_whatever_is_allowed(tmp_path: Path, content: str) -> None:
    shard = write_tar(tmp_path / "a.tar", [(content, b"x")])
    with pytest.raises(DataError, match=content.split(".")[0]):
        next(iter(stream([shard], max_bad_fraction=1.0)))


def test_a_truncated_shard_gives_its_whole_samples_and_is_counted(shards: list[str], tmp_path: Path) -> None:
    whole = Path(shards[0]).read_bytes()
    with tarfile.open(shards[0]) as tar:
        middle = next(member for member in tar if member.name == "s0-003.png").offset_data + 100
    cut = tmp_path / "cut.tar"
    cut.write_bytes(whole[:middle])
    raws = list(tarshards.read_shard(str(cut)))
    assert [raw.key for raw in raws if not raw.problem] == ["s0-000", "s0-001", "s0-002"]
    assert [raw.problem for raw in raws if raw.problem] == ["no_image", "damaged_shard"]
    batches = list(stream([str(cut)], max_bad_fraction=0.5, batches_per_epoch=3))
    assert set(keys(batches)) == {"s0-000", "s0-001", "s0-002"}
    assert sum(batch["skipped"].get("damaged_shard", 0) for batch in batches) >= 1


def test_a_shard_that_vanishes_is_counted_and_the_rest_read(tmp_path: Path) -> None:
    shards = write_shards(tmp_path, [2] * 8)
    Path(shards[3]).unlink()
    batches = list(stream(shards, batch_size=7, batches_per_epoch=4, shuffle_buffer=1))
    assert set(keys(batches)) == set(every_key([2] * 8)) - set(every_key([0, 0, 0, 2]))
    assert sum(batch["skipped"].get("unreadable_shard", 0) for batch in batches) == 2


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("kind", ["missing", "empty", "garbage", "of nothing"])
def test_shards_that_all_fail_are_an_error_and_no_endless_loop(tmp_path: Path, kind: str, workers: int) -> None:
    shards = [tmp_path / f"{index}.tar" for index in range(3)]
    for shard in shards:
        if kind == "of nothing":
            write_tar(shard, [])
        elif kind != "missing":
            shard.write_bytes(b"" if kind == "empty" else 2000 * b"garbage ")
    source = stream([str(shard) for shard in shards], max_bad_fraction=1.0)
    with pytest.raises(DataError, match=r"^no training sample could be read from .* for example .*\.tar"):
        list(TrainLoader(source, num_workers=workers))


def test_many_bad_shards_stop_the_run(tmp_path: Path) -> None:
    shards = [*write_shards(tmp_path, [30] * 10), *(f"{tmp_path}/gone-{index}.tar" for index in range(2))]
    with pytest.raises(DataError, match=r"training shards could not be read.*gone-"):
        list(stream(shards, batches_per_epoch=1000))


def test_fewer_samples_than_readers_still_feed_every_reader(tmp_path: Path) -> None:
    shards = write_shards(tmp_path, [2])
    for rank in range(5):
        batches = list(stream(shards, rank=rank, world_size=5, batches_per_epoch=3))
        assert len(batches) == 3


# Resuming


@pytest.mark.parametrize("workers", [0, 1, 2])
def test_a_loader_goes_on_exactly_where_it_was_left(tmp_path: Path, workers: int) -> None:
    shards = damaged(tmp_path)
    settings = {"batch_size": 5, "batches_per_epoch": 7, "max_bad_fraction": 0.5}

    def take(loader: TrainLoader, count: int) -> list[Any]:
        epochs = itertools.chain.from_iterable(iter(loader) for _ in range(3))
        return list(itertools.islice(epochs, count))

    whole = take(TrainLoader(stream(shards, **settings), num_workers=workers), 21)
    assert [batch["position"] for batch in whole] == 3 * list(range(7))
    for done in (3, 4, 7, 12):
        before = TrainLoader(stream(shards, **settings), num_workers=workers)
        take(before, done)
        after = TrainLoader(stream(shards, **settings), num_workers=workers)
        after.load_state_dict(before.state_dict())
        rest = take(after, 21 - done)
        assert keys(rest) == keys(whole[done:])
        assert all(torch.equal(a["image"], b["image"]) for a, b in zip(rest, whole[done:], strict=True))


def test_loaders_leave_the_global_random_numbers_alone(shards: list[str]) -> None:
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    list(TrainLoader(stream(shards), num_workers=2))
    list(TrainLoader(stream(shards)))
    assert torch.equal(torch.rand(3), expected)


def test_an_iterator_that_is_never_asked_costs_no_epoch(shards: list[str]) -> None:
    loader = TrainLoader(stream(shards))
    iter(loader), iter(loader)
    assert loader.state_dict() == {"epoch": 0, "batches": 0}
    assert keys(loader) == keys(stream(shards))


class Recorder(lightning.LightningModule):
    """Notes what training sees: global step, Lightning's epoch, batch index, and the keys."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.seen: list[tuple[int, int, int, tuple[str, ...]]] = []
        self.fail_at: int | None = None

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        if len(self.seen) == self.fail_at:
            raise KeyboardInterrupt
        self.seen.append((self.global_step, self.current_epoch, batch_idx, tuple(batch["key"])))
        return self.weight * batch["image"].float().mean()

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        assert batch["image"] is not None

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=1e-3)


def image_data(folder: Path, **settings: Any) -> ImageData:
    spec = f"{folder}/train-{{000000..000002}}.tar"
    defaults = {"crop_size": CROP, "batch_size": 2, "batches_per_epoch": 5, "shuffle_buffer": 4, "num_workers": 0}
    return ImageData(spec, f"{folder}/train-000001.tar", **{**defaults, **settings})


def quiet() -> dict[str, Any]:
    return {
        "accelerator": "cpu",
        "logger": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "enable_checkpointing": False,
        "limit_val_batches": 1,
    }


def fit(
    folder: Path, module: Recorder, ckpt_path: Path | None = None, data_settings: Any = None, **settings: Any
) -> lightning.Trainer:
    checkpoints = any(isinstance(callback, ModelCheckpoint) for callback in settings.get("callbacks", []))
    trainer = lightning.Trainer(**{**quiet(), "max_epochs": 3, "enable_checkpointing": checkpoints, **settings})
    source = image_data(folder, **(data_settings or {}))
    trainer.fit(module, datamodule=source, ckpt_path=ckpt_path)
    return trainer


def saved(folder: Path, **settings: Any) -> ModelCheckpoint:
    return ModelCheckpoint(folder, filename="{step:02}", save_top_k=-1, auto_insert_metric_name=False, **settings)


RUNS = {
    "plain": {},
    "accumulated": {"accumulate_grad_batches": 2},
    "validated often": {"val_check_interval": 2},
    "cut short": {"limit_train_batches": 4},
    "by steps": {"max_steps": 13, "max_epochs": -1},
}


@pytest.mark.parametrize("name", RUNS)
@pytest.mark.parametrize("when", ["steps", "epoch end", "validation"])
def test_a_resumed_fit_sees_what_an_uninterrupted_one_sees(
    shards: list[str], tmp_path: Path, name: str, when: str
) -> None:
    folder = Path(shards[0]).parent
    callback = {
        "steps": saved(tmp_path / "ckpt", every_n_train_steps=1),
        "epoch end": saved(tmp_path / "ckpt", every_n_epochs=1, save_on_train_epoch_end=True),
        "validation": saved(tmp_path / "ckpt", every_n_epochs=1, save_on_train_epoch_end=False),
    }[when]
    whole = Recorder()
    trainer = fit(folder, whole, callbacks=[callback], **RUNS[name])
    checkpoints = sorted((tmp_path / "ckpt").glob("*.ckpt"))[:-1]
    assert checkpoints
    for path in checkpoints:
        resumed = Recorder()
        end = fit(folder, resumed, path, **RUNS[name])
        assert resumed.seen == whole.seen[len(whole.seen) - len(resumed.seen) :], path.name
        assert resumed.seen[0][0] == int(path.stem), path.name  # the first step after the checkpoint
        assert (end.global_step, end.current_epoch) == (trainer.global_step, trainer.current_epoch)


@pytest.mark.parametrize("workers", [1, 2])
def test_a_fit_resumes_with_workers_too(shards: list[str], tmp_path: Path, workers: int) -> None:
    folder = Path(shards[0]).parent
    settings = {"num_workers": workers}
    whole = Recorder()
    fit(folder, whole, data_settings=settings, callbacks=[saved(tmp_path / "ckpt", every_n_train_steps=4)])
    for path in sorted((tmp_path / "ckpt").glob("*.ckpt")):
        resumed = Recorder()
        fit(folder, resumed, path, data_settings=settings)
        assert resumed.seen == whole.seen[int(path.stem) :]


def test_a_batch_that_was_not_finished_is_repeated(shards: list[str], tmp_path: Path) -> None:
    folder = Path(shards[0]).parent
    whole = Recorder()
    fit(folder, whole)
    for fail_at in (0, 3, 5, 7):
        broken = Recorder()
        broken.fail_at = fail_at
        path = tmp_path / f"{fail_at}.ckpt"

        class SaveWhenInterrupted(lightning.Callback):
            def on_exception(self, trainer: lightning.Trainer, *_: Any, path: Path = path) -> None:
                trainer.save_checkpoint(path)

        with pytest.raises(SystemExit):
            fit(folder, broken, callbacks=[SaveWhenInterrupted()])
        resumed = Recorder()
        fit(folder, resumed, path)
        assert broken.seen + resumed.seen == whole.seen


@pytest.mark.parametrize("when", ["last step", "after the fit"])
def test_a_run_can_be_cut_short_and_resumed_again_and_again(shards: list[str], tmp_path: Path, when: str) -> None:
    folder = Path(shards[0]).parent
    whole = Recorder()
    fit(folder, whole, max_steps=14, max_epochs=-1)
    seen = []
    path = None
    for steps in (2, 4, 5, 8, 12, 14):
        module = Recorder()
        callback = saved(tmp_path / when, every_n_train_steps=1)
        trainer = fit(folder, module, path, max_steps=steps, max_epochs=-1, callbacks=[callback])
        path = tmp_path / when / f"{steps:02}.ckpt"
        if when == "after the fit":  # Lightning then counts an epoch that max_steps cut short as done
            trainer.save_checkpoint(path)
        seen += module.seen
    columns = (0, 1, 2, 3) if when == "last step" else (0, 3)
    for column in columns:
        assert [row[column] for row in seen] == [row[column] for row in whole.seen]


def test_a_second_fit_begins_anew_and_reloading_does_not(shards: list[str]) -> None:
    folder = Path(shards[0]).parent
    source = image_data(folder)
    once, again, reloaded = Recorder(), Recorder(), Recorder()
    for module in (once, again):
        lightning.Trainer(**quiet(), max_epochs=2).fit(module, datamodule=source)
    fit(folder, reloaded, max_epochs=2, reload_dataloaders_every_n_epochs=1)
    assert once.seen == again.seen == reloaded.seen
    assert once.seen[0][3] != once.seen[5][3]


def test_overfitting_repeats_the_same_batches(shards: list[str]) -> None:
    module = Recorder()
    fit(Path(shards[0]).parent, module, overfit_batches=2)
    batches = [batch[3] for batch in module.seen]
    assert batches == 3 * batches[:2]


def test_other_settings_at_resume_are_told_once(shards: list[str], tmp_path: Path) -> None:
    folder = Path(shards[0]).parent
    fit(folder, Recorder(), callbacks=[saved(tmp_path, every_n_train_steps=3)])
    module = Recorder()
    with pytest.warns(UserWarning, match=r"batch_size 2 -> 3, seed 0 -> 9.*order of the data differs") as caught:
        fit(folder, module, tmp_path / "03.ckpt", {"batch_size": 3, "seed": 9})
    assert sum("order of the data" in str(warning.message) for warning in caught) == 1
    assert [batch[:3] for batch in module.seen[:3]] == [(3, 0, 3), (4, 0, 4), (5, 1, 0)]
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*order of the data")
        fit(folder, Recorder(), tmp_path / "03.ckpt", {"num_workers": 1})  # reads what 0 workers read


def test_lightning_has_nothing_to_warn_about_the_loader(shards: list[str], tmp_path: Path) -> None:
    folder = Path(shards[0]).parent
    fit(folder, Recorder(), callbacks=[saved(tmp_path, every_n_train_steps=3)])
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        fit(folder, Recorder(), tmp_path / "03.ckpt", limit_val_batches=0)
    texts = [str(warning.message) for warning in caught]
    assert not [text for text in texts if "IterableDataset" in text or "resumable" in text], texts


class Distributed(Recorder):
    """Writes what each rank saw to a file of its own: the processes share no memory."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.folder = folder

    def on_train_end(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        rows = [f"{step} {epoch} {index} {' '.join(names)}" for step, epoch, index, names in self.seen]
        (self.folder / f"rank{self.global_rank}").write_text("\n".join(rows))

    def seen_by(self, rank: int) -> list[str]:
        return (self.folder / f"rank{rank}").read_text().splitlines()


def test_two_processes_train_on_disjoint_data_and_resume(shards: list[str], tmp_path: Path) -> None:
    folder = Path(shards[0]).parent
    settings = {"strategy": "ddp_fork", "devices": 2, "max_epochs": 2}
    options = {"batch_size": 1, "shuffle_buffer": 1}
    callback = saved(tmp_path / "ckpt", every_n_train_steps=3)
    whole, resumed = Distributed(tmp_path / "whole"), Distributed(tmp_path / "resumed")
    fit(folder, whole, data_settings=options, callbacks=[callback], **settings)
    fit(folder, resumed, tmp_path / "ckpt" / "03.ckpt", options, **settings)
    first_keys = set()
    for rank in range(2):
        assert len(whole.seen_by(rank)) == 10
        assert resumed.seen_by(rank) == whole.seen_by(rank)[3:]
        first_keys.update(row.split()[3] for row in whole.seen_by(rank)[: share(shards, rank, 2)][:5])
    assert len(first_keys) == sum(min(5, share(shards, rank, 2)) for rank in range(2))


# Evaluation


def evaluate(source: Any, *, world: int, workers: int, **settings: Any) -> list[Any]:
    items = []
    for rank in range(world):
        images = EvalImages(source, rank=rank, world_size=world, **settings)
        items += list(DataLoader(images, batch_size=None, num_workers=workers))
    return items


@pytest.mark.parametrize(("world", "workers"), [(1, 0), (1, 2), (2, 0), (3, 2), (14, 0)])
def test_each_image_is_evaluated_once_at_its_full_size(shards: list[str], world: int, workers: int) -> None:
    items = evaluate(shards, world=world, workers=workers)
    assert sorted(item["key"] for item in items) == every_key([5, 3, 4])
    for item in items:
        shard, index = item["key"][1:].split("-")
        expected = np.array(picture(1000 * int(shard) + int(index)))
        assert torch.equal(item["image"], torch.from_numpy(expected).permute(2, 0, 1))


def test_folders_files_and_shards_may_be_evaluated_together(shards: list[str], tmp_path: Path) -> None:
    folder = tmp_path / "photos" / "deeper"
    folder.mkdir(parents=True)
    for index, size in enumerate([(7, 5), (1, 1), (90, 3)]):
        picture(index, size).save(folder / f"{index}.png")
    items = evaluate(str(tmp_path / "photos"), world=2, workers=0)
    assert [tuple(item["image"].shape) for item in sorted(items, key=lambda item: item["key"])] == [
        (3, 5, 7),
        (3, 1, 1),
        (3, 3, 90),
    ]
    assert {Path(item["key"]) for item in items} == set(folder.iterdir())
    both = evaluate([str(folder / "0.png"), str(Path(shards[0]).parent)], world=2, workers=2)
    assert len({item["key"] for item in both}) == len(both) == 13


def test_a_limit_takes_the_first_images_whatever_the_number_of_readers(shards: list[str]) -> None:
    for world, workers in [(1, 0), (2, 2), (9, 0)]:
        items = evaluate(shards, world=world, workers=workers, limit=7)
        assert sorted(item["key"] for item in items) == every_key([5, 3, 4])[:7]


@pytest.mark.parametrize("workers", [0, 2])
def test_what_cannot_be_evaluated_is_yielded_with_its_error(tmp_path: Path, workers: int) -> None:
    shards = write_shards(tmp_path / "shards", [2, 2])
    Path(shards[1]).write_bytes(b"garbage")
    (tmp_path / "broken.png").write_bytes(encoded(picture(0))[:60])
    items = evaluate([*shards, str(tmp_path / "broken.png")], world=2, workers=workers)
    errors = {item["key"]: item["error"] for item in items if item["image"] is None}
    assert len(items) == 4
    assert set(errors) == {shards[1], str(tmp_path / "broken.png")}
    assert all(key in error and "\n" not in error for key, error in errors.items())
    assert all("error" not in item for item in items if item["image"] is not None)


def test_evaluation_sources_must_exist(tmp_path: Path) -> None:
    for source in (str(tmp_path), str(tmp_path / "gone.tar"), str(tmp_path / "gone.png"), []):
        with pytest.raises(DataError):
            EvalImages(source)


# The data module


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("crop_size", 0),
        ("batch_size", 0),
        ("batches_per_epoch", -1),
        ("shuffle_buffer", 0),
        ("num_workers", -1),
        ("seed", -1),
        ("val_limit", 0),
        ("scale_range", (1.0, 0.5)),
        ("scale_range", (0.0, 0.5)),
        ("max_bad_fraction", 1.5),
    ],
)
def test_settings_outside_their_range_are_named(name: str, value: Any) -> None:
    with pytest.raises(ConfigError, match=name):
        ImageData(**{name: value})


def test_missing_data_is_found_before_training_begins(shards: list[str], tmp_path: Path) -> None:
    with pytest.raises(DataError, match="missing"):
        ImageData(str(tmp_path / "gone.tar"), shards[0]).setup("fit")
    with pytest.raises(DataError, match="missing"):
        ImageData(shards[0], str(tmp_path / "gone.tar")).setup("fit")
    with pytest.raises(DataError, match="prepare_data"):
        ImageData(synthetic_dir=str(tmp_path)).setup("fit")


def test_the_seed_is_that_of_the_run_unless_it_is_given(shards: list[str], monkeypatch: Any) -> None:
    monkeypatch.delenv("PL_GLOBAL_SEED", raising=False)
    assert ImageData(shards, shards[0]).train_dataloader().stream.seed == 0
    monkeypatch.setenv("PL_GLOBAL_SEED", "5")
    assert ImageData(shards, shards[0]).train_dataloader().stream.seed == 5
    assert ImageData(shards, shards[0], seed=3).train_dataloader().stream.seed == 3


def test_without_a_source_synthetic_images_are_made_once(tmp_path: Path, monkeypatch: Any) -> None:
    made = []

    def make(folder: Path) -> None:
        made.append(folder)
        for split in ("train", "val"):
            write_tar(folder / f"{split}-000000.tar", [(f"{split}.png", encoded(picture(1, (32, 32))))])

    monkeypatch.setattr("gic.data.module.ensure_synthetic_shards", make)
    source = ImageData(synthetic_dir=str(tmp_path / "synthetic"), crop_size=CROP, num_workers=0)
    source.prepare_data()
    source.setup("fit")
    assert made == [tmp_path / "synthetic"]
    assert set(next(iter(source.train_dataloader()))["key"]) == {"train"}
    assert [item["key"] for item in source.val_dataloader()] == ["val"]
    ImageData("a.tar", "b.tar").prepare_data()
    assert len(made) == 1


# --- object stores ----------------------------------------------------------------------------------------------------


@pytest.fixture
def store(tmp_path):
    """An object store in this process with one shard of ten pictures, and what it holds on disk."""
    import fsspec

    memory = fsspec.filesystem("memory")
    memory.store.clear()
    (shard,) = write_shards(tmp_path, [10])
    memory.pipe("/photos/train-000000.tar", Path(shard).read_bytes())
    yield memory, shard
    memory.store.clear()


def test_a_shard_in_an_object_store_is_read_as_one_on_disk(store):
    from gic.data.reading import read_shard

    there, here = ([raw.data for raw in read_shard(url)] for url in ("memory://photos/train-000000.tar", store[1]))
    assert there == here and len(here) == 10


def test_reading_goes_on_where_an_object_store_broke_off(store, monkeypatch, recwarn):
    from gic.data import remote

    opened, failures = remote._open_file_system, iter([3000, 9000])

    def flaky(url, position):
        source = opened(url, position)
        end = next(failures, None)
        read = source.source.read

        def breaking(size):
            if end is not None and source.source.tell() > end:
                raise OSError("the connection was reset")
            return read(min(size, 1024))

        return source._replace(source=SimpleNamespace(read=breaking, close=source.source.close))

    monkeypatch.setattr(remote, "_open_file_system", flaky)
    file = remote.RemoteFile("memory://photos/train-000000.tar", Remote(backoff=0))
    data = b"".join(iter(lambda: file.read(4096), b""))
    assert data == Path(store[1]).read_bytes()
    assert sum("the connection was reset" in str(each.message) for each in recwarn) == 2


@pytest.mark.parametrize(
    ("url", "said"),
    [("memory://photos/none.tar", "FileNotFoundError"), ("nowhere://a.tar", "nowhere"), ("s3://a/b.tar", "s3fs")],
)
def test_what_an_object_store_has_not_is_said_at_once(url, said, store, monkeypatch):
    from gic.data.remote import RemoteFile

    monkeypatch.setitem(sys.modules, "s3fs", None)
    with pytest.raises(OSError, match=said) as caught:
        RemoteFile(url, Remote(backoff=1000)).read(10)
    assert "tried" not in str(caught.value)
