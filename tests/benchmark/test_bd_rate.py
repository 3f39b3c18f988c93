"""Bjøntegaard's rate difference against cases that are known by hand, and its refusals."""

from __future__ import annotations

import json
import math

import pytest
from rich.console import Console

from gic.benchmark.bd_rate import BDRate, bd_rate, bd_renderable, bd_table
from gic.benchmark.results import Curve, Measurement, Point, Results
from gic.quality.metric import MetricInfo

PSNR = MetricInfo("psnr", "PSNR", True, "image", "test", "dB")
LPIPS = MetricInfo("lpips_alex", "LPIPS (alex)", False, "image", "test")
FID = MetricInfo("fid", "FID", False, "set", "test")


def curve(name: str, points: list[tuple[float, float | None]], metric: MetricInfo = PSNR) -> Curve:
    made = []
    for i, (rate, value) in enumerate(points):
        measured = Measurement(1, rate, 0.0, 0.0, None, None, {metric.name: value} if metric.kind == "image" else {})
        sets = {metric.name: value} if metric.kind == "set" and value is not None else {}
        made.append(Point(f"quality={i}", {"a": measured}, sets))
    return Curve(name, name, "", "1", {}, made)


ANCHOR = [(0.1, 26.0), (0.2, 28.5), (0.4, 31.2), (0.8, 34.6), (1.6, 38.0)]


def percent(result: BDRate) -> float:
    assert result.percent is not None, result.reason
    assert result.reason is None
    return result.percent


@pytest.mark.parametrize(("factor", "expected"), [(1.0, 0.0), (0.5, -50.0), (2.0, 100.0), (0.8, -20.0)])
def test_scaling_all_rates(factor: float, expected: float) -> None:
    """A factor on the rates is the factor between the curves wherever one looks, so it needs no integral."""
    result = bd_rate(curve("a", ANCHOR), curve("b", [(factor * r, v) for r, v in ANCHOR]), PSNR)
    assert percent(result) == pytest.approx(expected, abs=1e-9)
    assert result.metric_range == (26.0, 38.0)
    assert result.rate_range == pytest.approx((0.1 * min(1, factor), 1.6 * max(1, factor)))
    assert (result.anchor_points, result.points) == (5, 5)


def test_direction_of_metrics() -> None:
    """With LPIPS, reaching the same smaller value with fewer bits is a gain; the same numbers as PSNR are a loss."""
    points = [(0.1, 0.4), (0.2, 0.3), (0.4, 0.2), (0.8, 0.1)]
    better = [(r, 0.9 * v) for r, v in points]
    assert percent(bd_rate(curve("a", points, LPIPS), curve("b", better, LPIPS), LPIPS)) < -5
    assert percent(bd_rate(curve("b", better, LPIPS), curve("a", points, LPIPS), LPIPS)) > 5
    assert percent(bd_rate(curve("a", points, LPIPS), curve("b", [(r / 2, v) for r, v in points], LPIPS), LPIPS)) == (
        pytest.approx(-50)
    )
    worse = [(r, v - 0.5) for r, v in ANCHOR]
    assert percent(bd_rate(curve("a", ANCHOR), curve("b", worse), PSNR)) > 5


def test_lines_have_a_known_integral() -> None:
    """Lines in log rate: log10 r = 0.1 (v - 36) and 0.08 (v - 36) differ by -0.02 (v - 36), over [28, 36] by 0.08."""
    anchor = [(10 ** (0.1 * (v - 36)), v) for v in (26.0, 28.0, 30.0, 33.0, 36.0)]
    test = [(10 ** (0.08 * (v - 36)), v) for v in (28.0, 31.0, 34.0, 36.0, 40.0)]
    result = bd_rate(curve("a", anchor), curve("b", test), PSNR)
    assert percent(result) == pytest.approx(100 * (10**0.08 - 1), rel=1e-9)
    assert result.metric_range == (28.0, 36.0)
    assert result.rate_range == pytest.approx((10**-0.8, 1.0))
    assert (result.anchor_points, result.points) == (4, 4)


def test_swapping_the_curves_inverts_the_factor() -> None:
    other = [(0.07, 27.0), (0.15, 29.5), (0.5, 33.0), (0.9, 36.6), (1.2, 37.0)]
    there = percent(bd_rate(curve("a", ANCHOR), curve("b", other), PSNR))
    back = percent(bd_rate(curve("b", other), curve("a", ANCHOR), PSNR))
    assert (1 + there / 100) * (1 + back / 100) == pytest.approx(1)


def test_order_and_repetition_of_points_do_not_matter() -> None:
    other = [(r, v + 1) for r, v in ANCHOR]
    expected = percent(bd_rate(curve("a", ANCHOR), curve("b", other), PSNR))
    mixed = bd_rate(curve("a", ANCHOR[::-1]), curve("b", [*other[2:], *other[:3]]), PSNR)
    assert percent(mixed) == pytest.approx(expected)


def test_a_metric_of_all_images_together() -> None:
    points = [(0.1, 30.0), (0.2, 20.0), (0.4, 12.0), (0.8, 5.0)]
    result = bd_rate(curve("a", points, FID), curve("b", [(r / 2, v) for r, v in points], FID), FID)
    assert percent(result) == pytest.approx(-50)


def test_reversal_where_the_curves_meet_is_refused() -> None:
    bent = [(0.1, 26.0), (0.2, 30.0), (0.4, 29.0), (0.8, 34.0), (1.6, 38.0)]
    for pair in ((ANCHOR, bent), (bent, ANCHOR)):
        result = bd_rate(curve("a", pair[0]), curve("b", pair[1]), PSNR)
        assert result.percent is None
        assert "not monotone" in str(result.reason)
    flat = [(0.1, 26.0), (0.2, 30.0), (0.4, 30.0), (0.8, 34.0), (1.6, 38.0)]
    assert "not monotone" in str(bd_rate(curve("a", ANCHOR), curve("b", flat), PSNR).reason)


def test_reversal_elsewhere_does_not_matter() -> None:
    good = [(0.2, 28.0), (0.4, 31.0), (0.8, 34.0), (1.6, 37.0)]
    expected = percent(bd_rate(curve("a", ANCHOR), curve("b", good), PSNR))
    wild = [(0.01, 20.0), (0.02, 19.0), *good]
    high = [(0.4, 31.0), (0.8, 34.0), (1.6, 37.0), (2.0, 40.0), (3.0, 39.0)]
    assert percent(bd_rate(curve("a", ANCHOR), curve("b", wild), PSNR)) == pytest.approx(expected, abs=5)
    assert math.isfinite(percent(bd_rate(curve("a", ANCHOR), curve("b", high), PSNR)))


@pytest.mark.parametrize(
    ("points", "reason"),
    [
        (ANCHOR[:3], "3 points"),
        ([(r, v + 20) for r, v in ANCHOR], "share too few"),
        ([(r, v + 10) for r, v in ANCHOR], "share too few"),
        ([*ANCHOR[:4], (1.6, None)], "not defined for b at quality=4"),
        ([(r, 30.0) for r, _ in ANCHOR], "share too few"),
        ([(0.1, 10.0), (0.2, 9.0), (0.3, 8.0), (0.4, 27.0), (0.5, 38.0)], "3 points that are monotone"),
    ],
)
def test_reasons(points: list[tuple[float, float | None]], reason: str) -> None:
    result = bd_rate(curve("a", ANCHOR), curve("b", points), PSNR)
    assert result.percent is None
    assert reason in str(result.reason)


def test_table() -> None:
    """Every other curve by every metric, as plain data and as a table."""
    both = [
        Curve(
            name,
            name,
            "",
            "1",
            {},
            [
                Point(f"q={i}", {"a": Measurement(1, f * r, 0, 0, None, None, {"psnr": v, "lpips_alex": 1 / v})})
                for i, (r, v) in enumerate(ANCHOR)
            ],
        )
        for name, f in (("gic r=1", 0.5), ("avif", 1.0), ("jpeg", 2.0))
    ]
    both[2].points[0].images["a"].metrics["lpips_alex"] = None  # type: ignore[index]
    results = Results({}, [{"key": "a"}], {"psnr": PSNR, "lpips_alex": LPIPS}, {}, both)
    rows = json.loads(json.dumps(bd_table(results, "avif")))
    assert [(row["curve"], row["metric"]) for row in rows] == [
        ("gic r=1", "psnr"),
        ("gic r=1", "lpips_alex"),
        ("jpeg", "psnr"),
        ("jpeg", "lpips_alex"),
    ]
    assert [row["percent"] for row in rows] == [*(pytest.approx(x) for x in (-50, -50, 100)), None]
    assert rows[0]["metric_range"] == [26.0, 38.0]
    assert all(row["anchor"] == "avif" for row in rows)
    console = Console(width=100)
    with console.capture() as captured:
        console.print(bd_renderable(rows, results))
    text = captured.get()
    assert "-50.0 %" in text
    assert "+100.0 %" in text
    assert "(1) LPIPS (alex) is not defined for jpeg at q=0" in text
    missing = bd_table(results, "vvc")
    assert len(missing) == 6
    assert {row["reason"] for row in missing} == {"there is no curve vvc to compare with"}


def two_images(name: str, points: list[tuple[float, float]], other: list[float | None], rate: float = 5.0) -> Curve:
    """A curve of an image ``a`` with the points, and of ``b`` with the same rate and other values at each point."""
    made = curve(name, points).points
    for point, value in zip(made, other, strict=True):
        point.images["b"] = Measurement(1, rate, 0.0, 0.0, None, None, {"psnr": value})  # type: ignore[index]
    return Curve(name, name, "", "1", {}, made)


def test_codecs_are_compared_over_the_images_that_have_all_values() -> None:
    """A value that one codec lacks at one point takes its image, rate and value, out of both curves; that is said."""
    anchor = two_images("anchor", ANCHOR, [30.0] * 5)
    half = two_images("half", [(r / 2, v) for r, v in ANCHOR], [30.0, 31.0, None, 32.0, 33.0], rate=9.0)
    result = bd_rate(anchor, half, PSNR)
    assert percent(result) == pytest.approx(-50)
    assert result.images == 1
    assert bd_rate(half, anchor, PSNR).percent == pytest.approx(100)
    results = Results({}, [{"key": "a"}, {"key": "b"}], {"psnr": PSNR}, {}, [anchor, half])
    console = Console(width=100)
    with console.capture() as captured:
        console.print(bd_renderable(bd_table(results, "anchor"), results))
    assert "-50.0 % (n = 1)" in captured.get()


def test_without_an_image_that_has_all_values_there_is_no_comparison() -> None:
    anchor = two_images("anchor", ANCHOR, [30.0] * 5)
    other = two_images("other", ANCHOR, [None, 31.0, 32.0, 33.0, 34.0])
    other.points[1].images["a"].metrics["psnr"] = None  # type: ignore[index]
    assert bd_rate(anchor, other, PSNR).reason == "no image has PSNR at all points of anchor and other"
