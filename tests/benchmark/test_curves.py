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
from gic.benchmark.palette import GREYS, STRONG, looks, published_looks
from gic.benchmark.palette import PUBLISHED as PUBLISHED_COLOURS
from gic.benchmark.published import PublishedCurve, of_as_many, read_published
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


def test_the_word_originals_lies_where_no_curve_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Right of the panel: within it, some curve always runs along the line of a good codec."""
    from matplotlib.figure import Figure

    save, seen = Figure.savefig, []

    def watched(figure: Figure, *arguments: object, **options: object) -> None:
        save(figure, *arguments, **options)  # type: ignore[arg-type]
        for axes in figure.axes:
            panel = axes.get_window_extent()
            words = [text for text in axes.texts if text.get_text() == "originals"]
            seen.extend((word.get_window_extent(), panel, figure.bbox, axes) for word in words)

    monkeypatch.setattr(Figure, "savefig", watched)
    made = results(psnr=METRICS["psnr"], musiq=METRICS["musiq"], ms_ssim=METRICS["ms_ssim"])
    save_curves(tmp_path, made)
    assert len(seen) == 4  # overview and MUSIQ, twice each
    for word, panel, figure, axes in seen:
        assert word.x0 >= panel.x1 and word.x1 <= figure.x1
        others = [other.get_tightbbox() for other in axes.figure.axes if other is not axes]
        assert not any(word.overlaps(other) for other in others)


def test_a_codec_at_an_r_looks_alike_in_every_run() -> None:
    """Whatever else was measured, in whatever order."""
    made = results()
    whole = looks(made)
    assert whole["gic r=0"] == (STRONG[0], "circle") and whole["gic r=1"] == (STRONG[1], "circle")
    for kept in ([1, 3], [3, 2, 1], [2, 1, 0], [0]):
        part = looks(replace(made, curves=[made.curves[i] for i in kept]))
        assert part == {made.curves[i].name: whole[made.curves[i].name] for i in kept}


def test_curves_of_one_run_can_be_told_apart() -> None:
    names = [f"{codec} {way}" for codec in "abcdefg" for way in ("r=0", "r=1", "r=0.5")]
    tested = [Curve(name, name[0], name[2:], "1", {}, []) for name in names]
    others = [Curve(f"codec{i}", f"codec{i}", "", "1", {}, []) for i in range(10)]
    found = looks(Results({}, [], {}, {}, [*tested, *others]))
    assert len(set(found.values())) == len(names) + 10
    assert len(set(published_looks([str(i) for i in range(20)]).values())) == 20


def luminance(colour: str) -> float:
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    red, green, blue = (c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


@pytest.mark.parametrize("colour", [*STRONG, *GREYS, *PUBLISHED_COLOURS])
def test_colours_can_be_seen_on_white_and_on_the_reports_dark_paper(colour: str) -> None:
    paper, ink = luminance("#1c2024"), luminance(colour)
    assert 1.05 / (ink + 0.05) > 2.2 and (ink + 0.05) / (paper + 0.05) > 3


def test_a_curve_with_gaps_is_drawn_over_the_images_that_all_have(tmp_path: Path) -> None:
    made = results(musiq=METRICS["musiq"])
    whole = one(tmp_path / "whole", made)
    assert "n = " not in whole.split("bits per pixel")[0]
    images = made.curves[0].points[2].images
    images["b"] = replace(images["b"], metrics={"musiq": None})  # type: ignore[index]
    drawn = one(tmp_path / "gap", made)
    assert "n = 1 of 2 images" in drawn and "n = 2 where not stated" in drawn
    images["a"] = replace(images["a"], metrics={"musiq": None})  # type: ignore[index]
    assert "n = 1 of 2 images" not in one(tmp_path / "none", made)  # a point without any value is left out


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


def test_points_over_another_number_of_images_are_not_drawn(tmp_path: Path) -> None:
    path = tmp_path / "points.csv"
    path.write_text("dataset,codec,bpp,psnr,images\nkodak,known,0.4,31,\nkodak,stated,0.4,31,2\nclic,unknown,0.4,31,\n")
    kodak, clic = read_published(path), read_published(path, "clic")
    assert [curve["images"] for curve in (*kodak, *clic)] == [24, 2, None]
    drawn, said = of_as_many([*kodak, *clic], 2)
    assert [curve["name"] for curve in drawn] == ["stated", "unknown"]
    assert said == "1 of 3 published curves are over 24 images and this run over 2: they are not drawn"
    assert of_as_many(clic, 7) == (clic, "")
    path.write_text("codec,bpp,psnr\nmine,0.4,31\n")  # of no data set
    assert read_published(path)[0]["images"] is None


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
