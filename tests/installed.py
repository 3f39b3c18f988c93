"""Whether an installed wheel is whole: ``python tests/installed.py`` where gic is installed and nothing else need be.

The loops are compiled, a picture goes through ``gic compress`` and ``gic decompress`` without an import of torch, and
the page of ``gic demo`` is there with all its parts, and answers.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from urllib.request import Request, urlopen

import numpy as np
from PIL import Image

from gic.bitstream import rans


def installed_command() -> str:
    """Where the command of this installation is."""
    command = shutil.which("gic", path=Path(sys.executable).parent) or shutil.which("gic")
    assert command is not None, "the command gic is not installed"
    return command


def demo(picture: Path) -> None:
    """Start the demo, read its page and all that this names, and let it take its example."""
    command = [installed_command(), "demo", "--no-browser", "--port", "0", str(picture)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            said = process.stdout.readline()
            found = re.search(r"http://[\d.:]+/", said)
            assert found, f"gic demo says {said!r}"
            with urlopen(found[0]) as answer:
                parts = re.findall(r'(?:src|href)="([\w.]+)"', answer.read().decode())
            for part in parts:
                with urlopen(found[0] + part) as answer:
                    assert answer.read(), f"{part} of the demo is empty"
            assert len(parts) == 5, f"the page names {parts}"
            wish = b'{"page": "a", "number": 1, "example": 0}'
            with urlopen(Request(f"{found[0]}api/examples", wish, {"Origin": found[0].rstrip("/")})) as answer:
                events = answer.read().decode()
            assert '"width": 200' in events and '"done"' in events, f"the demo answers {events}"
        finally:
            process.terminate()


def gic(*arguments: str | Path) -> None:
    """Run the command of this installation, and check what it imports."""
    command = installed_command()
    environment = {**os.environ, "PYTHONPROFILEIMPORTTIME": "1"}
    done = subprocess.run([command, *map(str, arguments)], env=environment, capture_output=True, text=True, check=False)
    imported = re.findall(r"^import time:.*\| +(\S+)$", done.stderr, re.MULTILINE)
    said = re.sub(r"^import time:.*\n", "", done.stderr, flags=re.MULTILINE)
    assert done.returncode == 0, f"gic {arguments[0]} ended with {done.returncode}: {said}"
    assert "numpy" in imported and "torch" not in imported, (
        f"gic {arguments[0]} imports torch, or this check sees nothing"
    )


def main() -> None:
    """Check all of it; the first that is wrong is an AssertionError."""
    assert rans.COMPILED, "the wheel has no compiled loops, or they do not load"
    y, x = np.mgrid[0:150, 0:200] / 200
    waves = 128 + 100 * np.stack([np.sin(9 * x + 5 * y), np.cos(7 * x * y), np.sin(20 * y - 3 * x)], -1)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        Image.fromarray(waves.astype(np.uint8)).save(folder / "picture.png")
        gic("compress", folder / "picture.png", "-o", folder / "picture.gic", "--quality", "90")
        gic("decompress", folder / "picture.gic", "-o", folder / "again.png", "--realism", "0")
        demo(folder / "picture.png")
        size = (folder / "picture.gic").stat().st_size
        again = np.asarray(Image.open(folder / "again.png").convert("RGB"), np.float64)
    assert again.shape == waves.shape, f"the picture came back with shape {again.shape}"
    psnr = 10 * np.log10(255**2 / np.mean((again - waves.astype(np.uint8)) ** 2))
    assert psnr > 30, f"the picture came back with {psnr:.1f} dB"
    assert 0 < size < waves.size, f"the file has {size} bytes"
    print(f"gic is whole: {size} bytes, {psnr:.1f} dB")


if __name__ == "__main__":
    main()
