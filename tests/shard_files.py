"""Shards of drawn pictures, the stream of training over them, and the keys that it should and does yield."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from gic.data.stream import TrainStream

CROP = 16


def picture(number: int, size: tuple[int, int] = (24, 20)) -> Image.Image:
    """Width and height; noise, different for each number."""
    values = np.random.default_rng(number).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    return Image.fromarray(values)


def encoded(image: Image.Image, image_format: str = "PNG") -> bytes:
    file = io.BytesIO()
    image.save(file, image_format)
    return file.getvalue()


def write_tar(path: Path, members: Iterable[tuple[str, bytes]]) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return str(path)


def write_shards(folder: Path, counts: Sequence[int]) -> list[str]:
    """Shards of so many pictures each, named s0-000 and so on, each beside a text file."""
    shards = []
    for shard, count in enumerate(counts):
        members: list[tuple[str, bytes]] = []
        for index in range(count):
            members.append((f"s{shard}-{index:03}.txt", b"a caption"))
            members.append((f"s{shard}-{index:03}.png", encoded(picture(1000 * shard + index))))
        shards.append(write_tar(folder / f"train-{shard:06}.tar", members))
    return shards


def stream(shards: Sequence[str], **settings: Any) -> TrainStream:
    defaults = {"crop_size": CROP, "batch_size": 2, "batches_per_epoch": 6, "shuffle_buffer": 4}
    return TrainStream(shards, **{**defaults, **settings})


def keys(batches: Iterable[Any]) -> list[str]:
    return [key for batch in batches for key in batch["key"]]


def every_key(counts: Sequence[int]) -> list[str]:
    return [f"s{shard}-{index:03}" for shard, count in enumerate(counts) for index in range(count)]
