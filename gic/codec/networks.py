"""The networks of trained weights: which file, and what runs them."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Literal
from zipfile import is_zipfile

from gic.codec.weights_file import NO_CHECKPOINT, read_safetensors
from gic.devices import gpu_present
from gic.errors import ConfigError, MissingExtraError, require
from gic.runtime.networks import Networks

Runtime = Literal["auto", "onnx", "torch"]
"""What runs the networks: ``onnx`` on CPUs, ``torch`` on any device; ``auto`` takes ``torch`` where there is a GPU."""


def load_networks(
    path: Path,
    device: str = "auto",
    trust: str | Sequence[str] = (),
    *,
    runtime: Runtime = "auto",
    threads: int | None = None,
    precision: Literal["float32", "bfloat16"] = "float32",
) -> Networks:
    """Read a file of weights and make its networks ready; the other arguments are those of :func:`gic.load`.

    Args:
        path: Weights file or training checkpoint.
        device: Where they run.
        trust: Packages whose classes the file may name.
        runtime: What runs them.
        threads: Number of threads of ONNX Runtime.
        precision: Of the networks in PyTorch.

    Raises:
        ConfigError: If the weights cannot be used.
        MissingExtraError: If they need PyTorch and it is not installed.
    """
    if runtime not in ("auto", "onnx", "torch"):
        raise ConfigError(f"the runtime must be auto, onnx or torch, not {runtime!r}")
    if threads is not None and (not isinstance(threads, int) or threads < 1):
        raise ConfigError(f"the number of threads must be an integer of at least 1, not {threads!r}")
    device = str(device)  # torch.device too
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

        return TorchNetworks(load_codec(path, trust), device, precision)
    from gic.runtime.onnx import OnnxNetworks

    if not path.is_file():
        raise ConfigError(f"no checkpoint {path}: name an existing .ckpt or .safetensors file")
    state, config, _ = read_safetensors(path, "np")
    try:
        return OnnxNetworks(state, config, threads)
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
