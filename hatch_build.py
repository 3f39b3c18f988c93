"""Builds gic/_loops.so from _loops.c with the C compiler of the machine; without one the package loops in Python.

Environment:
    CC: The compiler: gcc, clang or one that takes their options; else the first of cc, gcc and clang on the PATH.
    GIC_REQUIRE_LOOPS: 1 makes it an error that the loops cannot be compiled.
    ARCHFLAGS, MACOSX_DEPLOYMENT_TARGET: On a Mac, as for any extension module.
"""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface
from hatchling.builders.macos import process_macos_plat_tag
from packaging.tags import platform_tags

SLOW = "entropy coding will run in Python, ten times as slowly, and the flow's posterior in NumPy, four times as slowly"


def compiler(system: str = sys.platform) -> list[str]:
    """The command of the C compiler and its options; empty if there is none."""
    chosen = os.environ.get("CC") or next(filter(shutil.which, ("cc", "gcc", "clang")), "")
    if not chosen:
        return []
    # The loops select between numbers computed for all elements, which compilers make vectors of where no float traps.
    options = ["-O3", "-fno-trapping-math", "-shared"]
    if system == "win32":
        options += ["-static-libgcc"]
    else:
        options += ["-fPIC"]
    if system == "darwin":
        options += shlex.split(os.environ.get("ARCHFLAGS", ""))
    return [*(shlex.split(chosen) if system != "win32" else [chosen]), *options]


def platform_tag() -> str:
    """This platform in a wheel's name; which manylinux it is, auditwheel finds out."""
    name = next(tag for tag in platform_tags() if "manylinux" not in tag and "musllinux" not in tag)
    return process_macos_plat_tag(name, compat=False) if sys.platform == "darwin" else name


class CompileLoops(BuildHookInterface):
    """Adds the compiled loops to the wheel, which then is one of this platform, for every Python."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Compile before the wheel is put together."""
        folder = Path(self.root) / "gic"
        target = folder / "_loops.so"
        target.unlink(missing_ok=True)
        if wrong := self._compile(folder / "_loops.c", target):
            if os.environ.get("GIC_REQUIRE_LOOPS") == "1":
                self.app.abort(f"{wrong}, and GIC_REQUIRE_LOOPS=1 asks for the loops")
            self.app.display_warning(f"{wrong}: {SLOW}")
            return
        build_data.update(pure_python=False, tag=f"py3-none-{platform_tag()}", artifacts=["gic/_loops.so"])

    def _compile(self, source: Path, target: Path) -> str:
        """Make ``target``; what went wrong, or nothing."""
        command = compiler()
        if not command:
            return "no C compiler found"
        # In a folder of its own, by names without a path: some linkers write more than one file, or keep the path.
        with tempfile.TemporaryDirectory() as folder:
            shutil.copy(source, folder)
            command += ["-o", target.name, source.name]
            try:
                done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
            except OSError as error:
                return f"{command[0]} does not start ({error})"
            made = Path(folder) / target.name
            if done.returncode != 0 or not made.is_file():
                return f"{shlex.join(command)} failed ({done.stderr.strip() or f'exit code {done.returncode}'})"
            shutil.copy(made, target)
        return ""
