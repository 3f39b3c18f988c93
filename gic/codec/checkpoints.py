"""Weights in PyTorch: reading Lightning checkpoints and weights files, writing weights files that describe themselves.

Nothing in a file is executed or imported: only known classes are built (:mod:`gic.runtime.description`), or the user's
own from a trusted package, and only tensors and plain containers are unpickled.
"""

from __future__ import annotations

import json
import math
import re
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import save
from torch import Tensor

from gic.codec.weights_file import NO_CHECKPOINT, mapping, read_safetensors
from gic.errors import ConfigError
from gic.files import write_bytes
from gic.models.codec import Codec
from gic.runtime import description, pytorch
from gic.runtime.description import first_line
from gic.version import __version__

PREFIX = "codec."


class Weights(NamedTuple):
    """A codec on disk.

    Attributes:
        state: Parameters by name.
        config: ``class_path`` / ``init_args`` tree of the codec.
        provenance: Free-form facts: version, step, data, command.
    """

    state: dict[str, Tensor]
    config: dict[str, Any]
    provenance: dict[str, Any]


def read_weights(path: str | Path) -> Weights:
    """Read a Lightning checkpoint (``.ckpt``) or a weights file (``.safetensors``).

    Raises:
        ConfigError: If the file is missing, is neither, or does not hold a gic codec.
    """
    path = Path(path)
    if not path.is_file():
        raise ConfigError(f"no checkpoint {path}: name an existing .ckpt or .safetensors file")
    if path.suffix == ".safetensors":
        state, config, provenance = read_safetensors(path, "pt")
        return Weights(state, config, provenance)
    return _read_lightning(path)


def read_checkpoint(path: str | Path) -> dict[str, Any]:
    """Read a whole Lightning checkpoint on the CPU; only tensors and plain values are accepted, and no code is run.

    Raises:
        ConfigError: If it cannot be read, or holds anything else.
    """
    path = Path(path)
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many types for files it cannot read
        reason = first_line(error)
        if path.is_file() and not zipfile.is_zipfile(path):
            raise ConfigError(NO_CHECKPOINT.format(path)) from error
        if "eights only load failed" in reason:
            # The rest of torch's text explains how to force the read.
            named = re.search(r"GLOBAL (\S+)", str(error))
            reason = f"it holds more than tensors and plain values{f', {named[1]}' if named else ''}: refused"
        raise ConfigError(f"{path} cannot be read as a checkpoint: {reason}") from error
    if not isinstance(checkpoint, dict):
        raise ConfigError(f"{path} is no checkpoint of a gic codec: it holds a {type(checkpoint).__name__}")
    return checkpoint


def _read_lightning(path: Path) -> Weights:
    checkpoint = read_checkpoint(path)
    try:
        config = mapping(checkpoint["hyper_parameters"]["codec"])
        state = {n[len(PREFIX) :]: t for n, t in mapping(checkpoint["state_dict"]).items() if n.startswith(PREFIX)}
    except KeyError as error:
        raise ConfigError(f"{path} is no checkpoint of a gic codec: {error} is missing") from error
    except (TypeError, AttributeError) as error:
        raise ConfigError(f"{path} is no checkpoint of a gic codec: its layout is different") from error
    for name, tensor in state.items():
        if not isinstance(tensor, Tensor):
            raise ConfigError(f"{path} is no checkpoint of a gic codec: {name} is no tensor")
    return Weights(state, config, {"step": checkpoint.get("global_step")})


def validation_settings(path: str | Path, trust: str | Sequence[str] = ()) -> dict[str, Any]:
    """Settings of a checkpoint that a measurement uses: codec, levels, realism, metrics and lambda_0, each checked.

    Returns:
        Settings of :class:`gic.training.module.LitCodec`, those that the checkpoint has.

    Raises:
        ConfigError: If it cannot be read, or one of them is not what it should be.
    """
    weights, given = read_weights(path), read_checkpoint(path)["hyper_parameters"]
    settings: dict[str, Any] = {"codec": _described(path, weights.config, trust).tree()}
    for name in ("levels", "realism", "metrics"):
        if given.get(name) is None:
            continue
        values, right = given[name], _is_metric if name == "metrics" else _is_number
        if not isinstance(values, (list, tuple)) or not all(right(value, trust) for value in values):
            raise ConfigError(
                f"{path} does not say which {name} to measure: {name} must be a list of plain values"
                + (", or classes of packages that --trust names" if name == "metrics" else "")
            )
        settings[name] = list(values)
    objective = given.get("objective")
    arguments = objective.get("init_args") if isinstance(objective, Mapping) else None
    if isinstance(arguments, Mapping) and "lambda_0" in arguments:
        if not _is_number(arguments["lambda_0"]):
            raise ConfigError(f"{path} does not say what distortion weighs: lambda_0 must be a number")
        settings["objective"] = {
            "class_path": "gic.training.objective.Objective",
            "init_args": {"lambda_0": arguments["lambda_0"]},
        }
    return settings


def _is_number(value: Any, trust: str | Sequence[str] = ()) -> bool:
    return type(value) in (int, float) and math.isfinite(value)


def _is_metric(value: Any, trust: str | Sequence[str]) -> bool:
    """Whether a value names a metric: by its name, or as a class of a trusted package with plain arguments."""
    if isinstance(value, str):
        return "." not in value
    if not isinstance(value, Mapping) or set(value) - {"class_path", "init_args"}:
        return False
    package = str(value.get("class_path")).partition(".")[0]
    arguments = value.get("init_args") or {}
    values = arguments.values() if isinstance(arguments, Mapping) else [None]
    plain = all(isinstance(v, (bool, int, float)) or (isinstance(v, str) and "." not in v) for v in values)
    return plain and package in description.packages(trust)


def load_codec_state(path: str | Path) -> dict[str, Tensor]:
    """Parameters of the codec in a checkpoint or weights file to train on from, float32.

    Constants that files of earlier versions hold (``*.bound``) are left out: training takes those of the code.
    """
    state = read_weights(path).state
    return {name: tensor.float() for name, tensor in state.items() if not name.endswith(".bound")}


def build_codec(config: Mapping[str, Any], trust: str | Sequence[str] = ()) -> Codec:
    """Build an untrained codec from its ``class_path`` / ``init_args`` tree.

    Args:
        config: The tree.
        trust: Top-level packages whose classes may be imported, beside those of gic.

    Raises:
        ConfigError: If the tree names another class or does not describe a codec.
    """
    return pytorch.build(pytorch.described(config, trust))


def _described(path: str | Path, config: Mapping[str, Any], trust: str | Sequence[str]) -> description.Network:
    try:
        return pytorch.described(config, trust)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from error


def load_codec(path: str | Path, trust: str | Sequence[str] = ()) -> Codec:
    """Rebuild a trained codec from a checkpoint or weights file, float32, in evaluation mode, on the CPU.

    Args:
        path: The file.
        trust: Top-level packages whose classes the file may name, beside those of gic.

    Raises:
        ConfigError: If the file cannot be read, names other classes, or its parameters do not fit its description.
    """
    return _rebuilt(path, read_weights(path), trust)


def _rebuilt(path: str | Path, weights: Weights, trust: str | Sequence[str]) -> Codec:
    network = _described(path, weights.config, trust)
    try:
        codec = pytorch.build(network)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from error
    try:
        codec.load_state_dict({name: tensor.float() for name, tensor in weights.state.items()})
    except RuntimeError as error:
        problems = " ".join(" ".join(line.split()) for line in str(error).splitlines()[1:])
        problems = problems if len(problems) <= 300 else problems[:300] + " ..."
        raise ConfigError(f"the parameters in {path} do not fit the codec it describes: {problems}") from error
    return codec.eval()


def save_weights(
    path: str | Path,
    state: Mapping[str, Tensor],
    config: Mapping[str, Any],
    provenance: Mapping[str, Any] | None = None,
    dtype: torch.dtype = torch.float16,
) -> None:
    """Write a weights file, whole or not at all.

    Args:
        path: Where to; ends in ``.safetensors``.
        state: Parameters by name.
        config: ``class_path`` / ``init_args`` tree of the codec.
        provenance: Facts about the training, kept in the metadata.
        dtype: Type the parameters are stored in.

    Raises:
        ConfigError: If a parameter is not finite, or too large for ``dtype``.
    """
    about = json.dumps({"config": dict(config), "provenance": dict(provenance or {})}, sort_keys=True)
    tensors = {name: tensor.detach().to("cpu", dtype).contiguous() for name, tensor in state.items()}
    for name, tensor in tensors.items():
        if not bool(torch.isfinite(tensor).all()):
            if not bool(torch.isfinite(state[name]).all()):
                raise ConfigError(f"the parameter {name} is not finite: these weights are damaged, nothing is written")
            largest = float(state[name].detach().abs().max())
            raise ConfigError(
                f"the parameter {name} reaches {largest:g}, which {str(dtype).removeprefix('torch.')} cannot hold: "
                "nothing is written"
            )
    write_bytes(path, save(tensors, {"gic": about}))


def export_checkpoint(
    checkpoint: str | Path, output: str | Path, note: str | None = None, trust: str | Sequence[str] = ()
) -> None:
    """Write the codec of a checkpoint as a weights file, whole or not at all.

    Args:
        checkpoint: Training checkpoint.
        output: Weights file, ``.safetensors``.
        note: Where the weights come from, kept in the file.
        trust: Top-level packages whose classes the checkpoint may name, beside those of gic.

    Raises:
        ConfigError: If the checkpoint cannot be read, or its parameters are not those of its codec.
    """
    weights = read_weights(checkpoint)
    about = {**weights.provenance, "gic": __version__, "torch": str(torch.__version__)}
    # The checkpoint's own state is not used: older ones hold constants beside the parameters.
    state = _rebuilt(checkpoint, weights, trust).state_dict()
    save_weights(output, state, weights.config, about | ({"note": note} if note else {}))
