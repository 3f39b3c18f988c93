"""``gic test`` from its command line: one command, everything written, errors for the person at the terminal."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import numpy as np
import pytest
from metric_files import isolate
from PIL import Image
from small import CONFIG, array, picture, small_model

from gic.benchmark.results import load_results
from gic.codec.checkpoints import save_weights
from gic.commands.dispatch import run
from gic.errors import install_command

SETTINGS = """
codecs:
  - class_path: gic.benchmark.codecs.Gic
    init_args:
      q: [1.0, 2.0, 4.0, 6.0]
      decodings: [{realism: 0.0}, {realism: 1.0, sampler: euler, steps: 1}]
baselines:
  - class_path: gic.benchmark.picture_codecs.Jpeg
    init_args: {qualities: [10, 30, 60, 90]}
metrics: [psnr, ms_ssim]
anchor: jpeg
report_images: 2
output: out
data: pictures
"""


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A folder with weights, pictures and a config."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("GIC_CHECKPOINT", raising=False)
    save_weights("weights.safetensors", small_model().state_dict(), CONFIG)
    (tmp_path / "pictures").mkdir()
    for number, (width, height) in enumerate([(96, 64), (80, 112), (65, 70)]):
        Image.fromarray(array(picture(width, height, "edges", number))).save(f"pictures/p{number}.png")
    (tmp_path / "test.yaml").write_text(SETTINGS)
    return tmp_path


def command(*words):
    return run(["test", "--config", "test.yaml", "--ckpt_path", "weights.safetensors", "--accelerator", "cpu", *words])


def values(folder):
    """Sizes and metrics of all points; times are left out."""
    results = load_results(folder / "results.json")
    return {
        (curve.name, point.setting, name): point.mean(name)
        for curve in results.curves
        for point in curve.points
        for name in ("bytes", "bits_per_pixel", *results.metrics)
    }


def test_one_command_leaves_results_curves_and_a_report(place, capsys):
    assert command() == 0
    out = place / "out"
    results = load_results(out / "results.json")
    assert [curve.name for curve in results.curves] == ["gic r=0", "gic r=1, euler, 1 step", "jpeg"]
    assert [image["key"] for image in results.images] == ["p0.png", "p1.png", "p2.png"]
    assert results.about["command"].startswith("gic test --config test.yaml")
    for curve in results.curves:
        sizes = [point.mean("bytes") for point in curve.points]
        assert sizes == sorted(sizes)
    assert (out / "results.csv").read_text().count("\n") == 1 + 12
    assert (out / "curves" / "psnr.png").stat().st_size > 1000
    assert "<svg" in (out / "curves" / "psnr.svg").read_text()
    assert "p1.png" in (out / "report.html").read_text()
    assert list((out / "tensorboard").iterdir())
    rows = json.loads((out / "bd_rates.json").read_text())
    assert {row["curve"] for row in rows} == {"gic r=0", "gic r=1, euler, 1 step"}
    printed = capsys.readouterr().out
    assert "gic r=0" in printed
    assert "written: out" in printed


def test_psnr_is_that_of_the_files_that_the_run_wrote(place):
    """A plain computation on what the kept files decode to, as anybody would check it."""
    assert command() == 0
    results = load_results(place / "out" / "results.json")
    jpeg = next(curve for curve in results.curves if curve.name == "jpeg")
    files = list((place / "out" / "cache").rglob("*.jpg"))
    assert len(files) == 12
    found = set()
    for path in files:
        decoded = np.asarray(Image.open(path).convert("RGB"), float)
        for about in results.images:
            original = np.asarray(Image.open(f"pictures/{about['key']}"), float)
            if original.shape == decoded.shape:
                found.add((path.stat().st_size, round(10 * np.log10(255**2 / ((decoded - original) ** 2).mean()), 3)))
    reported = {(m.bytes, round(m.metrics["psnr"], 3)) for point in jpeg.points for m in point.images.values()}
    assert reported == found


def test_two_processes_give_the_means_of_one(place):
    assert command() == 0
    words = [sys.executable, "-m", "gic", "test", "--config", "test.yaml", "--ckpt_path", "weights.safetensors"]
    words += ["--accelerator", "cpu", "--devices", "2", "--output", "two"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(words, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    one, two = values(place / "out"), values(place / "two")
    assert one.keys() == two.keys()
    for cell, value in one.items():
        assert two[cell] == (value if value is None else pytest.approx(value, abs=1e-6)), cell


def test_a_second_run_measures_nothing_and_says_the_same(place, monkeypatch):
    assert command() == 0
    first = (place / "out" / "results.json").read_text()
    from gic.benchmark import runner

    def never(*arguments):
        raise AssertionError("nothing should be measured again")

    monkeypatch.setattr(runner, "timed", never)
    assert command() == 0
    changed = json.loads((place / "out" / "results.json").read_text())
    changed["about"]["created"] = json.loads(first)["about"]["created"]
    assert changed == json.loads(first)


def test_a_white_picture_costs_no_metric_its_mean(place, shared, monkeypatch, capsys):
    """NIQE has no value for it where a codec keeps it, as JPEG does; PSNR is infinite there."""
    monkeypatch.setenv("GIC_METRIC_WEIGHTS", str(shared / "weights"))
    Image.new("RGB", (120, 100), "white").save("pictures/white.png")
    Image.fromarray(array(picture(130, 110, "edges", 7))).save("pictures/large.png")
    assert command("--metrics", "[psnr, niqe, fid768]", "--data", "[pictures/white.png, pictures/large.png]") == 0
    printed = capsys.readouterr()
    out = place / "out"
    results = load_results(out / "results.json")
    assert list(results.metrics) == ["psnr", "niqe"] and "0 patches" in results.not_computed["fid768"]
    for point in next(curve for curve in results.curves if curve.name == "jpeg").points:
        for metric in ("niqe", "psnr"):
            assert point.images["white.png"].metrics[metric] is None
            assert point.mean(metric) == point.images["large.png"].metrics[metric]
    assert results.common("niqe") == results.common("psnr") == ["large.png"]
    assert "WARNING: NIQE has no value for 1 of 2 images" in printed.err
    for text in (printed.out, (out / "report.html").read_text()):
        assert "(n = 1)" in text
    assert "NIQE has no value for 1 of 2 images" in (out / "report.html").read_text()
    assert "n = 1 of 2 images" in (out / "curves" / "niqe.svg").read_text()
    assert b"test/niqe/jpeg (n = 1 of 2 images)" in next((out / "tensorboard").iterdir()).read_bytes()


def test_fid_of_two_patches_is_said_to_be_of_two_patches(place, shared, monkeypatch, capsys):
    monkeypatch.setenv("GIC_METRIC_WEIGHTS", str(shared / "weights"))
    for number in range(2):
        Image.fromarray(array(picture(256, 260, "edges", number))).save(f"pictures/p{number}.png")
    settings = (place / "test.yaml").read_text().replace("q: [1.0, 2.0, 4.0, 6.0]", "q: [2.0, 6.0]")
    (place / "test.yaml").write_text(settings.replace("[10, 30, 60, 90]", "[30]"))
    assert command("--metrics", "[fid768, kid768]", "--limit", "2") == 0
    printed = capsys.readouterr()
    said = "is over 2 patches: below 768 it must not be compared with values over other images"
    report = (place / "out" / "report.html").read_text()
    assert f"WARNING: FID-768 (256x256 patches) {said}" in printed.err
    assert f"FID-768 (256x256 patches) {said}" in report and "FID-768 (256x256 patches), n = 2" in report
    assert "n = 2" in printed.out
    assert "n = 2 patches" in (place / "out" / "curves" / "fid768.svg").read_text()


def test_what_cannot_be_computed_is_listed(place, monkeypatch, capsys):
    monkeypatch.setenv("GIC_METRIC_WEIGHTS", str(place / "nowhere"))
    monkeypatch.setenv("TORCH_HOME", str(place / "empty"))
    assert command("--metrics", "[psnr, lpips_vgg]") == 0
    results = load_results(place / "out" / "results.json")
    assert list(results.metrics) == ["psnr"]
    assert "lpips_vgg" in results.not_computed
    assert "lpips_vgg" in capsys.readouterr().err
    assert "lpips_vgg" in (place / "out" / "report.html").read_text()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--metrics", "[psnr, lpips_alx]"), "lpips_alex"),
        (("--data", "empty"), "empty"),
        (("--ckpt_path", "missing.ckpt"), "missing.ckpt"),
        (("--anchor", "webp"), "webp"),
        (("--published", "missing.csv"), "missing.csv"),
        (("--speed", "3"), "speed"),
        (("--codecs.q", "[100]"), "100"),
    ],
)
def test_wrong_input_is_one_clear_line(place, words, said, capsys):
    (place / "empty").mkdir()
    try:
        code = command(*words)
    except SystemExit as stop:
        code = stop.code
    assert code == 2
    error = capsys.readouterr().err
    assert said in error
    assert "Traceback" not in error
    assert not (place / "out" / "results.json").exists()


def test_a_broken_image_is_named_and_no_mean_is_written(place, capsys):
    (place / "pictures" / "broken.png").write_bytes(b"no picture")
    assert command() == 2
    assert "broken.png" in capsys.readouterr().err
    assert not (place / "out" / "results.json").exists()


@pytest.mark.parametrize("absent", [["lightning"], ["bjontegaard", "tensorboard"], ["matplotlib"], ["torchmetrics"]])
def test_without_a_package_that_every_run_needs_nothing_is_begun(place, absent, monkeypatch, capsys):
    """Also those that are used only when all is measured: the figures, BD-rates and TensorBoard's log."""
    for name in absent:
        monkeypatch.setitem(sys.modules, name, None)
    assert command() == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.endswith(f"needed here and not installed: {install_command('train')}")
    assert all(name in line for name in absent)
    assert not (place / "out").exists()


@pytest.mark.parametrize(
    ("absent", "metric"),
    [("pyiqa", "niqe"), ("timm", "niqe"), ("lpips", "lpips_alex"), ("torch_fidelity", "fid768"),
     ("pytorch_msssim", "ms_ssim")],
)  # fmt: skip
def test_without_a_package_of_a_metric_the_others_are_measured(place, absent, metric, monkeypatch, capsys):
    for name in [name for name in sys.modules if name.split(".")[0] in (absent, "pyiqa")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, absent, None)
    assert command("--metrics", f"[psnr, {metric}]", "--limit", "1") == 0
    results = load_results(place / "out" / "results.json")
    assert list(results.metrics) == ["psnr"]
    assert absent in results.not_computed[metric] and install_command("train") in results.not_computed[metric]


def test_what_is_missing_is_said_at_once_and_before_any_network(place, monkeypatch, capsys):
    from gic.benchmark import benchmark

    def never(*arguments):
        raise AssertionError("no metric should be made")

    monkeypatch.setattr(benchmark, "make_metrics", never)
    assert command("--data", "nothere", "--ckpt_path", "nowhere.ckpt") == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "nothere" in line and "no checkpoint nowhere.ckpt" in line


def test_an_allocation_of_slurm_without_srun_runs_here(place, monkeypatch, capsys):
    slurm = {"SLURM_NTASKS": "4", "SLURM_JOB_ID": "7", "SLURM_JOB_NAME": "mine", "SLURM_PROCID": "0"}
    for name, value in slurm.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("SLURM_STEP_ID", raising=False)
    assert command("--metrics", "[psnr]", "--limit", "1") == 0
    assert "running on this machine alone" in capsys.readouterr().err


def test_an_output_that_cannot_be_written_is_said_before_any_network(place, monkeypatch, capsys):
    from gic.benchmark import benchmark

    monkeypatch.setattr(benchmark, "make_metrics", lambda *arguments: 1 / 0)
    (place / "file").write_text("in the way")
    for output in ("file", "file/below"):
        assert command("--output", output) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert f"nothing can be written in {output}" in line


def test_a_wrong_level_is_said_before_any_network(place, monkeypatch, capsys):
    from gic.benchmark import benchmark

    monkeypatch.setattr(benchmark, "make_metrics", lambda *arguments: 1 / 0)
    assert command("--codecs.q", "[100]") == 2
    assert "100" in capsys.readouterr().err


def test_files_that_must_be_downloaded_are_listed_before_the_first_of_them(place, monkeypatch, capsys):
    isolate(monkeypatch, place)
    assert command("--metrics", "[psnr, lpips_vgg, niqe]", "--limit", "1") == 0
    first, *_ = capsys.readouterr().err.splitlines()
    assert first == "not here, to be downloaded: vgg16-397923af.pth, niqe_modelparameters.mat"


def test_published_points_of_other_images_are_left_out_and_that_is_said(place, capsys):
    (place / "points.csv").write_text("dataset,codec,bpp,psnr\nkodak,HiFiC,1.0,30\nkodak,HiFiC,2.0,33\n")
    assert command("--published", "points.csv") == 0
    said = "1 of 1 published curves are over 24 images and this run over 3: they are not drawn"
    assert f"WARNING: {said}" in capsys.readouterr().err
    out = place / "out"
    assert load_results(out / "results.json").not_computed["published points"] == said
    report = (out / "report.html").read_text()
    assert said in report and "HiFiC" not in report
    assert "HiFiC" not in (out / "curves" / "psnr.svg").read_text()
