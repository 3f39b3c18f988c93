"""Weights files: parameters in safetensors and, in its metadata, the description that rebuilds the codec.

The description is the ``class_path`` / ``init_args`` tree of the config that the codec was trained with. Nothing in a
file is executed or imported.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from safetensors import SafetensorError, safe_open

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
            state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        about = json.loads(metadata["gic"])
        return state, mapping(about["config"]), mapping(about.get("provenance", {}))
    except (SafetensorError, OSError) as error:
        raise ConfigError(f"{path} cannot be read as safetensors: {first_line(error)}") from error
    except (KeyError, ValueError, TypeError, AttributeError, RecursionError) as error:
        raise ConfigError(f"{path} holds no description of a gic codec in its metadata") from error


def mapping(value: Any) -> dict[str, Any]:
    """A mapping as a dictionary.

    Raises:
        TypeError: If it is none.
    """
    if not isinstance(value, Mapping):
        raise TypeError("no mapping")
    return dict(value)
