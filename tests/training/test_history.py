"""The picture of a run's rate against the step."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image

from gic.errors import ConfigError
from gic.training.evaluation import BEFORE, LevelResult, save_json
from gic.training.history import draw_history, read_history


def validation(folder: Path, step: int, name: str | None = None, psnr: float | None = 30.0) -> None:
    means = [LevelResult("mean", q, r, (2 - step / 1000) / q, {"psnr": psnr}) for q in (1.0, 8.0) for r in (0.0, 1.0)]
    save_json(folder / (name or f"val-{step:06d}.json"), means, means, {"step": step})


def test_validations_come_by_step_with_the_one_before_the_first(tmp_path):
    for step in (300, 20, 100):
        validation(tmp_path, step)
    validation(tmp_path, 0, BEFORE)
    assert [each.step for each in read_history(tmp_path)] == [0, 20, 100, 300]


def test_a_later_validation_changes_the_picture(tmp_path):
    picture = tmp_path / "rate.png"
    validation(tmp_path, 100)
    assert not draw_history(tmp_path, picture)
    assert not picture.exists()
    validation(tmp_path, 200)
    assert draw_history(tmp_path, picture)
    first = Image.open(picture).convert("L").tobytes()
    validation(tmp_path, 300, psnr=None)
    assert draw_history(tmp_path, picture)
    assert Image.open(picture).convert("L").tobytes() != first


def test_another_file_is_named(tmp_path):
    (tmp_path / "val-000001.json").write_text(json.dumps({"mean": [{}], "step": 1}))
    with pytest.raises(ConfigError, match=r"val-000001\.json is no file of validation results"):
        read_history(tmp_path)
