"""How many threads and pictures at a time a machine has room for."""

from __future__ import annotations

import os
from pathlib import Path

PICTURE_MEMORY = 1 << 30
"""Memory that coding one picture takes at most, about, in bytes: of a piece, or of a tile of a larger one."""


def available_threads() -> int:
    """Number of cores that this process may use; the environment variable OMP_NUM_THREADS sets another."""
    given = os.environ.get("OMP_NUM_THREADS", "")
    if given.isdecimal() and int(given) > 0:
        return int(given)
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def limit_blas(threads: int) -> None:
    """Let NumPy's matrix products use so many threads, in the whole process."""
    from threadpoolctl import threadpool_limits

    threadpool_limits(threads, "blas")


def pictures_at_once(most: int) -> int:
    """How many pictures fit into the memory that is free, from 1 to ``most``."""
    free = _free_memory()
    return most if free is None else max(1, min(most, free // PICTURE_MEMORY))


def _free_memory() -> int | None:
    """Free memory in bytes, where the system tells."""
    try:
        lines = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
        return int(lines["MemAvailable"].split()[0]) << 10
    except (OSError, KeyError, ValueError):
        return None
