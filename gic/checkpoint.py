"""Weights on disk: reading Lightning checkpoints and safetensors, writing safetensors that describe themselves.

A weights file holds the codec's parameters and, in its metadata, the ``class_path`` / ``init_args`` tree that rebuilds
it. Only classes of gic are built from a file, and nothing is unpickled but tensors and plain containers.
"""

from __future__ import annotations

import json
import zipfile
from argparse import ArgumentParser, Namespace
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jsonargparse
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from gic import __version__
from gic.errors import ConfigError
from gic.files import replacing
from gic.model import Codec

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
        return _read_safetensors(path)
    return _read_lightning(path)


def _read_safetensors(path: Path) -> Weights:
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        about = json.loads(metadata["gic"])
        return Weights(state, about["config"], about.get("provenance", {}))
    except (SafetensorError, OSError) as error:
        raise ConfigError(f"{path} cannot be read as safetensors: {error}") from error
    except (KeyError, ValueError, TypeError) as error:
        raise ConfigError(f"{path} holds no description of a gic codec in its metadata") from error


def _read_lightning(path: Path) -> Weights:
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many types for files it cannot read
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        if path.is_file() and not zipfile.is_zipfile(path):
            reason = "it is neither a training checkpoint (.ckpt) nor a weights file (.safetensors), or it is cut short"
        raise ConfigError(f"{path} cannot be read as a checkpoint: {reason}") from error
    try:
        config = checkpoint["hyper_parameters"]["codec"]
        state = {n[len(PREFIX) :]: t for n, t in checkpoint["state_dict"].items() if n.startswith(PREFIX)}
    except (KeyError, TypeError) as error:
        raise ConfigError(f"{path} is no checkpoint of a gic codec: {error} is missing") from error
    return Weights(state, dict(config), {"step": checkpoint.get("global_step")})


def load_codec_state(path: str | Path) -> dict[str, Tensor]:
    """Parameters of the codec in a checkpoint or weights file to train on from, float32.

    Constants that files of earlier versions hold (``*.bound``) are left out: training takes those of the code.
    """
    state = read_weights(path).state
    return {name: tensor.float() for name, tensor in state.items() if not name.endswith(".bound")}


def build_codec(config: Mapping[str, Any]) -> Codec:
    """Build an untrained codec from its ``class_path`` / ``init_args`` tree.

    Raises:
        ConfigError: If the tree names a class outside gic or does not describe a codec.
    """
    _only_gic(config)
    parser = jsonargparse.ArgumentParser(exit_on_error=False)
    parser.add_argument("--codec", type=Codec)
    try:
        parsed = parser.parse_object({"codec": dict(config)})
    except Exception as error:
        raise ConfigError(f"the description of the codec does not fit this version of gic: {error}") from error
    codec = parser.instantiate(parsed).codec
    assert isinstance(codec, Codec)
    return codec


def _only_gic(tree: Any) -> None:
    if isinstance(tree, jsonargparse.Namespace):
        tree = tree.as_dict()
    if isinstance(tree, Mapping):
        name = tree.get("class_path")
        if name is not None and not str(name).startswith("gic."):
            raise ConfigError(f"the checkpoint asks for the class {name}, which is not part of gic: refused")
        for value in tree.values():
            _only_gic(value)
    elif isinstance(tree, (list, tuple)):
        for value in tree:
            _only_gic(value)


def load_codec(path: str | Path) -> Codec:
    """Rebuild a trained codec from a checkpoint or weights file, float32, in evaluation mode, on the CPU.

    Raises:
        ConfigError: If the file cannot be read or its parameters do not fit its description.
    """
    weights = read_weights(path)
    codec = build_codec(weights.config)
    try:
        codec.load_state_dict({name: tensor.float() for name, tensor in weights.state.items()})
    except RuntimeError as error:
        raise ConfigError(f"the parameters in {path} do not fit the codec it describes: {error}") from error
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
    """
    about = json.dumps({"config": dict(config), "provenance": dict(provenance or {})}, sort_keys=True)
    tensors = {name: tensor.detach().to("cpu", dtype).contiguous() for name, tensor in state.items()}
    with replacing(path) as temporary:
        save_file(tensors, temporary, {"gic": about})


def add_export_options(parser: ArgumentParser) -> None:
    """Options of ``gic export``."""
    parser.add_argument("checkpoint", help="training checkpoint, .ckpt")
    parser.add_argument("-o", "--output", required=True, metavar="FILE", help="weights file to write, .safetensors")
    parser.add_argument("--note", metavar="TEXT", help="where the weights come from, kept in the file: data, licence")
    parser.add_argument("--overwrite", action="store_true", help="replace an existing file")


def export(args: Namespace) -> int:
    """Turn a training checkpoint into a small weights file (float16, safetensors); returns the exit code.

    Raises:
        ConfigError: If the output exists or the checkpoint cannot be read.
    """
    output = Path(args.output)
    if output.exists() and not args.overwrite:
        raise ConfigError(f"{output} exists: give --overwrite to replace it")
    if output.suffix != ".safetensors":
        raise ConfigError(f"the output must end in .safetensors, not {output}")
    weights = read_weights(args.checkpoint)
    about = {**weights.provenance, "gic": __version__, "torch": str(torch.__version__)}
    save_weights(output, weights.state, weights.config, about | ({"note": args.note} if args.note else {}))
    print(f"written: {output} ({output.stat().st_size / 1e6:.1f} MB)")
    return 0
