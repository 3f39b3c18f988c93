"""Time and memory of one call, synchronised with the device (DESIGN 10)."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Generic, NamedTuple, TypeVar

import torch

T = TypeVar("T")


class Timed(NamedTuple, Generic[T]):
    """Result and cost of a call.

    Attributes:
        value: Its return value.
        seconds: Wall-clock time.
        peak_bytes: Peak memory beyond the memory in use before, of the GPU if there is one, else of the process;
            None if the system does not report it.
    """

    value: T
    seconds: float
    peak_bytes: int | None


def timed(call: Callable[[], T], device: torch.device) -> Timed[T]:
    """Run ``call`` and measure it.

    >>> timed(lambda: 6 * 7, torch.device("cpu")).value
    42
    """
    before = _reset(device)
    start = time.perf_counter()
    value = call()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    seconds = time.perf_counter() - start
    peak = _peak(device)
    return Timed(value, seconds, None if before is None or peak is None else max(0, peak - before))


def _reset(device: torch.device) -> int | None:
    """Bytes in use now; resets the peak."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        return torch.cuda.memory_allocated(device)
    try:
        Path("/proc/self/clear_refs").write_text("5")  # Linux: resets VmHWM, the peak of resident memory
    except OSError:
        return None
    return _status("VmRSS")


def _peak(device: torch.device) -> int | None:
    return torch.cuda.max_memory_allocated(device) if device.type == "cuda" else _status("VmHWM")


def _status(field: str) -> int | None:
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith(field + ":")), None)
