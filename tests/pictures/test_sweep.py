"""Damaged pictures of ten formats are pictures or errors of one line, without a crash and in little memory."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
from places import REPOSITORY


@pytest.mark.parametrize("count", [30, pytest.param(600, marks=pytest.mark.slow)])
def test_damaged_pictures_are_read_or_refused(count: int) -> None:
    command = [sys.executable, "tests/damaged_pictures.py", str(count), "0"]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["wrong"] == []
    assert found["pictures"] + found["errors"] == 10 * count
    assert min(found["pictures"], found["errors"]) > 2 * count
    assert found["memory_mib"] < 256
