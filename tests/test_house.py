"""The package keeps its shape: imports point down through the wings, none in a circle; the printed tree is real."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import gic

PACKAGE = Path(gic.__file__).parent
GROUND = ("errors", "files", "version", "names", "configs", "devices", "loops")
"""Imported by anyone; they import each other alone."""
WINGS = (
    "method",
    "models",
    "pictures",
    "bitstream",
    "runtime",
    "codec",
    "data",
    "quality",
    "training",
    "benchmark",
    "demo",
    "commands",
    "compat",
)
"""From the lowest floor to the highest: a module imports from its own wing and from those before it."""
FACES = ("__init__", "__main__", "pillow")
"""Modules at the top that only hand on what people import."""


def modules(package: Path = PACKAGE) -> dict[str, Path]:
    """Every module by its dotted name below gic, but the faces of the package and of its wings."""
    names = {".".join(path.relative_to(package).with_suffix("").parts): path for path in package.rglob("*.py")}
    return {name: path for name, path in names.items() if name not in FACES and not name.endswith("__init__")}


def imports(path: Path, known: dict[str, Path], package: str = "gic") -> set[str]:
    """Modules of the package that a file imports anywhere: at its top, in functions, for type checkers."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are absolute here"
            names = [str(node.module), *(f"{node.module}.{alias.name}" for alias in node.names)]
        else:
            continue
        found |= {name.removeprefix(f"{package}.") for name in names if name.startswith(f"{package}.")}
    return {name for name in found if name in known}


def arrows(package: Path = PACKAGE) -> dict[str, set[str]]:
    """What each module imports."""
    known = modules(package)
    return {name: imports(path, known, package.name) for name, path in known.items()}


def floor(name: str) -> int:
    wing = name.partition(".")[0]
    return -1 if wing in GROUND else WINGS.index(wing)


def upward(graph: dict[str, set[str]]) -> list[str]:
    """Arrows that run up, or sideways between wings."""
    return [f"{a} -> {b}" for a, targets in sorted(graph.items()) for b in sorted(targets) if floor(b) > floor(a)]


def circle(graph: dict[str, set[str]]) -> list[str]:
    """Modules that import each other in a loop; empty if there is none."""
    done: set[str] = set()

    def visit(name: str, path: list[str]) -> list[str]:
        if name in path:
            return [*path[path.index(name) :], name]
        if name in done:
            return []
        for target in sorted(graph[name]):
            if found := visit(target, [*path, name]):
                return found
        done.add(name)
        return []

    return next((found for name in sorted(graph) if (found := visit(name, []))), [])


def test_every_module_has_a_floor() -> None:
    tops = {name.partition(".")[0] for name in modules()}
    assert tops == {*GROUND, *WINGS}, (
        "a module belongs in a wing; a new wing has its place in WINGS, by what it imports"
    )


def test_imports_point_down_and_none_runs_in_a_circle() -> None:
    graph = arrows()
    assert upward(graph) == [], "a module imports from its own wing and from lower ones: move what both need down"
    assert circle(graph) == [], "modules import each other in a circle: move what they share to a lower one"
    assert sum(map(len, graph.values())) > 100  # they were found at all


def test_the_method_imports_nothing_but_the_errors() -> None:
    for name, targets in arrows().items():
        if name.startswith("method."):
            assert {target for target in targets if not target.startswith("method.")} <= {"errors"}, name


def test_the_checks_see_what_they_forbid(tmp_path: Path) -> None:
    package = tmp_path / "gic"
    for wing in ("method", "models"):
        (package / wing).mkdir(parents=True)
    (package / "method" / "low.py").write_text("def late():\n    from gic.models import high\n")
    (package / "models" / "high.py").write_text("from gic.method.low import late\n")
    graph = arrows(package)
    assert upward(graph) == ["method.low -> models.high"]
    assert circle(graph) == ["method.low", "models.high", "method.low"]


def test_the_tree_in_contributing_is_the_real_one(repository: Path) -> None:
    text = (repository / "CONTRIBUTING.md").read_text()
    (tree,) = re.findall(r"```\n(gic/\n.*?)```", text, re.DOTALL)
    listed: dict[str, set[str]] = {}
    wing = ""
    for line in tree.splitlines()[1:]:
        if match := re.match(r"  (\w+)/ ", line):
            wing = match[1]
            listed[wing] = set()
        elif match := re.match(r"  (\w[\w, .]*?\.py)  ", line):
            listed.setdefault("", set()).update(re.findall(r"(\w+)\.py", match[1]))
        elif match := re.match(r"    (\w+)\.py ", line):
            listed[wing].add(match[1])
    real: dict[str, set[str]] = {}
    for name in modules():
        top, _, rest = name.partition(".")
        real.setdefault(top if rest else "", set()).add(rest or top)
    real[""] |= set(FACES)
    wrong = [
        f"{wing}/{name}.py" for wing in {*listed, *real} for name in listed.get(wing, set()) ^ real.get(wing, set())
    ]
    assert not wrong, f"the tree in CONTRIBUTING.md is to have a line for every module and no other: {sorted(wrong)}"
