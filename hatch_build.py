"""Builds gic/_loops.so from _loops.c with the C compiler of the machine; without one the package loops in Python."""

from __future__ import annotations

import os
import shutil
import subprocess
import sysconfig
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface


class CompileLoops(BuildHookInterface):
    """Adds the compiled loops to the wheel, which then is one of this platform."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Compile before the wheel is put together."""
        folder = Path(self.root) / "gic"
        target = folder / "_loops.so"
        compiler = os.environ.get("CC") or next(filter(shutil.which, ("cc", "gcc", "clang")), None)
        target.unlink(missing_ok=True)
        if compiler is None:
            self.app.display_warning("no C compiler: entropy coding will run in Python, ten times as slowly")
            return
        command = [
            *compiler.split(),
            "-O3",
            "-fno-trapping-math",
            "-shared",
            "-fPIC",
            "-o",
            str(target),
            str(folder / "_loops.c"),
        ]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            self.app.display_warning(f"entropy coding will run in Python: {done.stderr}")
            return
        platform = sysconfig.get_platform().replace("-", "_").replace(".", "_")
        build_data.update(pure_python=False, tag=f"py3-none-{platform}", artifacts=["gic/_loops.so"])
