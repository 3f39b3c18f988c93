"""Checkpoints at URLs: copied as they come, fetched by a run that goes on elsewhere."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import pytest
from training_runs import losses, tiny

from gic.commands.dispatch import run
from gic.errors import ConfigError
from gic.training.checkpoint import Checkpoint
from gic.training.resume import named_checkpoint, newest_at
from gic.training.storage import checkpoints_at, copy_to, fetched

URL = "memory://bucket/run"


@pytest.fixture
def bucket(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """An object store in this process, empty; the machine's temporary folder is the test's own."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    store = fsspec.filesystem("memory")
    store.store.clear()
    yield store
    store.store.clear()


def names(bucket: Any) -> list[str]:
    return sorted(path.rsplit("/", 1)[-1] for path in bucket.find("/bucket"))


def words(pictures: Path, *more: str) -> list[str]:
    saving = ["--checkpoint.every_n_steps", "2", "--checkpoint.keep", "1", "--checkpoint.mirror", URL]
    saving += ["--model.objective.init_args.realism_from", "0.0"]  # a share of max_steps, which the runs change
    return tiny(pictures, *saving, "--trainer.callbacks", "[{class_path: training_runs.Losses}]", *more)


def test_a_run_goes_on_from_its_copy_on_another_machine(bucket, pictures, tmp_path, monkeypatch) -> None:
    for name in ("whole", "first", "second", "third"):
        (tmp_path / name).mkdir()
    monkeypatch.chdir(tmp_path / "whole")
    assert run(words(pictures, "--trainer.max_steps", "6")) == 0
    bucket.store.clear()
    monkeypatch.chdir(tmp_path / "first")
    assert run(words(pictures, "--trainer.max_steps", "4")) == 0
    assert names(bucket) == ["step-000004.ckpt"]  # one is kept there as here
    monkeypatch.chdir(tmp_path / "second")
    assert run(words(pictures, "--trainer.max_steps", "6", "--ckpt_path", URL)) == 0
    assert losses(Path())[-2:] == losses(tmp_path / "whole")[-2:]
    monkeypatch.chdir(tmp_path / "third")
    auto = ["--ckpt_path", "auto", "--checkpoint.dirpath", "ckpt"]
    assert run(words(pictures, "--trainer.max_steps", "8", *auto)) == 0
    assert [step for step, _ in losses(Path())] == [7, 8]


def test_the_newest_that_is_whole_is_taken(bucket, pictures, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert run(words(pictures, "--trainer.max_steps", "2")) == 0
    bucket.pipe("/bucket/run/step-000009.ckpt", b"cut short")
    with pytest.warns(UserWarning, match=r"step-000009\.ckpt is damaged"):
        assert named_checkpoint(URL).name == "step-000002.ckpt"
    assert named_checkpoint(f"{URL}/step-000002.ckpt").name == "step-000002.ckpt"
    bucket.rm("/bucket/run/step-000002.ckpt")
    with pytest.warns(UserWarning), pytest.raises(ConfigError, match=r"every checkpoint at .*run is damaged"):
        newest_at(URL)


def test_the_newest_is_that_of_the_largest_step_however_many_digits_it_has(bucket) -> None:
    for name in ("step-999999.ckpt", "step-1000000.ckpt", "step-000100.ckpt", "last.ckpt", "notes.txt"):
        bucket.pipe(f"/bucket/run/{name}", b"a")
    names_found = [url.rsplit("/", 1)[-1] for url in checkpoints_at(URL)]
    assert names_found == ["step-1000000.ckpt", "step-999999.ckpt", "step-000100.ckpt", "last.ckpt"]


def test_where_there_is_none(bucket) -> None:
    assert newest_at(URL) is None and checkpoints_at(URL) == []
    with pytest.raises(ConfigError, match="there is no checkpoint"):
        named_checkpoint(URL)
    with pytest.raises(ConfigError, match="cannot be reached"):
        fetched(f"{URL}/step-000001.ckpt")


def test_a_fetched_file_has_one_place_for_all_ranks_and_the_last_content(bucket) -> None:
    bucket.pipe("/bucket/run/step-000001.ckpt", b"first")
    first = fetched(f"{URL}/step-000001.ckpt")
    assert first.read_bytes() == b"first"
    bucket.pipe("/bucket/run/step-000001.ckpt", b"second")
    assert fetched(f"{URL}/step-000001.ckpt") == first and first.read_bytes() == b"second"
    assert [path.name for path in first.parent.iterdir()] == ["step-000001.ckpt"]


@pytest.mark.parametrize(("url", "said"), [("nowhere://bucket", "nowhere"), ("s3://bucket/run", "s3fs")])
def test_what_is_missing_for_a_url_is_said(url: str, said: str, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "s3fs", None)
    (tmp_path / "a.ckpt").write_bytes(b"a")
    with pytest.raises(ConfigError, match=said):
        copy_to(url, tmp_path / "a.ckpt")


def test_a_copy_that_fails_ends_no_run(bucket, pictures, tmp_path, monkeypatch, recwarn) -> None:
    monkeypatch.chdir(tmp_path)
    saving = ["--checkpoint.every_n_steps", "2", "--checkpoint.mirror", "nowhere://bucket"]
    assert run(tiny(pictures, *saving, "--checkpoint.dirpath", "ckpt", "--trainer.max_steps", "2")) == 0
    assert Path("ckpt/step-000002.ckpt").is_file()
    assert any("has no copy" in str(each.message) for each in recwarn)


def test_a_mirror_is_a_url() -> None:
    with pytest.raises(ConfigError, match="must be a URL"):
        Checkpoint(mirror="folder")
