"""What it takes to open a picture: disk space of the installation, and CPU time of commands from start to end.

    python benchmarks/start.py --output benchmarks/results/start.json

Builds a wheel of this checkout and installs it in an empty environment (which takes a network, or a local index). Sizes
are sums of the sizes of files, without pip itself; times are user and system CPU time of the process with all its
threads, the shortest of all rounds, on a warm disk.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from measuring import machine, save, show
from PIL import Image

from gic.data.synthetic import synthetic_image

ROOT = Path(__file__).resolve().parent.parent
OWN = ("pip", "setuptools", "pkg_resources", "_distutils_hack")
"""What an empty environment holds."""


def used(folder: Path) -> int:
    """Bytes of the files in a folder, but for pip's own."""
    files = (path for path in folder.rglob("*") if path.is_file() and not path.is_symlink())
    return sum(path.stat().st_size for path in files if not path.relative_to(folder).parts[0].startswith(OWN))


def cpu_seconds(words: list[str], folder: Path, rounds: int) -> float:
    """CPU time of a command."""
    times = []
    for _ in range(rounds + 1):
        before = os.times()
        subprocess.run(words, cwd=folder, check=True, capture_output=True, env=clean())
        after = os.times()
        spent = after.children_user + after.children_system - before.children_user - before.children_system
        times.append(spent)
    return min(times[1:])


def clean() -> dict[str, str]:
    """The environment without what would point to this checkout."""
    return {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "OMP_NUM_THREADS")}


def main() -> None:
    """Run all of it."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--rounds", type=int, default=5)
    options.add_argument("--output", help="JSON file to write")
    args = options.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        pip = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "-w", name, str(ROOT)]
        subprocess.run(pip, check=True)
        wheel = next(folder.glob("*.whl"))
        subprocess.run([sys.executable, "-m", "venv", str(folder / "env")], check=True)
        programs = folder / "env" / "bin"
        start = time.perf_counter()
        subprocess.run([programs / "pip", "install", "--quiet", str(wheel)], check=True, env=clean())
        installing = time.perf_counter() - start
        site = next((folder / "env" / "lib").glob("python*/site-packages"))
        packages = {path.name: used(path) for path in site.iterdir() if path.is_dir() and not path.name.startswith(OWN)}
        for size, label in (((64, 64), "64"), ((768, 512), "768")):
            image: Image.Image = synthetic_image(0, size=(size[1], size[0]))
            image.save(folder / f"{label}.png")
        gic = str(programs / "gic")
        commands = {
            "gic --help": [gic, "--help"],
            "gic compress, 64 x 64": [gic, "compress", "64.png", "--overwrite"],
            "gic compress, 768 x 512": [gic, "compress", "768.png", "--overwrite"],
            "gic info": [gic, "info", "768.gic"],
            "gic decompress, 64 x 64": [gic, "decompress", "64.gic", "-o", "64.out.png", "--overwrite"],
            "gic decompress, 768 x 512": [gic, "decompress", "768.gic", "-o", "768.out.png", "--overwrite"],
        }
        times = {label: cpu_seconds(words, folder, args.rounds) for label, words in commands.items()}
        listed = subprocess.run([programs / "pip", "list", "--format=json"], check=True, capture_output=True).stdout
        report = {
            "machine": {**machine("cpu"), "timing": "CPU time of the process, the shortest of all rounds, warm disk"},
            "installed_bytes": used(site),
            "wheel_bytes": wheel.stat().st_size,
            "install_seconds": installing,
            "largest": dict(sorted(packages.items(), key=lambda item: -item[1])[:8]),
            "packages": {each["name"]: each["version"] for each in json.loads(listed)},
            "cpu_seconds": times,
        }
    size = report["installed_bytes"]
    print(f"installed: {size / 1e6:.1f} MB ({size / 2**20:.1f} MiB) in {installing:.1f} s")
    show("CPU time", ("command", "s"), list(times.items()))
    save(report, args.output)


if __name__ == "__main__":
    main()
