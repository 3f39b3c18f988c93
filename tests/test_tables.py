"""Tables of numbers in the pages are those of the JSON files beside them."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from types import ModuleType

import pytest


@pytest.fixture(scope="module")
def tables(repository: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location("tables", repository / "docs" / "tools" / "tables.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_page_has_the_numbers_of_its_files(tables: ModuleType) -> None:
    found = tables.pages()
    assert {"README.md", "model-card.md", "samplers.md"} <= {path.name for path in found}
    old = [path.name for path in found if tables.filled(path.read_text()) != path.read_text()]
    assert not old, f"{old}: run python docs/tools/tables.py"


def test_a_number_that_was_changed_by_hand_is_found(tables: ModuleType, repository: Path) -> None:
    page = (repository / "README.md").read_text()
    start = page.index("<!-- table: kodak-short -->")
    number = re.search(r"\d\.\d{3}", page[start:])
    assert number is not None
    at = start + number.start()
    changed = page[:at] + "9.999" + page[at + 5 :]
    assert tables.filled(changed) == page


def test_means_are_those_of_the_pictures(tables: ModuleType) -> None:
    results = tables.load_results(tables.RESULTS / "kodak-benchmark.json")
    point = next(c for c in results.curves if c.name == "gic r=1").points[0]
    mean = sum(each.metrics["psnr"] for each in point.images.values()) / len(point.images)
    row = next(line for line in tables.kodak().splitlines() if line.startswith(f"| gic, r = 1 | {point.setting} |"))
    assert f"| {mean:.2f} |" in row


def test_every_marked_table_is_known(tables: ModuleType) -> None:
    with pytest.raises(KeyError):
        tables.filled("<!-- table: none -->\n<!-- /table -->")
