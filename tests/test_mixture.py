"""The example that teaches the method: what docs/method.md says of it holds, and the page has its numbers."""

from __future__ import annotations

import importlib.util
import itertools
import json
import subprocess
import sys
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from places import REPOSITORY
from scipy import integrate, stats

SCRIPT = REPOSITORY / "examples" / "mixture.py"


@pytest.fixture(scope="module")
def mixture() -> ModuleType:
    spec = importlib.util.spec_from_file_location("mixture", SCRIPT)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def found(mixture: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("mixture")
    result = mixture.main(["--samples", "4000", "--output", str(folder), "--json", str(folder / "numbers.json")])
    assert {path.stem for path in folder.glob("*.svg")} == {"forward", "velocity", "flow", "back", "steps"}
    assert json.loads((folder / "numbers.json").read_text()) == result
    return result


def distances(found: dict[str, Any], sampler: str, key: str = "distance") -> list[float]:
    return [row[key] for row in found["sampler"] if row["sampler"] == sampler]


def test_the_denoiser_is_the_mean_of_the_mixture_within_the_cell(mixture: ModuleType) -> None:
    for q in (0.3, 2.0):
        for y_q in (-1.6, -0.4, 0.7, 1.5):
            cell = (y_q - q / 2, y_q + q / 2)
            mass = integrate.quad(lambda y: float(mixture.density(np.array(y))), *cell, epsabs=1e-12)[0]
            mean = integrate.quad(lambda y: y * float(mixture.density(np.array(y))), *cell, epsabs=1e-12)[0] / mass
            assert float(mixture.denoiser(np.array([[y_q]]), q)[0, 0]) == pytest.approx(mean, abs=1e-5 * q)
            assert float(mixture.marginal(np.array(y_q), q)) == pytest.approx(mass / q, rel=1e-6)


@pytest.mark.parametrize("q", [0.25, 1.0, 4.0])
def test_quantised_numbers_are_distributed_like_p_q(mixture: ModuleType, q: float) -> None:
    y = mixture.quantiles(4000)
    y_q = mixture.quantised(y[None], q, seed=5)[0]
    grid = np.linspace(-6, 6, 4001)
    cdf = integrate.cumulative_trapezoid(mixture.marginal(grid, q), grid, initial=0)
    assert cdf[-1] == pytest.approx(1, abs=1e-6)
    assert stats.kstest(y_q, lambda x: np.interp(x, grid, cdf)).pvalue > 1e-3
    if q > 0.25:
        assert stats.kstest(y_q, lambda x: np.interp(x, mixture._grid, mixture._cdf)).pvalue < 1e-6  # not like p_0


def test_the_exact_score_is_the_gradient_and_the_formula_of_gaussian_noise_is_not(mixture: ModuleType) -> None:
    from gic.method import sde

    x, h = np.linspace(-2, 2.5, 40), 1e-5
    gradient = (np.log(mixture.marginal(x + h, 2.0)) - np.log(mixture.marginal(x - h, 2.0))) / (2 * h)
    assert np.allclose(mixture.score(x, 2.0), gradient, atol=1e-4)
    assert np.abs(sde.score(x[None], 2.0, mixture.denoiser(x[None], 2.0)) - gradient).max() > 1


def test_paths_do_not_cross_and_end_at_the_peaks(mixture: ModuleType) -> None:
    levels, values = mixture.paths(mixture.denoiser, np.linspace(-2.25, 2.65, 36))
    assert (levels[0], levels[-1]) == (mixture.Q, 0)
    assert (np.diff(values, axis=1) > 0).all()
    assert np.median(mixture.density(values[-1])) > 2 * np.median(mixture.density(values[0]))


def test_r_1_is_distributed_like_the_mixture_and_r_0_is_closest(found: dict[str, Any]) -> None:
    for row in found["q"]:
        if row["q"] >= 0.5:
            assert row["r=1"]["distance"] < row["r=0"]["distance"] / 2 < row["y_q"]["distance"] / 2
        assert row["r=0"]["error"] < row["r=1"]["error"] < row["y_q"]["error"]
    assert [row["bits"] for row in found["q"]] == sorted((row["bits"] for row in found["q"]), reverse=True)


def test_more_steps_come_nearer_and_heun_is_of_second_order(found: dict[str, Any]) -> None:
    euler, heun = distances(found, "euler"), distances(found, "heun")
    assert all(b < 0.7 * a for a, b in itertools.pairwise(euler[:4]))
    assert heun[0] == euler[0] == next(row for row in found["q"] if row["q"] == 2)["r=0"]["distance"]  # which is D
    assert all(h < e for h, e in zip(heun[2:4], euler[2:4], strict=True))
    assert distances(found, "heun", "evaluations") == [1, 3, 7, 15, 31, 63]


def test_noise_costs_squared_error(found: dict[str, Any]) -> None:
    heun, sde, restart = (distances(found, name, "error") for name in ("heun", "sde(alpha=0.5)", "restart"))
    assert sde == sorted(sde) and sde[-1] > 2 * heun[-1]
    assert min(restart) > 1.3 * max(heun)
    assert distances(found, "restart")[-1] < 1.5 * distances(found, "heun")[-1]


def test_only_noise_leaves_the_cell_that_was_sent(mixture: ModuleType) -> None:
    y_q = mixture.quantised(mixture.quantiles(4000)[None], mixture.Q, seed=1)
    for name, leaves in (("euler", False), ("heun", False), ("sde(alpha=0.5)", True), ("restart", True)):
        end = mixture.reverse(mixture.denoiser, y_q, mixture.Q, sampler=name, steps=16, generator=np.random.Philox(2))
        assert (np.abs(end - y_q).max() > mixture.Q / 2 + 1e-6) == leaves, name


def test_it_runs_without_pytorch() -> None:
    start = "import sys, runpy; sys.modules['torch'] = None; sys.argv = ['', '--samples', '50']; "
    code = f"{start}runpy.run_path({str(SCRIPT)!r}, run_name='__main__')"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=REPOSITORY)
    assert run.returncode == 0 and "restart" in run.stdout, run.stderr


def test_the_tables_of_the_page_are_those_of_the_json() -> None:
    page = (REPOSITORY / "docs" / "method.md").read_text()
    numbers = json.loads((REPOSITORY / "docs" / "results" / "mixture.json").read_text())
    for row in numbers["q"]:
        values = [row[name][key] for key in ("distance", "error") for name in ("y_q", "r=0", "r=1")]
        cells = [f"{row['q']:g}", f"{row['bits']:.2f}", *(f"{value:.3f}" for value in values)]
        assert f"| {' | '.join(cells)} |" in page
    for name in {row["sampler"] for row in numbers["sampler"]}:
        rows = [row for row in numbers["sampler"] if row["sampler"] == name and row["steps"] <= 16]
        cells = [f"`{name}`", *(f"{row['distance']:.3f} ({row['error']:.3f}); {row['evaluations']}" for row in rows)]
        assert f"| {' | '.join(cells)} |" in page


def test_the_script_still_makes_the_numbers_of_the_page(mixture: ModuleType) -> None:
    numbers = json.loads((REPOSITORY / "docs" / "results" / "mixture.json").read_text())
    (row,) = mixture.by_step(mixture.quantiles(numbers["samples"])[None], (2.0,))
    (kept,) = (row for row in numbers["q"] if row["q"] == 2.0)
    assert row.pop("bits") == pytest.approx(kept["bits"], rel=1e-3)
    for name in ("y_q", "r=0", "r=1"):
        assert row[name] == pytest.approx(kept[name], rel=1e-3)
    assert SCRIPT.read_text().count("\n") < 300
