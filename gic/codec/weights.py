"""Making a codec of trained weights: which file, and what runs its networks."""

from __future__ import annotations

import os
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Literal
from zipfile import is_zipfile

from gic.codec.image_codec import ImageCodec
from gic.codec.weights_file import NO_CHECKPOINT, read_safetensors
from gic.devices import gpu_present
from gic.errors import ConfigError, MissingExtraError, require

Runtime = Literal["auto", "onnx", "torch"]
"""What runs the networks: ``onnx`` on CPUs, ``torch`` on any device; ``auto`` takes ``torch`` where there is a GPU."""


CHECKPOINT_VARIABLE = "GIC_CHECKPOINT"
PACKAGED = Path(__file__).parents[1] / "weights"


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


def load(
    checkpoint: str | Path | None = None,
    device: str = "auto",
    trust: str | Sequence[str] = (),
    *,
    runtime: Runtime = "auto",
    threads: int | None = None,
    precision: Literal["float32", "bfloat16"] = "float32",
) -> ImageCodec:
    """Make a codec of trained weights.

    Args:
        checkpoint: Weights file (``.safetensors``) or training checkpoint (``.ckpt``), which needs PyTorch; by default
            the file that the environment variable GIC_CHECKPOINT names, else the weights in the package.
        device: Where the networks run: ``auto``, ``cpu``, ``cuda``, ...
        trust: Packages of your own whose classes the file may name, which needs PyTorch; nothing else that it names is
            imported.
        runtime: ``onnx`` (ONNX Runtime, on CPUs), ``torch`` (PyTorch, any device), or ``auto``: PyTorch where it is
            installed and there is a GPU, or the weights need it, else ONNX Runtime. Files do not depend on it.
        threads: Number of threads of ONNX Runtime for one picture; all cores if left out.
        precision: ``bfloat16`` runs the networks in PyTorch faster on a GPU, and pixels differ by a few levels.

    Raises:
        ConfigError: If there are no weights or they cannot be used.
        MissingExtraError: If they need PyTorch and it is not installed.
    """
    if runtime not in ("auto", "onnx", "torch"):
        raise ConfigError(f"the runtime must be auto, onnx or torch, not {runtime!r}")
    if threads is not None and (not isinstance(threads, int) or threads < 1):
        raise ConfigError(f"the number of threads must be an integer of at least 1, not {threads!r}")
    device = str(device)  # torch.device too
    path = Path(default_checkpoint() if checkpoint is None else checkpoint)
    need = "bfloat16 needs PyTorch" if precision != "float32" else _torch_needed(path, device, trust)
    if runtime == "onnx" and need:
        raise ConfigError(f"{need}, which ONNX Runtime does not run: leave the runtime out")
    if need or runtime == "torch" or (runtime == "auto" and device == "auto" and _torch_on_gpu()):
        try:
            require("torch", "torch")
        except MissingExtraError as error:
            raise MissingExtraError(f"{need}: {error}" if need else str(error)) from None
        from gic.codec.checkpoints import load_codec
        from gic.runtime.pytorch import TorchNetworks

        return ImageCodec(TorchNetworks(load_codec(path, trust), device, precision))
    from gic.runtime.onnx import OnnxNetworks

    if not path.is_file():
        raise ConfigError(f"no checkpoint {path}: name an existing .ckpt or .safetensors file")
    state, config, _ = read_safetensors(path, "np")
    try:
        return ImageCodec(OnnxNetworks(state, config, threads))
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from error


def _torch_needed(path: Path, device: str, trust: str | Sequence[str]) -> str:
    """Why these settings need PyTorch; empty if they do not."""
    if trust:
        return "networks of packages of your own need PyTorch"
    if device not in ("auto", "cpu"):
        return f"the device {device} needs PyTorch"
    if path.suffix == ".safetensors" or not path.is_file():
        return ""
    if not is_zipfile(path):
        raise ConfigError(NO_CHECKPOINT.format(path))
    return f"{path} is a training checkpoint, which needs PyTorch"


def _torch_on_gpu() -> bool:
    return gpu_present() and find_spec("torch") is not None
