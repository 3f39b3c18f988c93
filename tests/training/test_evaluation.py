"""What validation makes of its measurements: metrics of all images together, and losses that are gamed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from places import CONFIGS, TESTS
from small import picture

from gic.errors import ConfigError
from gic.quality.metric import Resources
from gic.quality.set_metrics import FID, KID, InceptionFeatures
from gic.quality.table import METRICS
from gic.training.evaluation import (
    BEFORE,
    JUDGES,
    Features,
    LevelResult,
    extract_features,
    gaming,
    load_means,
    main,
    mean_by_level,
    print_table,
    save_json,
    with_set_metrics,
)


def of(kind, extractor):
    """A metric of all images that is given its features."""
    metric = kind(768)
    metric.start(Resources(shared={(InceptionFeatures, 768): extractor}))
    return metric


# --- metrics of all images together -----------------------------------------------------------------------------------


class Rows:
    """Features that are the first values of a picture's rows; counts its calls."""

    dimensions, identity = 768, "rows"

    def __init__(self):
        self.pictures = []

    def __call__(self, image):
        self.pictures.append(image)
        return image[0, :, :4].float().numpy()


def measured():
    """Three pictures and their reconstructions at two levels and values of r."""
    cells = [(q, r) for q in (1.0, 4.0) for r in (0.0, 1.0)]
    pairs = {}
    for number, key in enumerate("abc"):
        x = picture(20, 11 + number, salt=number)
        pairs[key] = x, {(q, r): ((x.float() + 9 * q + 50 * r) / 2).to(torch.uint8) for q, r in cells}
    return pairs


def test_features_are_computed_once_for_each_picture_and_shared():
    extractor = Rows()
    x, pictures = measured()["a"]
    found = extract_features("a", x, pictures, [of(FID, extractor), of(KID, extractor)])
    assert len(extractor.pictures) == 1 + 4
    assert sum(image is x for image in extractor.pictures) == 1
    assert np.array_equal(found.original["rows"], x[0, :, :4].float().numpy())
    assert found.decoded.keys() == {("rows", q, r) for q, r in pictures}


@pytest.mark.parametrize("order", ["abc", "cab", "bca"])
def test_a_metric_of_all_images_is_that_of_all_patches_at_each_level(order):
    judges = [of(FID, Rows()), of(KID, Rows())]
    pairs = measured()
    features = [extract_features(key, *pairs[key], judges) for key in order]
    results = [LevelResult(key, q, r, 0.5, {"psnr": 30.0}) for key in order for q, r in pairs[key][1]]
    means = with_set_metrics(mean_by_level(results), features, judges)
    assert len(means) == 4
    for mean in means:
        x, x_hat = (
            np.concatenate([image[0, :, :4].float().numpy() for image in images])
            for images in zip(*((pairs[key][0], pairs[key][1][mean.q, mean.realism]) for key in "abc"), strict=True)
        )
        assert mean.metrics == {"psnr": 30.0, "fid768": judges[0].value(x_hat, x), "kid768": judges[1].value(x_hat, x)}
    assert len({mean.metrics["fid768"] for mean in means}) == 4


@pytest.mark.parametrize("count", [0, 1])
def test_fewer_than_two_patches_have_no_value(count):
    patches = np.ones((count, 4), np.float32)
    features = [Features("a", {"rows": patches}, {("rows", 1.0, 1.0): patches})]
    (mean,) = with_set_metrics([LevelResult("mean", 1.0, 1.0, 0.5, {"psnr": 30.0})], features, [of(FID, Rows())])
    assert mean.metrics == {"psnr": 30.0, "fid768": None}


def validated(folder, val, *more, ranks=1):
    """Means that ``gic validate`` leaves of a small codec, in processes of its own."""
    words = ["validate", "--config", str(CONFIGS / "base.yaml"), "--config", str(TESTS / "tiny.yaml")]
    words += ["--data.val", str(val), "--trainer.default_root_dir", str(folder), "--model.levels", "[1.0, 8.0]"]
    words += ["--model.metrics", "[psnr, fid768, kid768]", *more]
    words += ["--trainer.devices", str(ranks), *(["--trainer.strategy", "ddp"] if ranks > 1 else [])]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    folder.mkdir()
    done = subprocess.run(
        [sys.executable, "-m", "gic", *words],
        **{"cwd": folder, "env": environment, "capture_output": True, "text": True, "timeout": 600},
    )
    assert done.returncode == 0, (done.stdout + done.stderr)[-6000:]
    (path,) = folder.glob("version_*/results/val-*.json")
    return json.loads(path.read_text()), done.stdout


@pytest.fixture
def large_pictures(tmp_path, shared, monkeypatch):
    """Three pictures with patches, and the weights of FID."""
    from PIL import Image

    from gic.pictures.tensors import to_image

    monkeypatch.setenv("GIC_METRIC_WEIGHTS", str(shared / "weights"))
    monkeypatch.setenv("COLUMNS", "200")
    folder = tmp_path / "pictures"
    folder.mkdir()
    for number, side in enumerate((384, 400, 390)):
        to_image(picture(side, 384, "edges" if number else "smooth", number)).save(folder / f"{number}.png")
    assert Image.open(folder / "0.png").size == (384, 384)
    return folder


def test_fid_and_kid_do_not_depend_on_the_number_of_processes(large_pictures, tmp_path):
    (one, printed), (two, _) = (validated(tmp_path / f"{n}", large_pictures, ranks=n) for n in (1, 2))
    assert [len(report["images"]) for report in (one, two)] == [3 * 2 * 2] * 2
    assert "fid768" in printed and "kid768" in printed
    assert "fid768" not in one["images"][0]
    for a, b in zip(one["mean"], two["mean"], strict=True):
        assert a["fid768"] > 0
        assert b["fid768"] == pytest.approx(a["fid768"], rel=1e-4)
        assert b["kid768"] == pytest.approx(a["kid768"], rel=1e-4)
    assert one["mean"][0]["fid768"] != one["mean"][-1]["fid768"]


def test_a_process_without_images_waits_for_nobody(large_pictures, tmp_path):
    report, _ = validated(tmp_path / "two", large_pictures, "--data.val_limit", "1", ranks=2)
    assert len(report["images"]) == 2 * 2
    assert all(row["fid768"] > 0 for row in report["mean"])


# --- losses that are gamed --------------------------------------------------------------------------------------------

HIGHER_IS_BETTER = {"ssimulacra2"}
START = {name: 60.0 if name == "ssimulacra2" else 4.0 for name in JUDGES} | {"psnr": 30.0, "ms_ssim": 0.95}


def level(q=4.0, r=1.0, **changes):
    """Means at one level: all metrics as in START, but for those given."""
    return LevelResult("mean", q, r, 0.5, {**START, **changes})


def worse(name, by=1.0):
    """A value of a judge that is worse than at the start by so many times what counts as clearly worse."""
    tolerance = JUDGES[name]
    step = by * max(tolerance.relative * START[name], tolerance.absolute)
    return START[name] + (-step if name in HIGHER_IS_BETTER else step)


OTHERS = [name for name in JUDGES if name != "lpips_alex"]


@pytest.mark.parametrize("judge", OTHERS)
def test_a_judge_that_got_worse_while_the_loss_got_better_is_named_with_its_level(judge):
    (line,) = gaming([level()], [level(lpips_alex=3.0, **{judge: worse(judge, 1.5)})])
    assert line.startswith("q 4, r 1: ")
    assert "lpips_alex 4.0000 -> 3.0000 got better" in line
    assert f"{judge} {START[judge]:.4f}"[:12] in line
    assert line.endswith("got worse")


@pytest.mark.parametrize("judge", OTHERS)
def test_a_judge_that_got_better_or_stayed_is_no_warning(judge):
    for change in (-1.5, -50.0, 0.0, 0.5):
        assert not gaming([level()], [level(lpips_alex=3.0, **{judge: worse(judge, change)})])


def test_where_the_loss_did_not_get_better_nothing_is_held_against_it():
    for value in (START["lpips_alex"], 4.5, 3.99):
        assert not gaming([level()], [level(lpips_alex=value, niqe=9.0)])


def test_only_the_same_level_and_realism_above_nought_count():
    better, spoilt = {"lpips_alex": 3.0}, {"fid768": 9.0}
    assert not gaming([level(r=0.0)], [level(r=0.0, **better, **spoilt)])
    assert not gaming([level(q=1.0), level(q=4.0)], [level(q=1.0, **better), level(q=4.0, **spoilt)])
    assert not gaming([level(q=1.0)], [level(q=4.0, **better, **spoilt)])
    before, after = (
        [level(q, r, **changes) for q in (4.0, 1.0) for r in (0.0, 0.5)] for changes in ({}, better | spoilt)
    )
    assert [line.split(":")[0] for line in gaming(before, after)] == ["q 1, r 0.5", "q 4, r 0.5"]


def test_what_is_in_the_loss_is_no_judge_and_what_is_not_is():
    after = level(lpips_alex=4.5, lpips_squeeze=3.0)
    assert not gaming([level()], [after])
    (line,) = gaming([level()], [after], trained=["lpips_squeeze"])
    assert "lpips_squeeze 4.0000 -> 3.0000 got better, lpips_alex 4.0000 -> 4.5000 got worse" in line
    assert not gaming([level()], [after], trained=["lpips_squeeze", "lpips_alex"])
    assert not gaming([level()], [after], trained=[])


def test_fidelity_is_no_judge_and_what_was_not_measured_is_none():
    assert not gaming([level()], [level(lpips_alex=3.0, psnr=20.0, ms_ssim=0.5)])
    assert not gaming([level()], [level(lpips_alex=3.0, fid768=None)])
    assert not gaming([level(fid768=None)], [level(lpips_alex=3.0, fid768=9.0)])
    assert not gaming([level(lpips_alex=None)], [level(lpips_alex=3.0, fid768=9.0)])


def test_the_direction_of_a_metric_is_the_registrys(monkeypatch):
    better, spoilt = level(lpips_alex=3.0, ssimulacra2=80.0), level(lpips_alex=3.0, ssimulacra2=40.0)
    assert [len(gaming([level()], [after])) for after in (better, spoilt)] == [0, 1]
    monkeypatch.setitem(METRICS, "ssimulacra2", replace(METRICS["ssimulacra2"], higher_better=False))
    assert [len(gaming([level()], [after])) for after in (better, spoilt)] == [1, 0]
    monkeypatch.setitem(METRICS, "lpips_alex", replace(METRICS["lpips_alex"], higher_better=True))
    assert not gaming([level()], [better])


def test_a_metric_of_which_higher_is_better_can_be_in_the_loss():
    before, after = level(clipiqa=0.4), level(clipiqa=0.6, niqe=5.0)
    assert len(gaming([before], [after], trained=["clipiqa"])) == 1
    assert not gaming([after], [level(clipiqa=0.4, niqe=9.0)], trained=["clipiqa"])


def test_two_runs_side_by_side_end_with_one_warning(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "300")
    results = tmp_path / "results"
    cells = [(q, r) for q in (1.0, 4.0) for r in (0.0, 1.0)]
    save_json(results / BEFORE, [], [level(q, r) for q, r in cells], {})
    bad = {"lpips_alex": 3.0, "fid768": 5.0}
    for name, changes, about in (
        ("val-000001.json", bad, {}),
        ("val-000002.json", bad, {"trained_on": ["lpips_vgg"]}),
        ("val-000003.json", {"lpips_alex": 3.0}, {}),
    ):
        save_json(results / name, [], [level(q, r, **changes) for q, r in cells], about)
        assert main([str(tmp_path)]) == 0
        out = capsys.readouterr().out
        warned = name == "val-000001.json"
        assert out.count("WARNING") == warned
        assert ("q 4, r 1: lpips_alex 4.0000 -> 3.0000 got better, fid768 4.0000 -> 5.0000 got worse" in out) == warned
        assert ("may be gaming its loss" in out) == warned
        (results / name).unlink()


def test_a_metric_that_there_is_not_is_an_error():
    with pytest.raises(ConfigError, match="lpips_alx"):
        gaming([level(lpips_alx=1.0)], [level(lpips_alx=0.5)], trained=["lpips_alx"])


def test_a_run_knows_which_metrics_are_in_its_loss():
    from gic.training.module import LitCodec

    terms = {"a": SimpleNamespace(metric="lpips_alex"), "b": SimpleNamespace(), "c": SimpleNamespace(metric="maniqa")}
    assert LitCodec._trained_on(SimpleNamespace(objective=SimpleNamespace(terms=terms))) == ["lpips_alex", "maniqa"]


def test_a_picture_without_a_value_is_left_out_of_one_mean_and_its_number_is_said(tmp_path, capsys):
    def result(key, niqe, psnr=30.0):
        return LevelResult(key, 1.0, 1.0, 0.5, {"psnr": psnr, "niqe": niqe, "brisque": None})

    results = [result("a", 4.0), result("b", None, 20.0), result("c", 5.0)]
    (mean,) = mean_by_level(results)
    assert mean.metrics == {"psnr": pytest.approx(80 / 3), "niqe": 4.5, "brisque": None}
    assert mean.n == {"niqe": 2}
    print_table([mean], "table")
    assert "4.5000 (n = 2)" in capsys.readouterr().out
    save_json(tmp_path / "val.json", results, [mean], {"step": 1})
    assert load_means(tmp_path / "val.json") == [mean]
    whole = mean._replace(metrics={**mean.metrics, "psnr": 20.0, "niqe": 3.0}, n={})
    assert not gaming([whole], [mean._replace(metrics={**mean.metrics, "psnr": 40.0, "niqe": 9.0})], ["psnr"])
