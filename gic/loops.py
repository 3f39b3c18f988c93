"""The inner loops in C (``_loops.c``), for installations with a compiler.

Each has a counterpart in Python beside its caller. ctypes gives the interpreter's lock back while a loop runs, so that
threads run loops side by side.
"""

from __future__ import annotations

import ctypes
from pathlib import Path

import numpy as np


def _compiled() -> ctypes.CDLL | None:
    """The library, or None if this installation has none that this machine can run."""
    try:
        found = ctypes.CDLL(str(Path(__file__).with_name("_loops.so")))
    except OSError:
        return None
    state, size = ctypes.POINTER(ctypes.c_uint64), ctypes.c_size_t
    numbers, words, floats = (np.ctypeslib.ndpointer(kind, flags="C") for kind in (np.int32, np.uint16, np.float32))
    found.gic_rans_encode.argtypes = [state, numbers, numbers, size, words]
    found.gic_rans_decode.argtypes = [state, words, size, numbers, numbers, numbers, size, numbers]
    found.gic_rans_encode.restype = found.gic_rans_decode.restype = size
    found.gic_truncated_normal_mean.argtypes = [floats, floats, size, floats, floats, size, floats]
    found.gic_truncated_normal_mean.restype = None
    return found


library = _compiled()
"""The loops in C, or None."""
