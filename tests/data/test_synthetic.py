from __future__ import annotations

import hashlib
import io
import json
import subprocess
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import gic.data.synthetic
from gic.data.synthetic import ensure_synthetic_shards, synthetic_image
from gic.errors import ConfigError, DataError

SMALL = {"train": 6, "val": 2, "size": (32, 48), "progress": False}


def digests(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.glob("*.tar"))}


def members(shard: Path) -> dict[str, bytes]:
    with tarfile.open(shard) as tar:
        return {member.name: tar.extractfile(member).read() for member in tar}  # type: ignore[union-attr]


def test_same_picture_whatever_was_computed_before() -> None:
    forwards = [synthetic_image(index, size=(48, 64)).tobytes() for index in range(12)]
    backwards = [synthetic_image(index, size=(48, 64)).tobytes() for index in reversed(range(12))]
    assert forwards == backwards[::-1]


def test_index_and_seed_make_another_picture() -> None:
    pictures = {synthetic_image(index, seed=seed, size=(32, 32)).tobytes() for index in range(12) for seed in (0, 1)}
    assert len(pictures) == 24


@pytest.mark.parametrize("size", [(16, 16), (33, 100), (200, 71)])
def test_size_is_height_and_width(size: tuple[int, int]) -> None:
    for index in range(6):
        image = synthetic_image(index, size=size)
        assert (image.mode, image.height, image.width) == ("RGB", *size)


def test_pictures_are_neither_flat_nor_blown_out_and_moderately_coloured() -> None:
    for index in range(18):
        picture = np.asarray(synthetic_image(index, size=(128, 128)), float)
        assert picture.mean(axis=2).std() > 5, index
        assert np.mean((picture == 0) | (picture == 255)) < 0.5, index
    colour = [np.ptp(np.asarray(synthetic_image(i, size=(128, 128)), float), axis=2).mean() for i in range(36)]
    assert 10 < np.mean(colour) < 90  # grey would be 0, noise of all colours about 128


def spectral_slope(power: np.ndarray) -> float:
    """Slope of the radially averaged power over frequency, both as logarithms; low to medium frequencies."""
    side = power.shape[0]
    radius = np.hypot(np.fft.fftfreq(side)[:, None], np.fft.fftfreq(side)[None]) * side
    ring = np.floor(radius).astype(int).ravel()
    profile = np.bincount(ring, power.ravel()) / np.bincount(ring)
    rings = np.arange(4, int(side * 0.4))
    return float(np.polyfit(np.log(rings), np.log(profile[rings]), 1)[0])


def test_power_spectrum_falls_as_that_of_photographs() -> None:
    side = 256
    window = np.hanning(side)[:, None] * np.hanning(side)
    total = np.zeros((side, side))
    for index in range(24):
        grey = np.asarray(synthetic_image(index, size=(side, side)).convert("L"), float)
        total += np.abs(np.fft.fft2((grey - grey.mean()) * window)) ** 2
    assert -2.6 < spectral_slope(total) < -1.4


@pytest.mark.parametrize(("index", "seed", "size"), [(-1, 0, (64, 64)), (0, -1, (64, 64)), (0, 0, (15, 64))])
def test_senseless_settings_are_refused(index: int, seed: int, size: tuple[int, int]) -> None:
    with pytest.raises(ConfigError, match="sides >= 16"):
        synthetic_image(index, seed=seed, size=size)


def test_shards_hold_every_picture_once_and_no_validation_picture_is_trained_on(tmp_path: Path) -> None:
    ensure_synthetic_shards(tmp_path, **SMALL)
    names = [path.name for path in sorted(tmp_path.glob("*.tar"))]
    assert names == [*(f"train-{n:06d}.tar" for n in range(4)), "val-000000.tar"]
    indices: dict[str, list[int]] = {"train": [], "val": []}
    for name in names:
        held = members(tmp_path / name)
        for member, data in held.items():
            if member.endswith(".json"):
                about = json.loads(data)
                indices[name.split("-")[0]].append(about["index"])
                with Image.open(io.BytesIO(held[member.replace("json", "jpg")])) as image:
                    assert (image.height, image.width) == (32, 48)
                assert about["source"] == "synthetic"
    assert indices["train"] == list(range(6))
    assert len(indices["val"]) == 2
    assert not set(indices["train"]) & set(indices["val"])


def test_shards_are_the_same_bytes_each_time(tmp_path: Path) -> None:
    ensure_synthetic_shards(tmp_path / "a", **SMALL)
    ensure_synthetic_shards(tmp_path / "b", **SMALL)
    assert digests(tmp_path / "a") == digests(tmp_path / "b")
    assert len(digests(tmp_path / "a")) == 5


def test_complete_shards_are_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ensure_synthetic_shards(tmp_path, **SMALL)

    def fail(*args: object, **kwargs: object) -> None:
        raise AssertionError("computed again")

    monkeypatch.setattr(gic.data.synthetic, "synthetic_image", fail)
    ensure_synthetic_shards(tmp_path, **SMALL)


@pytest.mark.parametrize("damage", ["cut", "gone", "manifest"])
def test_damaged_shards_are_made_anew(damage: str, tmp_path: Path) -> None:
    ensure_synthetic_shards(tmp_path, **SMALL)
    before = digests(tmp_path)
    shard = tmp_path / "train-000001.tar"
    if damage == "cut":
        shard.write_bytes(shard.read_bytes()[:1000])
    elif damage == "gone":
        shard.unlink()
    else:
        (tmp_path / "manifest.json").write_text('{"source": "synthetic", "complete": false}')
    ensure_synthetic_shards(tmp_path, **SMALL)
    assert digests(tmp_path) == before


def test_other_settings_replace_all_shards(tmp_path: Path) -> None:
    ensure_synthetic_shards(tmp_path, **SMALL)
    before = digests(tmp_path)
    ensure_synthetic_shards(tmp_path, **{**SMALL, "train": 2, "seed": 1})
    after = digests(tmp_path)
    assert sorted(after) == ["train-000000.tar", "train-000001.tar", "val-000000.tar"]
    assert not set(before.values()) & set(after.values())


def test_shards_of_others_are_never_touched(tmp_path: Path) -> None:
    theirs = tmp_path / "train-000000.tar"
    theirs.write_bytes(b"years of work")
    with pytest.raises(DataError, match="not synthetic"):
        ensure_synthetic_shards(tmp_path, **SMALL)
    assert theirs.read_bytes() == b"years of work"


def test_a_failure_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = gic.data.synthetic.synthetic_image

    def fail_at_the_end(index: int, **kwargs: object) -> Image.Image:
        if index > 1000:
            raise KeyboardInterrupt
        return real(index, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr(gic.data.synthetic, "synthetic_image", fail_at_the_end)
    with pytest.raises(KeyboardInterrupt):
        ensure_synthetic_shards(tmp_path, **SMALL)
    assert [path.name for path in tmp_path.iterdir()] == [".lock"]


def test_two_processes_at_once(tmp_path: Path, repository: Path) -> None:
    folder = tmp_path / "shared"
    code = (
        "import sys, pathlib, gic.data.synthetic as s\n"
        f"s.ensure_synthetic_shards(pathlib.Path({str(folder)!r}), **{SMALL!r})\n"
        f"assert len(list(pathlib.Path({str(folder)!r}).glob('*.tar'))) == 5\n"
    )
    processes = [subprocess.Popen([sys.executable, "-c", code], cwd=repository) for _ in range(2)]
    assert [process.wait() for process in processes] == [0, 0]
    ensure_synthetic_shards(tmp_path / "alone", **SMALL)
    assert digests(folder) == digests(tmp_path / "alone")
    assert not list(folder.glob(".unfinished-*"))


@pytest.mark.parametrize("counts", [{"train": 0}, {"val": 0}])
def test_empty_sets_are_refused(counts: dict[str, int], tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="at least one"):
        ensure_synthetic_shards(tmp_path, **{**SMALL, **counts})
