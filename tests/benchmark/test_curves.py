"""Figures and published points: what is drawn, that it is reproducible, and what is refused."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import matplotlib
import numpy as np
import pytest
from PIL import Image

from gic.benchmark.curves import save_curves
from gic.benchmark.palette import STRONG
from gic.benchmark.published import PublishedCurve, read_published
from gic.benchmark.results import Curve, Measurement, Point, Results
from gic.errors import DataError
from gic.quality.metric import MetricInfo

METRICS = {
    "psnr": MetricInfo("psnr", "PSNR", True, "image", "test", "dB"),
    "ms_ssim": MetricInfo("ms_ssim", "MS-SSIM", True, "image", "test"),
    "fid768": MetricInfo("fid768", "FID (768)", False, "set", "test"),
    "musiq": MetricInfo("musiq", "MUSIQ", True, "image", "test"),
}


def results(**metrics: MetricInfo) -> Results:
    """Made-up curves of two decodings and two baselines, five points each."""

    def point(shift: float, i: int, codec: str) -> Point:
        rate, d = 0.05 * 2**i * 1.2**shift, 0.4 * 0.6**i * 1.1**shift
        values = {"psnr": 26 + 2.5 * i - shift, "ms_ssim": 1 - d / 3, "musiq": 70 - 50 * d}
        measured = Measurement(int(rate * 1000), rate, 0.1, 0.1, None, None, dict(values))
        return Point(f"q={i}", {"a": measured, "b": measured}, {"fid768": 10 * d} if codec != "jpeg" else {})

    kinds = [("gic r=0", "gic", "r=0"), ("gic r=1", "gic", "r=1"), ("avif", "avif", ""), ("jpeg", "jpeg", "")]
    curves = [
        Curve(name, codec, decoding, "1", {}, [point(shift, i, codec) for i in range(5)])
        for shift, (name, codec, decoding) in enumerate(kinds)
    ]
    return Results({}, [{"key": "a"}, {"key": "b"}], metrics or METRICS, {}, curves, {"musiq": {"a": 71.0, "b": 73.0}})


PUBLISHED: list[PublishedCurve] = [
    {
        "name": "HiFiC",
        "source": "somewhere",
        "note": "",
        "images": None,
        "points": [
            {"bits_per_pixel": 0.001, "metrics": {"psnr": 5.0}},
            {"bits_per_pixel": 0.2, "metrics": {"psnr": 27.0}},
            {"bits_per_pixel": 0.5, "metrics": {"psnr": 31.0, "fid": 4.0}},
        ],
    }
]


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("curves")
    written = save_curves(folder, results(), PUBLISHED)
    assert written == [folder / f"{name}.{kind}" for name in ("overview", *METRICS) for kind in ("png", "svg")]
    return folder


def test_files(drawn: Path) -> None:
    """Every figure is a picture with something on white paper."""
    for path in drawn.glob("*.png"):
        pixels = np.asarray(Image.open(path).convert("RGB"))
        assert tuple(pixels[0, -1]) == (255, 255, 255)
        assert 0.5 < (pixels == 255).all(-1).mean() < 0.98
        assert path.with_suffix(".svg").read_text().startswith("<?xml")


def one(folder: Path, made: Results, published: Sequence[PublishedCurve] = ()) -> str:
    """The figure of MUSIQ."""
    save_curves(folder, made, published)
    return (folder / "musiq.svg").read_text()


def test_tested_codec_stands_out(tmp_path: Path) -> None:
    """Curves with a choice of decoding are thick and in colour; where none has one, those of the first codec."""
    made = results(musiq=METRICS["musiq"])
    turned = replace(made, curves=made.curves[::-1])
    plain = replace(made, curves=[replace(curve, codec=curve.name, decoding="") for curve in turned.curves])
    for name, shown, count in (("made", made, 2), ("turned", turned, 2), ("plain", plain, 1)):
        svg = one(tmp_path / name, shown)
        assert [colour in svg for colour in STRONG] == [True] * count + [False] * (len(STRONG) - count)


def test_published_points_are_drawn_with_their_metric_only(drawn: Path) -> None:
    dashes = "stroke-dasharray"
    assert dashes in (drawn / "psnr.svg").read_text()
    for other in ("ms_ssim", "fid768"):  # the FID that was published is another one
        assert dashes not in (drawn / f"{other}.svg").read_text()


def test_published_points_at_other_rates_are_left_out(tmp_path: Path) -> None:
    made = results(musiq=METRICS["musiq"])

    def published(rate: float) -> list[PublishedCurve]:
        point = {"bits_per_pixel": rate, "metrics": {"musiq": 60.0}}
        return [{"name": "x", "source": "", "note": "", "images": None, "points": [point]}]

    without = one(tmp_path / "without", made)
    assert one(tmp_path / "far", made, published(0.004)) == without
    assert one(tmp_path / "near", made, published(0.04)) != without


def test_same_results_same_files(tmp_path: Path) -> None:
    only = {"psnr": METRICS["psnr"]}
    first = {path.name: path.read_bytes() for path in save_curves(tmp_path / "1", results(**only), PUBLISHED)}
    again = {path.name: path.read_bytes() for path in save_curves(tmp_path / "2", results(**only), PUBLISHED)}
    assert first == again
    assert len(first) == 2


def test_metrics_without_values_get_no_figure(tmp_path: Path) -> None:
    made = results(psnr=METRICS["psnr"], dists=MetricInfo("dists", "DISTS", False, "image", "test"))
    settings = dict(matplotlib.rcParams)
    assert {path.stem for path in save_curves(tmp_path, made)} == {"psnr"}
    assert dict(matplotlib.rcParams) == settings  # nothing is left behind for other figures
    empty = Results({}, [], METRICS, {}, [])
    assert save_curves(tmp_path / "empty", empty) == []


# --- published points ---------------------------------------------------------------------------------------------


def test_read_published(tmp_path: Path) -> None:
    path = tmp_path / "points.csv"
    path.write_text(
        "dataset,codec,bpp,psnr,lpips,fid,fid_swav,source,protocol\n"
        "kodak,HiFiC,0.4,31,0.04,,9,one/repo,their crops\n"
        "kodak,HiFiC,0.2,28,0.07,5.5,,one/repo,their crops\n"
        "kodak,HiFiC,0.3,inf,0.05,,,two/other,\n"
        "clic,HiFiC,0.1,27,,,,one/repo,\n"
        "kodak,ELIC,0.1,27,,,,two/other,\n"
        "kodak,bound,,99,,,,two/other,\n"
    )
    curves = read_published(path)
    assert [curve["name"] for curve in curves] == ["HiFiC (repo)", "HiFiC (other)", "ELIC"]
    assert curves[0]["points"] == [
        {"bits_per_pixel": 0.2, "metrics": {"psnr": 28.0, "lpips_alex": 0.07, "fid": 5.5}},
        {"bits_per_pixel": 0.4, "metrics": {"psnr": 31.0, "lpips_alex": 0.04}},
    ]
    assert (curves[0]["source"], curves[0]["note"]) == ("one/repo", "their crops")
    assert curves[1]["points"][0]["metrics"] == {"lpips_alex": 0.05}
    assert [curve["name"] for curve in read_published(path, codecs=["ELIC"])] == ["ELIC"]
    assert len(read_published(path, "clic")) == 1
    with pytest.raises(DataError, match=r"nothing of the data set 'div2k'; it has kodak, clic"):
        read_published(path, "div2k")
    with pytest.raises(DataError, match="no points of VTM, bound"):
        read_published(path, codecs=["bound", "VTM", "ELIC"])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name,bpp,psnr\nx,1,2\n", "lacks the column codec"),
        ("codec,rate,psnr\nx,1,2\n", "lacks the column bpp"),
        ("codec,bpp,quality\nx,1,2\n", "lacks the column any of psnr, ms_ssim"),
        ("", "lacks the column codec, and bpp, and any of psnr"),
        ("codec,bpp,psnr\nx,0.5,30\nx,much,30\n", "line 3: could not convert"),
    ],
)
def test_refused_files(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "points.csv"
    path.write_text(text)
    with pytest.raises(DataError, match=message) as caught:
        read_published(path)
    assert str(path) in str(caught.value)


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no\.csv cannot be read"):
        read_published(tmp_path / "no.csv")


def test_published_files(shared: Path) -> None:
    """The collected points of the literature, and classical codecs, whose file has no column for the data set."""
    learned = read_published(shared / "published" / "rd_perceptual.csv")
    assert {"HiFiC (official)", "StableCodec", "CRDR beta=3.84"} <= {curve["name"] for curve in learned}
    names = [curve["name"] for curve in learned]
    assert len(set(names)) == len(names)
    assert all("lpips_alex" in curve["points"][0]["metrics"] for curve in learned)
    classical = {c["name"]: c for c in read_published(shared / "published" / "kodak_classical.csv")}
    assert "original" not in classical
    assert len(classical["jpeg"]["points"]) == 10
    for curve in classical.values():
        rates = [point["bits_per_pixel"] for point in curve["points"]]
        assert rates == sorted(rates)
        assert all(math.isfinite(point["metrics"]["fid768"]) for point in curve["points"])
