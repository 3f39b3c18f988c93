"""Small shared memory, as in a container with 64 MB of it: every image arrives, and one line says what is slow."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from places import REPOSITORY
from torch.utils.data import IterableDataset

from gic.data import module
from gic.data.module import Workers
from gic.data.stream import EvalImages
from gic.errors import DataError

pytestmark = pytest.mark.filterwarnings("ignore:This DataLoader will create")

SIZE_MB = 1
SCRIPT = f"""
import subprocess, sys
subprocess.run(["mount", "-t", "tmpfs", "-o", "size={SIZE_MB}m", "tmpfs", "/dev/shm"], check=True)
import torch
from gic.data.module import Workers
from gic.data.stream import EvalImages
items = list(Workers(EvalImages(sys.argv[1]), num_workers=2))
torch.save([(item["key"], item["image"]) for item in items], sys.argv[2])
"""


def test_images_larger_than_the_shared_memory_arrive(tmp_path):
    if subprocess.run(["unshare", "-m", "mount", "-t", "tmpfs", "tmpfs", "/dev/shm"], capture_output=True).returncode:
        pytest.skip("this user may not mount another /dev/shm")
    from PIL import Image

    for i in range(5):
        Image.effect_noise((700, 600), 30 + i).convert("RGB").save(tmp_path / f"{i}.png")
    done = subprocess.run(
        ["unshare", "-m", sys.executable, "-c", SCRIPT, str(tmp_path), str(tmp_path / "out.pt")],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr
    came = torch.load(tmp_path / "out.pt", weights_only=True)
    wanted = {item["key"]: item["image"] for item in EvalImages(str(tmp_path))}
    assert sorted(key for key, _ in came) == sorted(wanted)
    assert all(torch.equal(image, wanted[key]) for key, image in came)
    assert done.stderr.count("/dev/shm has only") == 1
    assert "--shm-size" in done.stderr


class Crops(IterableDataset[dict[str, object]]):
    def __iter__(self):
        for i in range(6):
            yield {"image": torch.full((2, 3, 8, 8), i, dtype=torch.uint8), "key": [str(i)]}


@pytest.mark.parametrize("workers", [0, 1, 3])
def test_all_items_come_with_room_and_without(monkeypatch, workers):
    def values() -> list[int]:
        return sorted(int(item["image"][0, 0, 0, 0]) for item in Workers(Crops(), num_workers=workers))

    whole = values()
    full = type("Usage", (), {"free": 0})()
    monkeypatch.setattr(module.shutil, "disk_usage", lambda path: full)
    if workers:
        with pytest.warns(UserWarning, match="/dev/shm has only 0.0 MB free: images come through pipes"):
            assert values() == whole
    else:
        assert values() == whole
    assert len(whole) == 6 * max(1, workers)


def test_a_lost_image_is_an_error(monkeypatch):
    received = Workers._received
    monkeypatch.setattr(Workers, "_received", lambda self, items: received(self, (x for i, x in enumerate(items) if i)))
    with pytest.raises(DataError, match=r"1 of 6 images were lost .*dev.shm.*--data.num_workers 0"):
        list(Workers(Crops(), num_workers=1))
