"""What documents, configs and scripts name is there: files, folders, modules, classes."""

from __future__ import annotations

import importlib
import re
from pathlib import Path

import pytest
from places import REPOSITORY

NAMED_TODAY = [
    path
    for pattern in (
        "*.md",
        "docs/**/*.md",
        "examples/*.py",
        "slurm/*",
        "recipes/*",
        "configs/**/*.yaml",
        "data/*.md",
        "benchmarks/*.py",
        ".ci/*",
        "gic/**/*.py",
    )
    for path in sorted(REPOSITORY.glob(pattern))
    if path.is_file() and path.name not in ("CHANGELOG.md", "names.py")  # which list old names
]
FOLDERS = ("gic", "tests", "configs", "docs", "benchmarks", "examples", "recipes", "slurm")
FILE = re.compile(
    rf"(?<!--output )(?<!-o )(?<![\w/.~$-])(?:\.\./)?((?:{'|'.join(FOLDERS)})/[\w./-]*[\w/])(?![\w*{{<$])"
)
TEST = re.compile(r"(tests/[\w/]+\.py)::(\w+)")
NAME = re.compile(r"(?<![\w/.-])(gic(?:\.\w+)+)(?!\w|/|\()")


def missing_files(text: str, folder: Path) -> list[str]:
    """Paths of the repository in a text that lead nowhere, from its root or from the text's folder."""
    return [
        name
        for name in FILE.findall(text)
        if not any((base / name).exists() for base in (REPOSITORY, folder, folder.parent)) and "NAME" not in name
    ]


def missing_names(text: str) -> list[str]:
    """Dotted names below gic in a text that cannot be imported."""
    missing = []
    for name in NAME.findall(text):
        parts = name.split(".")
        for count in range(len(parts), 0, -1):
            try:
                value = importlib.import_module(".".join(parts[:count]))
            except ModuleNotFoundError:
                continue
            for part in parts[count:]:
                value = getattr(value, part, None)
            if value is None and parts[-1] not in ("sif", "def", "safetensors", "py", "1"):
                missing.append(name)
            break
    return missing


def missing_tests(text: str) -> list[str]:
    """Tests that a text names as ``tests/FILE.py::NAME`` and that are not there."""
    return [
        f"{file}::{name}"
        for file, name in TEST.findall(text)
        if not (REPOSITORY / file).is_file() or f"def {name}(" not in (REPOSITORY / file).read_text()
    ]


@pytest.mark.parametrize("path", NAMED_TODAY, ids=lambda path: path.relative_to(REPOSITORY).as_posix())
def test_what_a_document_names_is_there(path: Path) -> None:
    text = path.read_text()
    assert missing_files(text, path.parent) == []
    assert missing_names(text) == []
    assert missing_tests(text) == []


def test_the_check_sees_what_is_not_there() -> None:
    assert missing_files("see gic/sde.py and docs/format.md, `configs/nowhere.yaml`", REPOSITORY) == [
        "gic/sde.py",
        "configs/nowhere.yaml",
    ]
    assert missing_names("gic.method.sde.velocity, gic.sde, gic.load and gic.training.EMA") == [
        "gic.sde",
        "gic.training.EMA",
    ]
    here = "tests/test_documents.py"
    assert missing_tests(f"`{here}::test_that_there_is_not`, {here}::missing_files") == [
        f"{here}::test_that_there_is_not"
    ]


def test_the_readme_is_read_in_a_minute() -> None:
    assert (REPOSITORY / "README.md").read_text().count("\n") < 150
