"""What goes wrong before the first step is one line that says where and what to do, and leaves nothing behind."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from places import CONFIGS, REPOSITORY, TESTS
from training_runs import tiny

from gic.commands.dispatch import run
from gic.configs import expand_configs, explained
from gic.data.synthetic import ensure_synthetic_shards
from gic.training.cli import make_cli

LOGGER = ["--trainer.logger", "{class_path: TensorBoardLogger, init_args: {save_dir: runs, name: tiny}}"]
SHIPPED = str(next((REPOSITORY / "gic" / "weights").glob("*.safetensors")))


def said(words: list[str], capfd: pytest.CaptureFixture[str]) -> str:
    """What a run prints that must fail with a plain message."""
    capfd.readouterr()
    try:
        code = run(words)
    except SystemExit as stop:  # of the parser
        code = stop.code
    assert code == 2
    text = capfd.readouterr().err
    assert "Traceback" not in text
    return text


@pytest.mark.parametrize(
    ("more", "text"),
    [
        (["--trainer.precision", "bf16-mixed"], r"--model.autocast bfloat16"),
        (["--trainer.precision", "bf16-true"], r"--model.autocast bfloat16"),
        (["--trainer.precision", "64-true"], r"--model.autocast bfloat16"),
        (["--model.init_from", SHIPPED], "holds a codec of another architecture than model.codec (compressor."),
        (["--model.init_from", "nowhere.ckpt"], "no checkpoint nowhere.ckpt"),
        (["--ckpt_path", SHIPPED], f"--model.init_from {SHIPPED} begins a new run with these weights"),
        (["--data.train", "nowhere"], "there is no file or folder nowhere"),
        (["--data.val", "nowhere"], "there is no file or folder nowhere"),
        (["--data.crop_size", "40"], "crop_size must be a multiple of 64"),
    ],
)
@pytest.mark.parametrize("logger", [LOGGER, []])
def test_a_failed_start_is_one_line_and_leaves_no_folder(pictures, tmp_path, monkeypatch, capfd, more, text, logger):
    monkeypatch.chdir(tmp_path)
    message = said([*tiny(pictures), *logger, *more], capfd)
    (line,) = [line for line in message.splitlines() if line.startswith("gic fit: ")]
    assert text in line
    assert len(line) < 500
    assert list(tmp_path.rglob("version_*")) == []
    make_cli([*tiny(pictures), *logger])
    assert [path.name for path in tmp_path.rglob("version_*")] == ["version_0"]


def test_a_folder_that_was_there_is_never_removed(pictures, tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    logger = [*LOGGER[:1], LOGGER[1].replace("name: tiny", "name: tiny, version: mine")]
    folder = tmp_path / "runs" / "tiny" / "mine"
    folder.mkdir(parents=True)
    (folder / "hparams.yaml").write_text("{}")
    said([*tiny(pictures), *logger, "--model.init_from", "nowhere.ckpt"], capfd)
    assert (folder / "hparams.yaml").exists()


def test_data_are_looked_for_before_synthetic_pictures_are_made(tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("gic.data.module.ensure_synthetic_shards", lambda *_, **__: pytest.fail("pictures are made"))
    words = ["--config", str(CONFIGS / "base.yaml"), "--config", str(TESTS / "tiny.yaml"), "--data.train", "nowhere"]
    assert "there is no file or folder nowhere" in said(["fit", *words], capfd)


def test_a_folder_of_pictures_is_data(tmp_path, monkeypatch):
    ensure_synthetic_shards(tmp_path / "shards", train=4, val=3, size=(128, 128), progress=False)
    import tarfile

    for archive in (tmp_path / "shards").glob("*.tar"):
        with tarfile.open(archive) as file:
            file.extractall(tmp_path / "pictures" / archive.stem, filter="data")
    monkeypatch.chdir(tmp_path)
    cli = make_cli([*tiny(tmp_path / "shards"), "--data.train", "pictures", "--data.val", "pictures"])
    assert cli.trainer.global_step == 4


# Mistyped names


def test_a_mistyped_key_is_named_with_its_file_its_path_and_the_name_meant(pictures, tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    Path("mine.yaml").write_text("model: {codec: {init_args: {q_mni: 1.0}}}\n")
    where = "model.codec.init_args.q_mni in mine.yaml; did you mean q_min?"
    assert where in said([*tiny(pictures), "--config", "mine.yaml"], capfd)
    Path("child.yaml").write_text("extends: mine.yaml\n")
    assert where in said([*tiny(pictures), "--config", "child.yaml"], capfd)
    Path("mine.yaml").write_text(
        f"extends: {CONFIGS / 'photos.yaml'}\nmodel: {{codec: {{init_args: {{q_mni: 1.0}}}}}}\n"
    )
    assert where in said(["fit", "--config", "mine.yaml"], capfd)


def test_a_mistyped_section_and_a_wrong_parent_are_named(pictures, tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    for text, where in (
        ("model: {optimiser: {init_args: {lr: 1.0e-3}}}", "model.optimiser in mine.yaml; did you mean optimizer?"),
        ("trainer: {max_stepz: 3}", "trainer.max_stepz in mine.yaml; did you mean max_steps?"),
    ):
        Path("mine.yaml").write_text(text)
        assert where in said([*tiny(pictures), "--config", "mine.yaml"], capfd)
    Path("mine.yaml").write_text("extends: nowhere.yaml\n")
    assert "nowhere.yaml cannot be read: No such file or directory (" in said(["fit", "--config", "mine.yaml"], capfd)
    assert "no config is given: --config configs/base.yaml" in said(["fit"], capfd)


@pytest.mark.parametrize(
    ("word", "meant"),
    [("--model.q_mni", "q_min"), ("--trainer.max_st", "max_steps"), ("--data.crop_sise", "crop_size")],
)
def test_a_mistyped_option_is_refused_with_the_name_meant(pictures, tmp_path, monkeypatch, capfd, word, meant):
    monkeypatch.chdir(tmp_path)
    assert f"{word} on the command line; did you mean {meant}?" in said([*tiny(pictures), word, "64"], capfd)


def test_a_key_without_a_similar_name_has_no_advice():
    assert explained("xyzzy", expand_configs(["--model.xyzzy", "1"])) == ": --model.xyzzy on the command line"


# SLURM's variables without srun


@pytest.mark.parametrize("step", [None, "4294967290", "4294967291"])
@pytest.mark.parametrize("command", ["fit", "validate"])
def test_an_allocation_without_srun_runs_here(pictures, tmp_path, command, step):
    words = [sys.executable, "-m", "gic", *tiny(pictures, command=command)]
    words[words.index("--trainer.limit_val_batches") + 1] = "1"
    slurm = {
        "SLURM_NTASKS": "4",
        "SLURM_JOB_ID": "7",
        "SLURM_JOB_NAME": "mine",
        "SLURM_PROCID": "0",
        "SLURM_NNODES": "2",
    }
    slurm |= {} if step is None else {"SLURM_STEP_ID": step}
    paths = os.pathsep.join([str(REPOSITORY), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "PYTHONPATH": paths, **slurm}
    done = subprocess.run(words, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("srun has not started this: running on this machine alone") == 1


def test_a_step_of_srun_is_left_to_lightning(monkeypatch):
    from lightning.fabric.plugins.environments import SLURMEnvironment

    from gic.devices import alone_without_srun

    for name, value in {"SLURM_NTASKS": "4", "SLURM_JOB_NAME": "mine", "SLURM_STEP_ID": "0"}.items():
        monkeypatch.setenv(name, value)
    alone_without_srun()
    assert SLURMEnvironment.detect()
    monkeypatch.delenv("SLURM_STEP_ID")
    alone_without_srun()
    assert not SLURMEnvironment.detect()
