"""What a run says while it goes on: one count over the run, its remaining time, no warnings about itself."""

from __future__ import annotations

import re
import warnings

import pytest
import torch
from places import CONFIGS
from training_runs import callback_words, finish, start, tiny

from gic.commands.dispatch import run
from gic.training.cli import make_cli
from gic.training.module import keep_strides

BAR = ["--progress", "gic.training.progress.ProgressBar", "--trainer.enable_progress_bar", "true"]


def test_lines_count_steps_over_the_run_and_say_what_is_left(pictures, tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    words = [*tiny(pictures, "--trainer.max_steps", "6", "--data.batches_per_epoch", "2"), *BAR]
    make_cli([*words, "--checkpoint.dirpath", "ckpt", "--checkpoint.every_n_steps", "3"])
    out = capfd.readouterr().out
    assert re.findall(r"^step (\d+/\d+), \d+ min left", out, re.M) == [f"{n}/6" for n in range(1, 7)]
    assert "/-" not in out
    last = out[out.index("next:") :]
    assert "gic export ckpt/step-000006.ckpt" in last
    words[words.index("6")] = "9"
    make_cli([*words, "--checkpoint.dirpath", "ckpt", "--ckpt_path", "ckpt/step-000003.ckpt"])
    assert re.findall(r"^step (\d+/\d+), \d+ min left", capfd.readouterr().out, re.M) == [
        f"{n}/9" for n in range(4, 10)
    ]


def test_the_last_part_of_a_run_teaches_realism(pictures, tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    words = [*tiny(pictures, "--trainer.max_steps", "6"), *BAR]
    make_cli([*words, "--model.objective.init_args.realism", "[1.0]"])
    taught = re.findall(r"^step (\d)/6.* contrast", capfd.readouterr().out, re.M)
    assert taught == ["6"]  # the step that begins after 5 of 6 is the first beyond two thirds, 4 / 6 being below 0.667


def test_the_bar_counts_steps_over_the_run_after_resuming_too(pictures, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    words = tiny(pictures, "--trainer.max_steps", "5", "--data.batches_per_epoch", "2", *BAR)
    seen = []
    cli = make_cli([*words, "--checkpoint.dirpath", "ckpt"], run=False)
    bar = cli.trainer.progress_bar_callback
    monkeypatch.setattr(type(bar), "on_train_batch_end", _spied(type(bar).on_train_batch_end, seen))
    cli.trainer.fit(cli.model, cli.datamodule)
    assert seen == [("Training, steps", done, 5) for done in (1, 2, 3, 4, 5)]


def _spied(original, seen):
    def on_train_batch_end(self, *arguments):
        original(self, *arguments)
        task = self.train_progress_bar
        seen.append((re.sub(r"\[.*?\]", "", task.description).strip(), int(task.completed), int(task.total)))

    return on_train_batch_end


def test_validate_prints_its_values_once_and_no_warning_of_the_average(pictures, tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    make_cli([*tiny(pictures), *callback_words()])
    capfd.readouterr()
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*WeightAveraging.*")
        words = [*tiny(pictures, command="validate"), "--ema", "gic.training.ema.EMA", "--ckpt_path", "ckpt"]
        words[words.index("--trainer.limit_val_batches") + 1] = "3"
        assert run(words) == 0
    out = capfd.readouterr()
    assert "WeightAveraging" not in out.err
    assert out.out.count("bits per pixel") == 1
    assert "val/" not in out.out


def test_two_processes_give_no_warnings_about_themselves(pictures, tmp_path):
    # The strides of 1x1 convolutions; logging at the end of a validation.
    words = ["fit", "--config", str(CONFIGS / "base.yaml"), *tiny(pictures, "--trainer.devices", "2")[3:]]
    words += ["--trainer.strategy", "ddp", "--trainer.limit_val_batches", "1.0", "--trainer.max_steps", "2"]
    process = start(words, tmp_path)
    assert finish(process) == 0
    out = (tmp_path / "out").read_text()
    assert "sync_dist" not in out
    assert "strides" not in out


@pytest.mark.parametrize("shape", [(4, 3, 1, 1), (1, 5), (4, 1, 3, 3), (4, 3, 3, 3)])
def test_gradients_get_the_strides_of_their_parameter_and_keep_their_values(shape):
    parameter = torch.randn(shape)
    if len(shape) == 4:
        parameter = parameter.to(memory_format=torch.channels_last)
    parameter.requires_grad_()
    keep_strides(parameter)
    factor = torch.randn(shape)
    (parameter * factor).sum().backward()
    assert torch.equal(parameter.grad, factor)
    if 1 in shape:
        assert parameter.grad.stride() == parameter.stride()
