"""The blind comparison: nothing on a sheet tells which codec made it, and choices are counted by the key."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from small import array, picture

COUNT = 4


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, repository: Path) -> Path:
    """Sheets of four pictures at one rate."""
    folder = tmp_path_factory.mktemp("preference")
    (folder / "pictures").mkdir()
    for number in range(COUNT):
        pixels = np.roll(array(picture(192, 128, "edges")), 17 * number, 1)
        Image.fromarray(pixels).save(folder / "pictures" / f"{number}.png")
    done = run(repository, "sheets", folder / "pictures", "--bpp", "1.0", "--side", "64", "-o", folder / "blind")
    assert done.returncode == 0 and f"{COUNT} sheets" in done.stdout, done.stderr
    return folder / "blind"


def run(repository: Path, *words: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(repository / "benchmarks" / "preference.py"), *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True)


def fill(folder: Path, choices: dict[str, str]) -> None:
    with (folder / "choices.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("sheet", "choice", "why"), *((s, c, "sharper") for s, c in choices.items())])


def test_sheets_show_the_same_place_of_three_pictures(made: Path) -> None:
    key = json.loads((made / "key.json").read_text())["sheets"]
    assert sorted(p.stem for p in made.glob("*.png")) == sorted(each["sheet"] for each in key)
    for each in key:
        assert {each["A"], each["B"]} == {"gic", "AVIF"}
        assert each["bytes"]["AVIF"] <= each["bytes"]["gic"]
        sheet = np.asarray(Image.open(made / f"{each['sheet']}.png")).astype(float)[-64:]
        original, a, b = (sheet[:, start : start + 64] for start in (0, 72, 144))
        left, top, right, bottom = each["box"]
        source = np.asarray(Image.open(made.parent / "pictures" / each["picture"]))[top:bottom, left:right]
        assert np.array_equal(original, source)
        assert 0 < np.abs(a - original).mean() < 40 and 0 < np.abs(b - original).mean() < 40
        assert (a != b).any()


def test_the_order_differs_between_sheets_and_follows_from_the_seed(made: Path, repository: Path) -> None:
    key = json.loads((made / "key.json").read_text())["sheets"]
    again = made.parent / "again"
    run(repository, "sheets", made.parent / "pictures", "--bpp", "1.0", "--side", "64", "-o", again)
    assert json.loads((again / "key.json").read_text())["sheets"] == key
    assert len({each["A"] for each in key}) == 2


def test_choices_are_counted_by_the_key(made: Path, repository: Path) -> None:
    key = json.loads((made / "key.json").read_text())["sheets"]
    letters = [next(letter for letter in "AB" if each[letter] == "gic") for each in key]
    fill(made, {each["sheet"]: letter for each, letter in zip(key, [*letters[:3], "="], strict=True)})
    output = made.parent / "preference.json"
    done = run(repository, "count", made, "--output", output)
    assert "1 bits per pixel: gic 3, AVIF 0, neither 1 (p = 0.250" in done.stdout
    report = json.loads(output.read_text())
    assert report["rates"] == [{"bpp": 1.0, "gic": 3, "AVIF": 0, "neither": 1, "p": 0.25}]
    assert sorted(each["preferred"] for each in report["sheets"]) == ["gic", "gic", "gic", "neither"]


def test_a_sheet_without_a_choice_is_named(made: Path, repository: Path) -> None:
    fill(made, {"001": "A", "002": "B", "003": "?", "004": "A"})
    done = run(repository, "count", made)
    assert done.returncode == 1 and "sheet 003 has no choice" in done.stderr
