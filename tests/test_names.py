"""What earlier versions wrote goes on working: their names of classes in weights, checkpoints and configs."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import pytest
import torch
from places import CONFIGS, TESTS
from safetensors import safe_open

from gic.codec.checkpoints import load_codec
from gic.commands.dispatch import run
from gic.configs import expand_configs
from gic.names import OLD_NAMES, current

OLD_CONFIG = """
trainer:
  callbacks:
    - class_path: gic.training.EMA
      init_args: {decay: 0.25}
    - class_path: gic.training.Checkpoint
      init_args: {dirpath: ckpt, every_n_steps: 2, keep: 2}
    - class_path: gic.preemption.Preemption
  limit_val_batches: 0
model:
  codec:
    class_path: gic.model.Codec
    init_args:
      compressor:
        class_path: gic.compressor.Compressor
        init_args:
          {widths: [8, 8, 8, 8], blocks: [0, 0, 0, 1], latent_channels: 8, hyper_channels: 4, lapped: false,
           hyper_activity: false}
      reverse:
        class_path: gic.reverse.ReverseUNet
        init_args: {latent_channels: 8, widths: [8], blocks: [1]}
  objective:
    class_path: gic.losses.Objective
    init_args: {lambda_0: 100.0}
  schedule:
    class_path: gic.training.WarmupCosine
    init_args: {warmup_steps: 1}
"""


@pytest.mark.parametrize("name", OLD_NAMES.values())
def test_every_name_of_today_is_a_class(name: str) -> None:
    module, _, last = name.rpartition(".")
    assert isinstance(getattr(importlib.import_module(module), last), type)


def test_no_name_is_both_old_and_of_today() -> None:
    assert not set(OLD_NAMES) & set(OLD_NAMES.values())


def test_weights_that_ship_name_the_classes_of_their_time() -> None:
    path = TESTS.parent / "weights" / "small-0.4.safetensors"
    with safe_open(path, framework="pt") as file:
        about = file.metadata()["gic"]
    assert "gic.model.Codec" in about and "gic.models" not in about
    assert type(load_codec(path).compressor).__name__ == "ResidualCompressor"


def older(value: Any) -> Any:
    """A tree with the old names in the place of today's."""
    before = {new: old for old, new in OLD_NAMES.items()}
    if isinstance(value, dict):
        return {k: before.get(v, v) if k == "class_path" else older(v) for k, v in value.items()}
    return [older(each) for each in value] if isinstance(value, (list, tuple)) else value


def test_an_old_config_trains_and_an_old_checkpoint_goes_on(
    pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("old.yaml").write_text(OLD_CONFIG)
    configs = (CONFIGS / "base.yaml", TESTS / "tiny.yaml", Path("old.yaml"))
    data = ["--data.train", str(pictures / "train-*.tar"), "--data.val", str(pictures / "val-000000.tar")]
    words = [*(word for path in configs for word in ("--config", str(path))), *data]
    assert run(["fit", *words, "--trainer.max_steps", "2"]) == 0
    assert {path.name for path in Path("ckpt").iterdir()} == {"step-000002.ckpt", "last.ckpt"}
    checkpoint = torch.load("ckpt/last.ckpt", weights_only=True)
    assert "EMA" in checkpoint["callbacks"]  # the list of the config held, with its decay
    settings = checkpoint["hyper_parameters"]
    checkpoint["hyper_parameters"] = {**settings, **older({name: settings[name] for name in ("codec", "objective")})}
    assert checkpoint["hyper_parameters"]["codec"]["class_path"] == "gic.model.Codec"
    torch.save(checkpoint, "ckpt/step-000002.ckpt")
    assert run(["fit", *words, "--trainer.max_steps", "4", "--ckpt_path", "ckpt"]) == 0
    assert Path("ckpt/step-000004.ckpt").exists()
    torch.save(checkpoint, "old.ckpt")
    assert run(["export", "old.ckpt", "-o", "w.safetensors"]) == 0
    assert run(["validate", *words, "--ckpt_path", "old.ckpt", "--trainer.limit_val_batches", "1"]) == 0


def test_names_on_the_command_line_are_brought_up_to_date() -> None:
    words = [
        "fit",
        "--trainer.callbacks=gic.training.EMA",
        "--trainer.callbacks",
        "gic.training.EMA",
        "--data.train=a=b",
    ]
    assert expand_configs(words) == [
        "fit",
        "--trainer.callbacks=gic.training.ema.EMA",
        "--trainer.callbacks",
        "gic.training.ema.EMA",
        "--data.train=a=b",
    ]


def test_only_class_paths_are_renamed() -> None:
    tree = {"class_path": "gic.model.Codec", "note": "gic.model.Codec", "list": [{"class_path": "other.Thing"}]}
    assert current(tree) == {**tree, "class_path": "gic.models.codec.Codec"}
