"""Fixtures that several test files share."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from places import REPOSITORY

from gic.bitstream import rans

# Tests are small: one thread each is fastest, and leaves the other cores to whoever else is at work.
torch.set_num_threads(int(os.environ.get("GIC_TEST_THREADS", "1")))
os.environ.setdefault("OMP_NUM_THREADS", os.environ.get("GIC_TEST_THREADS", "1"))


@pytest.fixture(scope="session")
def repository() -> Path:
    """Root of the checkout."""
    return REPOSITORY


@pytest.fixture(scope="session")
def shared() -> Path:
    """Folder with test pictures and metric weights: the environment variable GIC_SHARED, or ../shared."""
    path = Path(os.environ.get("GIC_SHARED", REPOSITORY.parent / "shared"))
    if not path.is_dir():
        pytest.skip(f"no folder {path} (set GIC_SHARED): pictures and metric weights are not at hand")
    return path


@pytest.fixture(scope="session")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with a few small drawn pictures as shards, for runs: train-*.tar and val-000000.tar."""
    from gic.data.synthetic import ensure_synthetic_shards

    folder = tmp_path_factory.mktemp("pictures")
    ensure_synthetic_shards(folder, train=12, val=3, size=(192, 192), progress=False)
    return folder


@pytest.fixture(params=["C", "Python"])
def loops(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both kinds of inner loops in turn."""
    if request.param == "Python":
        monkeypatch.setattr("gic.loops.library", None)
    elif not rans.COMPILED:
        pytest.skip("this installation has no compiled loops")
