"""What a weights file holds: parameters in safetensors, and in its metadata the description that rebuilds the codec."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, deserialize, safe_open

from gic.errors import ConfigError
from gic.runtime.description import first_line

NO_CHECKPOINT = (
    "{} cannot be read as a checkpoint: it is neither a training checkpoint (.ckpt) nor a weights file (.safetensors), "
    "or it is cut short"
)
"""What is wrong with any other file."""


def read_safetensors(
    path: Path, framework: Literal["np", "pt"]
) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
    """Read a weights file.

    Args:
        path: The file.
        framework: Whose arrays to make of the parameters, NumPy's or PyTorch's.

    Returns:
        Parameters by name, the description of the codec, and facts about the training.

    Raises:
        ConfigError: If it cannot be read, or does not hold a gic codec.
    """
    try:
        with safe_open(path, framework=framework) as file:
            metadata = file.metadata() or {}
            names = list(file.keys())
            about = json.loads(metadata["gic"])
            config, provenance = mapping(about["config"]), mapping(about.get("provenance", {}))
            if framework == "np" and any(file.get_slice(name).get_dtype() == "BF16" for name in names):
                return _without_bfloat16(path), config, provenance
            return {name: file.get_tensor(name) for name in names}, config, provenance
    except (SafetensorError, OSError) as error:
        raise ConfigError(f"{path} cannot be read as safetensors: {first_line(error)}") from error
    except (KeyError, ValueError, TypeError, AttributeError, RecursionError) as error:
        raise ConfigError(f"{path} holds no description of a gic codec in its metadata") from error


def is_weights_file(path: Path) -> bool:
    """Whether a file holds a gic codec; reads no parameter."""
    try:
        with safe_open(path, framework="np") as file:
            return "gic" in (file.metadata() or {})
    except (SafetensorError, OSError):
        return False


_KINDS = {"F16": "<f2", "F32": "<f4", "F64": "<f8"}


def _without_bfloat16(path: Path) -> dict[str, NDArray[Any]]:
    """Parameters of a file with some in bfloat16, which NumPy has not: float32 instead."""
    state: dict[str, NDArray[Any]] = {}
    for name, view in deserialize(path.read_bytes()):  # type: ignore[no-untyped-call]
        if view["dtype"] == "BF16":  # the upper half of float32
            array = (np.frombuffer(view["data"], "<u2").astype("<u4") << 16).view("<f4")
        else:
            array = np.frombuffer(view["data"], _KINDS[view["dtype"]])
        state[name] = array.reshape(view["shape"])
    return state


def mapping(value: Any) -> dict[str, Any]:
    """A mapping as a dictionary.

    Raises:
        TypeError: If it is none.
    """
    if not isinstance(value, Mapping):
        raise TypeError("no mapping")
    return dict(value)
