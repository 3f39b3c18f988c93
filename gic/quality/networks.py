"""The networks of LPIPS and pyiqa, frozen, with weights from where :mod:`gic.quality.weights` finds them.

lpips and pyiqa are imported when a network is made.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal
from unittest import mock

import torch
from torch import nn

from gic.errors import ConfigError, require
from gic.quality.weights import check_pyiqa_name, find, library_weights, named_files

LPIPSNetwork = Literal["alex", "vgg", "squeeze"]


def lpips_network(net: LPIPSNetwork = "alex", backbone: str | None = None) -> nn.Module:
    """LPIPS as published (version 0.1), frozen.

    Args:
        net: Backbone.
        backbone: File with torchvision's ``features.*`` of the backbone (a state dict, which may hold more); if left
            out, it is searched for, then downloaded.

    Returns:
        Network that maps two images (B, 3, H, W) in [-1, 1] to (B, 1, 1, 1).

    Raises:
        ConfigError: If the file is missing or does not hold that backbone, or the download fails.
        MissingExtraError: If lpips is not installed.
    """
    return build_lpips(net, named_files({} if backbone is None else {f"lpips_{net}": backbone}))[0]


def build_lpips(
    net: LPIPSNetwork, named: Mapping[str, Path] | None = None, download: bool = True
) -> tuple[nn.Module, list[Path]]:
    """LPIPS and the files that its weights came from; see :func:`lpips_network`."""
    key = f"lpips_{net}"
    lpips = require("lpips")
    path = find(key, named)
    with library_weights(key, named, download) as used:
        network = lpips.LPIPS(net=net, pnet_rand=path is not None, verbose=False)
        if path is not None:
            used.append(path)
            _load_backbone(network.net, path)
    return _freeze(network), used


def build_pyiqa(
    metric: str, named: Mapping[str, Path] | None = None, download: bool = True, **options: Any
) -> tuple[Any, list[Path]]:
    """A metric of pyiqa, frozen, and the files that its weights came from.

    Args:
        metric: Name in pyiqa.
        named: Files that the user names, by key.
        download: Whether missing files may be downloaded.
        options: Of ``pyiqa.create_metric`` and the metric's network.

    Raises:
        ConfigError: If there is no such metric or its weights are not available.
        MissingExtraError: If a package is missing.
    """
    pyiqa = require("pyiqa")
    check_pyiqa_name(metric)
    with library_weights(metric, named, download) as used, _unfilled_backbones():
        network = pyiqa.create_metric(metric, device="cpu", **options)
    if any(values.isnan().any() for values in network.state_dict().values()):
        with library_weights(metric, named, download) as used:
            network = pyiqa.create_metric(metric, device="cpu", **options)
    if named and metric in named and named[metric] not in used:
        raise ConfigError(f"{metric} asks for no file that {named[metric]} could stand for")
    return _freeze(network), used


@contextmanager
def _unfilled_backbones() -> Iterator[None]:
    """Let timm build networks filled with NaN, without ImageNet weights: most metrics load all of their own weights.

    This avoids a large download; if NaN is left, the metric needs it.
    """
    timm = require("timm")
    create = timm.create_model

    def unfilled(*args: Any, **kwargs: Any) -> nn.Module:
        model: nn.Module = create(*args, **{**kwargs, "pretrained": False})
        for values in model.state_dict().values():
            if values.is_floating_point():
                values.fill_(torch.nan)
        return model

    with mock.patch.object(timm, "create_model", unfilled):
        yield


def _load_backbone(network: nn.Module, path: Path) -> None:
    """Fill the slices of lpips' backbone, whose layers keep torchvision's numbers, from ``features.*``."""
    state = torch.load(path, map_location="cpu", weights_only=True)
    wanted = {}
    for name in network.state_dict():
        layer = name.split(".", 1)[1]  # slice1.0.weight -> 0.weight
        source = f"features.{layer}"
        if source not in state:
            raise ConfigError(f"{path} does not hold this backbone: {source} is missing")
        wanted[name] = state[source]
    try:
        network.load_state_dict(wanted, strict=True)
    except RuntimeError as error:
        raise ConfigError(f"{path} does not hold this backbone: {error}") from error


def _freeze(network: Any) -> nn.Module:
    frozen: nn.Module = network.eval().requires_grad_(False)
    return frozen
