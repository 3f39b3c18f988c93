"""The speed benchmarks run, on sizes that say nothing about speed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

TINY = {
    "codec_speed": ["--codecs", "JPEG", "--size", "128", "64"],
    "train_speed": ["--crop", "64", "--batch", "1", "--steps", "1", "--workers", "0"],
    "memory": ["--megapixels", "0.01", "--batches", "1", "--crop", "64"],
    "loading": ["--crop", "64", "--images", "8", "--workers"],
    "gpu": ["--crop", "64", "--batch", "1", "--steps", "1", "--workers", "1", "--no-compile"],
}


@pytest.mark.slow
@pytest.mark.parametrize("name", TINY)
def test_a_benchmark_writes_its_numbers(name: str, tmp_path: Path, repository: Path) -> None:
    output = tmp_path / "out.json"
    words = [sys.executable, str(repository / "benchmarks" / f"{name}.py"), "--device", "cpu", "--rounds", "1"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*words, "--output", str(output), *TINY[name]], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-3000:]
    report = json.loads(output.read_text())
    assert "timing" in report["machine"]

    def numbers(value: object) -> list[float]:
        if isinstance(value, dict):
            return [n for v in value.values() for n in numbers(v)]
        if isinstance(value, list):
            return [n for v in value for n in numbers(v)]
        return [value] if isinstance(value, float) else []

    assert numbers(report) and all(n >= 0 for n in numbers(report))
