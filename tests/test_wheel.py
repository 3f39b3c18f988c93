"""What pip installs: a wheel of this platform with the loops for every Python, or a pure one where none compile."""

from __future__ import annotations

import ctypes
import os
import re
import runpy
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from places import REPOSITORY

needs_compiler = pytest.mark.skipif(
    not any(map(shutil.which, ("cc", "gcc", "clang"))), reason="this machine has no C compiler"
)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """What of the repository a wheel is built from, with few modules."""
    folder = tmp_path / "source"
    (folder / "gic").mkdir(parents=True)
    for name in ("pyproject.toml", "hatch_build.py", "README.md", "LICENSE", ".gitignore"):
        shutil.copy(REPOSITORY / name, folder)
    (folder / "docs").mkdir()
    shutil.copy(REPOSITORY / "docs" / "gic.1", folder / "docs")
    for name in ("__init__.py", "version.py", "_loops.c"):
        shutil.copy(REPOSITORY / "gic" / name, folder / "gic")
    (folder / "gic" / "_loops.so").write_bytes(b"of another machine")
    return folder


def build(source: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Build the wheel into ``dist`` beside the source."""
    kept = {name: value for name, value in os.environ.items() if name not in ("CC", "GIC_REQUIRE_LOOPS")}
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(source.parent / "dist")]
    return subprocess.run(command, cwd=source, env={**kept, **environment}, capture_output=True, text=True, check=False)


def wheel(source: Path) -> Path:
    (found,) = (source.parent / "dist").iterdir()
    return found


@needs_compiler
def test_the_wheel_has_the_loops_and_is_for_this_platform_and_every_python(source: Path, tmp_path: Path) -> None:
    done = build(source, GIC_REQUIRE_LOOPS="1")
    assert done.returncode == 0, done.stderr
    assert re.search(r"-py3-none-(linux|macosx|win)\w+\.whl$", wheel(source).name)
    with zipfile.ZipFile(wheel(source)) as archive:
        loops = archive.extract("gic/_loops.so", tmp_path / "installed")
        assert any(name.endswith(".data/data/share/man/man1/gic.1") for name in archive.namelist())  # man gic
        assert (
            "Root-Is-Purelib: false"
            in archive.read(next(name for name in archive.namelist() if name.endswith("/WHEEL"))).decode()
        )
    library = ctypes.CDLL(loops)
    assert all(hasattr(library, f"gic_{name}") for name in ("rans_encode", "rans_decode", "truncated_normal_mean"))
    data = Path(loops).read_bytes()
    for path in (tmp_path, REPOSITORY, Path.home(), Path(sys.prefix)):
        assert len(path.parts) < 2 or os.fsencode(path) not in data
    assert os.fsencode(os.path.realpath(os.environ.get("TMPDIR", "/tmp"))) + b"/" not in data


@pytest.mark.parametrize("environment", [{"CC": "false"}, {"CC": "no-such-compiler"}, {"PATH": ""}], ids=str)
def test_without_a_compiler_the_wheel_is_pure_and_says_what_is_slow(source: Path, environment: dict[str, str]) -> None:
    done = build(source, **environment)
    assert done.returncode == 0, done.stderr
    assert wheel(source).name.endswith("-py3-none-any.whl")
    with zipfile.ZipFile(wheel(source)) as archive:
        assert not any(name.endswith(".so") for name in archive.namelist())
    assert "as slowly" in done.stdout + done.stderr


@pytest.mark.parametrize("environment", [{"CC": "false"}, {"PATH": ""}], ids=str)
def test_loops_that_are_required_make_their_absence_an_error(source: Path, environment: dict[str, str]) -> None:
    done = build(source, GIC_REQUIRE_LOOPS="1", **environment)
    assert done.returncode != 0
    assert "GIC_REQUIRE_LOOPS" in done.stdout + done.stderr
    assert not (source.parent / "dist").exists() or not list((source.parent / "dist").iterdir())


@pytest.mark.parametrize(("system", "its_own"), [("linux", "-fPIC"), ("darwin", "-arch"), ("win32", "-static-libgcc")])
def test_each_system_has_its_options(system: str, its_own: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CC", "ccache gcc")
    monkeypatch.setenv("ARCHFLAGS", "-arch arm64 -arch x86_64")
    command = runpy.run_path(str(REPOSITORY / "hatch_build.py"))["compiler"](system)
    assert its_own in command and "-shared" in command
    assert (command.count("-arch"), command.count("-fPIC")) == {"linux": (0, 1), "darwin": (2, 1), "win32": (0, 0)}[
        system
    ]
    assert command[0] == ("ccache gcc" if system == "win32" else "ccache")  # whose paths have spaces
