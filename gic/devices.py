"""Where the networks run: a GPU that CUDA knows, or the CPU."""

from __future__ import annotations

import ctypes
import os
import sys
import warnings
from typing import TYPE_CHECKING, Any

from gic.errors import ConfigError

if TYPE_CHECKING:
    import torch

_FIRST_SPECIAL_STEP = 0xFFFFFFF0  # SLURM's numbers for its own steps: the job script, an interactive shell
_WHY = "a Mac's GPU (mps) has no float64, which the codec's posterior needs"


def gpu_present() -> bool:
    """Whether CUDA's driver knows a GPU; asked without PyTorch, whose import takes seconds."""
    try:
        driver = ctypes.CDLL("nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1")
        count = ctypes.c_int(0)
        return driver.cuInit(0) == 0 and driver.cuDeviceGetCount(ctypes.byref(count)) == 0 and count.value > 0
    except (OSError, AttributeError):
        return False


def automatic_device() -> str:
    """``cuda`` if there is one, else ``cpu``."""
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def check_device(device: torch.device) -> torch.device:
    """Return a device that the codec can run on.

    Raises:
        ConfigError: If it cannot; the text says what to use.
    """
    if device.type == "mps":
        raise ConfigError(f"{_WHY}: use the device cpu, or auto")
    return device


def check_accelerator(asked: Any) -> Any:
    """Turn what Lightning is asked to run on into what it may choose; ``auto`` passes a Mac's GPU over, and says so.

    Args:
        asked: Lightning's name of an accelerator, or one of its objects.

    Raises:
        ConfigError: If it asks for a Mac's GPU.
    """
    import torch

    mps = torch.backends.mps.is_available()
    if asked == "auto":
        chosen = automatic_device()
        if mps and chosen == "cpu" and os.environ.get("LOCAL_RANK", "0") == "0":
            print(f"running on the CPU: {_WHY}", file=sys.stderr)
        return chosen
    if asked == "gpu" and torch.cuda.is_available():
        return "cuda"
    if asked == "mps" or (asked == "gpu" and mps) or type(asked).__name__ == "MPSAccelerator":
        raise ConfigError(f"{_WHY}: use the accelerator cpu, or auto")
    return asked


def alone_without_srun() -> None:
    """Let Lightning run on this machine alone in a SLURM allocation whose ``srun`` has not started this process.

    In the shell of ``salloc`` and in a job script, the variables describe tasks that nobody has started: Lightning
    would wait for them, or refuse. It passes SLURM over in jobs of this name.
    """
    warnings.filterwarnings("ignore", message="The `srun` command is available")  # this says it where it matters
    started = os.environ.get("SLURM_STEP_ID", "")
    if "SLURM_NTASKS" not in os.environ or (started.isdecimal() and int(started) < _FIRST_SPECIAL_STEP):
        return
    if int(os.environ["SLURM_NTASKS"]) > 1 and os.environ.get("SLURM_JOB_NAME") not in ("bash", "interactive"):
        print(
            "srun has not started this: running on this machine alone (srun gic ... uses the whole job)",
            file=sys.stderr,
        )
    os.environ["SLURM_JOB_NAME"] = "interactive"
