"""Whatever ends a run: it ends, and the last step that it made is saved and named."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from places import REPOSITORY, TESTS
from training_runs import DDP, INT, PATIENCE, TERM, callback_words, finish, losses, start, tiny, wait_for

from gic.commands.dispatch import run
from gic.training.cli import make_cli

RARE = {"every": 100, "keep": 2}
"""Checkpoints far apart: one that is there was made by the end of the run."""


def callback(name: str, **settings: object) -> str:
    return f"{{class_path: training_runs.{name}, init_args: {json.dumps(settings)}}}"


def saved(folder: Path = Path()) -> list[str]:
    return sorted(path.name for path in (folder / "ckpt").glob("step-*.ckpt"))


# Hangs


@pytest.mark.parametrize("images", [1, 3])
def test_ranks_with_fewer_validation_images_do_not_hang(pictures, tmp_path, images):
    words = [*tiny(pictures, *DDP[:2]), "--trainer.strategy", "ddp_fork", "--data.val_limit", str(images)]
    words += ["--trainer.limit_val_batches", "1.0", "--trainer.num_sanity_val_steps", "-1"]
    script = "import json, sys; from gic.training.cli import make_cli; make_cli(json.load(sys.stdin))"
    paths = os.pathsep.join([str(REPOSITORY), str(TESTS), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo", "PYTHONPATH": paths}
    done = subprocess.run(
        [sys.executable, "-c", script],
        input=json.dumps(words),
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    assert "sync_dist" not in done.stderr
    (report,) = tmp_path.rglob("val-000004.json")
    assert len({row["key"] for row in json.loads(report.read_text())["images"]}) == images


@pytest.mark.parametrize("number", [INT, TERM])
def test_a_second_signal_ends_a_run_that_hangs_in_a_library(pictures, tmp_path, number):
    process = start([*tiny(pictures), *callback_words(callback("HangsAt", step=2), **RARE)], tmp_path)
    wait_for(lambda: "hangs now" in (tmp_path / "out").read_text(), process)
    process.send_signal(number)
    time.sleep(0.2)
    process.send_signal(number)  # a scheduler may send one twice at once, which is not meant twice
    time.sleep(2.5)
    assert process.poll() is None
    process.send_signal(number)
    assert finish(process) == 128 + number
    assert "stopped at once" in (tmp_path / "out").read_text()


# The last step is saved


def test_ctrl_c_saves_and_says_how_to_go_on(pictures, tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    words = [*tiny(pictures, "--trainer.max_steps", "6", "--data.num_workers", "1")]
    before = signal.getsignal(INT)
    assert run([*words, *callback_words(callback("SignalAt", step=3, number=INT), **RARE)]) == 130
    assert signal.getsignal(INT) is before
    said = capfd.readouterr().err
    assert "Ctrl+C: saving after this step" in said
    assert "stopped by Ctrl+C after step 3; the same command with --ckpt_path ckpt goes on" in said
    assert "Traceback" not in said
    assert saved() == ["step-000003.ckpt"]
    assert run([*words, *callback_words(**RARE), "--ckpt_path", "ckpt"]) == 0
    assert [step for step, _ in losses(tmp_path)] == [1, 2, 3, 4, 5, 6]


@pytest.mark.parametrize("hook", ["on_train_batch_end", "on_validation_end", "on_train_epoch_end"])
def test_a_run_that_a_callback_ends_is_saved(pictures, tmp_path, monkeypatch, capfd, hook):
    monkeypatch.chdir(tmp_path)
    words = tiny(pictures, "--trainer.max_steps", "40", "--trainer.val_check_interval", "2")
    words[words.index("--trainer.limit_val_batches") + 1] = "1"
    make_cli([*words, *callback_words(callback("StopsAt", step=3, hook=hook), **RARE)])
    (name,) = saved()
    assert f"checkpoint: ckpt/{name}" in capfd.readouterr().out
    assert torch.load(Path("ckpt") / name, weights_only=True)["global_step"] == len(losses(tmp_path))


def test_early_stopping_saves(pictures, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    words = tiny(pictures, "--trainer.max_steps", "60", "--trainer.val_check_interval", "2")
    words[words.index("--trainer.limit_val_batches") + 1] = "1"
    settings = "{monitor: val/rd_loss, mode: max, patience: 1, min_delta: 1.0e+9}"
    stopping = f"{{class_path: lightning.pytorch.callbacks.EarlyStopping, init_args: {settings}}}"
    make_cli([*words, *callback_words(stopping, **RARE)])
    assert saved() == ["step-000004.ckpt"]


@pytest.mark.parametrize("validation", [False, True])
def test_a_run_that_an_error_ends_is_saved(pictures, tmp_path, monkeypatch, capfd, validation):
    monkeypatch.chdir(tmp_path)
    words = tiny(pictures, "--trainer.val_check_interval", "2", "--trainer.max_steps", "6")
    words[words.index("--trainer.limit_val_batches") + 1] = "1"
    with pytest.raises(ValueError, match="a reason of its own"):
        make_cli([*words, *callback_words(callback("FailsAt", step=3, validation=validation), **RARE)])
    assert saved() == ["step-000002.ckpt"]
    assert "checkpoint: ckpt/step-000002.ckpt" in capfd.readouterr().out
    resumed = make_cli([*words, *callback_words(**RARE), "--ckpt_path", "ckpt"])
    assert resumed.trainer.global_step == 6
    assert [step for step, _ in losses(tmp_path)] == [1, 2, 3, 4, 5, 6]


def test_an_error_on_one_of_two_ranks_is_saved(pictures, tmp_path):
    words = [*tiny(pictures, *DDP), *callback_words(callback("FailsAt", step=3), **RARE)]
    assert finish(start(words, tmp_path)) != 0
    assert saved(tmp_path) == ["step-000002.ckpt"]


def test_a_failure_before_the_first_step_saves_nothing(pictures, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match="a reason of its own"):
        make_cli([*tiny(pictures), *callback_words(callback("FailsAt", step=1), **RARE)])
    assert saved() == []


# A full disk


@pytest.mark.parametrize("kilobytes", [4, 64])  # too little for the first event, and for a checkpoint
@pytest.mark.parametrize("logger", ["TensorBoardLogger", "CSVLogger"])
def test_a_disk_that_is_full_ends_a_run_in_one_line(pictures, tmp_path, logger, kilobytes):
    if subprocess.run(["unshare", "-m", "mount", "-t", "tmpfs", "tmpfs", tmp_path], capture_output=True).returncode:
        pytest.skip("this user may not mount a small disk")
    folder = tmp_path / "runs"
    folder.mkdir()
    words = tiny(pictures, "--checkpoint.every_n_steps", "100")
    words[words.index("--trainer.limit_val_batches") + 1] = "1"
    words += ["--trainer.logger", f"{{class_path: {logger}, init_args: {{save_dir: runs, name: small}}}}"]
    mount = f'mount -t tmpfs -o size={kilobytes}k tmpfs runs && exec "$@"'
    done = subprocess.run(
        ["unshare", "-m", "sh", "-c", mount, "sh", sys.executable, "-m", "gic", *words],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(REPOSITORY), os.environ.get("PYTHONPATH", "")])},
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("gic fit: ")]
    assert "no space left on device" in line.lower()
    assert "make room" in line
    assert "None" not in line


def test_a_report_that_cannot_be_written_does_not_end_a_run(pictures, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    words = tiny(pictures, "--trainer.val_check_interval", "2")
    words[words.index("--trainer.limit_val_batches") + 1] = "1"

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device", "results")

    monkeypatch.setattr("gic.training.module.save_json", full)
    with pytest.warns(UserWarning, match="could not be written, training goes on: results: no space left"):
        assert make_cli(words).trainer.global_step == 4
    with pytest.raises(OSError, match="No space left"):
        make_cli(["validate", *words[1:]])
