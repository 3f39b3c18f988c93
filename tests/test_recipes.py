"""The recipe of the weights that ship: by the clock, however often it is interrupted."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from places import REPOSITORY, TESTS
from training_runs import PATIENCE, wait_for

from gic.codec.checkpoints import load_codec
from gic.data.synthetic import ensure_synthetic_shards

RECIPE = REPOSITORY / "recipes" / "small.sh"
TINY = ["--config", str(TESTS / "tiny_codec.yaml"), "--trainer.accelerator", "cpu", "--model.metrics", "[psnr]"]
# LPIPS needs weights that are not at hand everywhere; a term of our own stands in for it.
TINY += ["--model.objective.init_args.terms", "{coarse: {class_path: terms.CoarseDistance}}"]
TINY += ["--model.codec.init_args.compressor.init_args.realistic_stages", "1"]
TINY += ["--model.codec.init_args.reverse.init_args.realistic", "true"]
TINY += ["--data.crop_size", "64", "--data.num_workers", "0", "--data.shuffle_buffer", "8"]


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    ensure_synthetic_shards(tmp_path / "shards", train=12, val=3, size=(384, 384), progress=False)
    return tmp_path / "shards"


def begin(minutes: str, shards: Path, out: Path, **environment: str) -> subprocess.Popen[str]:
    """Start the recipe for a codec of a few thousand weights, in a process group of its own."""
    paths = os.pathsep.join([str(REPOSITORY), str(TESTS), os.environ.get("PYTHONPATH", "")])
    variables = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": paths, "GIC_PYTHON": sys.executable, **environment}
    words = ["bash", str(RECIPE), minutes, str(shards), str(out), *TINY]
    return subprocess.Popen(
        words,
        env=variables,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
        # Whoever runs the tests in the background ignores SIGINT, and a shell that begins so never hears it.
        preexec_fn=partial(signal.signal, signal.SIGINT, signal.SIG_DFL),
    )


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "usage"),
        (["ten", "shards", "out"], "number from 1"),
        (["08", "shards", "out"], "number from 1"),
        (["1", "nowhere", "out"], "no folder nowhere"),
        (["1", ".", "out"], "no train-"),
    ],
)
def test_what_the_recipe_needs_is_named(words: list[str], said: str, tmp_path: Path) -> None:
    done = subprocess.run(["bash", str(RECIPE), *words], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 2
    assert said in done.stderr and "\n" not in done.stderr.strip()
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("words", "said"), [([], "usage"), ([".", "quickly"], "usage"), (["."], "no kodim24.png in .")]
)
def test_what_measuring_needs_is_named(words: list[str], said: str, tmp_path: Path) -> None:
    script = REPOSITORY / "recipes" / "measure.sh"
    done = subprocess.run(["bash", str(script), *words], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 2
    assert said in done.stderr and "\n" not in done.stderr.strip()


def test_every_script_that_is_measured_is_there() -> None:
    text = (REPOSITORY / "recipes" / "measure.sh").read_text()
    names = re.findall(r"^ +measure (\w+) ", text, re.M)
    assert len(names) > 8 and all((REPOSITORY / "benchmarks" / f"{name}.py").is_file() for name in names)


def test_a_folder_with_something_else_is_left_alone(shards: Path, tmp_path: Path) -> None:
    for name, text, said in (
        ("thesis.txt", "precious", "other files"),
        ("run.txt", "9 minutes from nothing\n", "9 min"),
    ):
        out = tmp_path / name.partition(".")[0]
        out.mkdir()
        (out / name).write_text(text)
        process = begin("1", shards, out, INIT="none")
        assert said in process.communicate(timeout=PATIENCE)[0]
        assert process.returncode == 2
        assert (out / name).read_text() == text and {path.name for path in out.iterdir()} <= {name, ".lock"}


def test_a_discriminator_is_asked_for_with_yes_or_no(shards: Path, tmp_path: Path) -> None:
    process = begin("1", shards, tmp_path / "out", ADVERSARIAL="maybe")
    assert "ADVERSARIAL is yes or no, not 'maybe'" in process.communicate(timeout=PATIENCE)[0]
    assert process.returncode == 2 and not (tmp_path / "out").exists()


@pytest.mark.slow
def test_an_interrupted_recipe_ends_the_same_way(shards: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"

    def saved(stage: str) -> list[Path]:
        return list((out / stage / "checkpoints").glob("step-*.ckpt"))

    def steps(stage: str) -> int:
        return max((int(path.stem.removeprefix("step-")) for path in saved(stage)), default=0)

    again = partial(begin, "2", shards, out, INIT="none", ADVERSARIAL="yes")
    process = again()
    wait_for(lambda: "s of training" in log(out / "3-joint"), process)
    time.sleep(3)
    assert again().wait(PATIENCE) == 2  # no two at work in one folder
    os.killpg(process.pid, signal.SIGINT)  # as Ctrl+C does it
    said = process.communicate(timeout=PATIENCE)[0]
    assert process.returncode == 75, said
    assert "the same command goes on" in said
    first = steps("3-joint")
    assert first > 0 and not (out / "3-joint" / "done").exists()

    process = again()
    wait_for(lambda: (out / "3-joint" / "done").exists(), process)
    assert steps("3-joint") > first
    wait_for(lambda: "s of training" in log(out / "4-adversarial"), process)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait(PATIENCE)

    process = again()
    said = process.communicate(timeout=PATIENCE)[0]
    assert process.returncode == 0, said
    assert "== 3-joint" not in said
    assert "bits per" in said.rpartition("from the first validation to the last")[2]
    codec = load_codec(out / "small.safetensors")
    assert codec.compressor.latent_channels == 8
    assert not [name for name, _ in codec.named_parameters() if "adversarial" in name]
    report: Any = json.loads(next((out / "4-adversarial" / "results").glob("val-*.json")).read_text())
    assert len({row["key"] for row in report["images"]}) == 2
    last = torch.load(out / "4-adversarial" / "checkpoints" / "last.ckpt", weights_only=True)
    assert last["adversarial"]
    # From its weights the recipe without a discriminator: all of it learns.
    process = begin("1", shards, tmp_path / "more", INIT=str(out / "small.safetensors"))
    said = process.communicate(timeout=PATIENCE)[0]
    assert process.returncode == 0, said
    assert "== 3-joint: 60 s" in said
    more = load_codec(tmp_path / "more" / "small.safetensors")
    changed = {
        name
        for (name, old), new in zip(codec.named_parameters(), more.parameters(), strict=True)
        if not torch.equal(old, new)
    }
    for part in ("compressor.g_a", "compressor.g_s", "compressor.h_s", "reverse"):
        assert any(name.startswith(part) for name in changed), part


def log(folder: Path) -> str:
    path = folder / "log.txt"
    return path.read_text(errors="replace") if path.exists() else ""
