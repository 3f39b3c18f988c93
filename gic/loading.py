"""Finding weights and making a codec of them."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from gic.codec import ImageCodec
from gic.errors import ConfigError

CHECKPOINT_VARIABLE = "GIC_CHECKPOINT"
PACKAGED = Path(__file__).parent / "weights"


def default_checkpoint() -> Path:
    """Weights to use when none are named: those of the environment variable, else those in the package.

    Raises:
        ConfigError: If there are none; the text says how to get some.
    """
    named = os.environ.get(CHECKPOINT_VARIABLE)
    if named:
        return Path(named)
    return shipped_weights()


def shipped_weights() -> Path:
    """Weights that come with the package.

    Raises:
        ConfigError: If there are none; the text says how to get some.
    """
    shipped = sorted(PACKAGED.glob("*.safetensors"))
    if not shipped:
        raise ConfigError(
            "this installation has no weights of its own: name a checkpoint (--checkpoint FILE, or the environment "
            f"variable {CHECKPOINT_VARIABLE}), or train one: gic fit --config configs/base.yaml"
        )
    return shipped[-1]


def load(checkpoint: str | Path | None = None, device: str = "auto", trust: str | Sequence[str] = ()) -> ImageCodec:
    """Make a codec of trained weights.

    Args:
        checkpoint: Training checkpoint (``.ckpt``) or weights file (``.safetensors``); by default the file that the
            environment variable GIC_CHECKPOINT names, else the weights in the package.
        device: Where the networks run: ``auto``, ``cpu``, ``cuda``, ...
        trust: Packages of your own whose classes the file may name; nothing else that it names is imported.

    Raises:
        ConfigError: If there are no weights or they cannot be used.
    """
    from gic.checkpoint import load_codec

    return ImageCodec(load_codec(default_checkpoint() if checkpoint is None else checkpoint, trust), device)
