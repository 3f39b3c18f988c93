"""Weights of real metric networks for tests: the real layout, few megabytes, random values."""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn


def isolate(monkeypatch: pytest.MonkeyPatch, folder: Path) -> Path:
    """No name resolves, and caches and folders of weights are empty; returns torch hub's folder."""

    def unresolved(*args: object, **kwargs: object) -> None:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", unresolved)
    monkeypatch.delenv("GIC_METRIC_WEIGHTS", raising=False)
    monkeypatch.setenv("TORCH_HOME", str(folder / "torch"))
    return folder / "torch" / "hub"


class Payload:
    """Creates a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = str(path)

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (self.path,)


def compact(state: Mapping[str, Tensor], scale: float = 0.02) -> dict[str, Tensor]:
    """A state dict whose matrices are all views of one random sequence, so that its file is small."""
    generator = torch.Generator().manual_seed(0)
    size = max(values.numel() for values in state.values())
    sequence = torch.randn(size, generator=generator) * scale
    return {
        name: sequence[: values.numel()].view(values.shape)
        if values.ndim > 1 and values.is_floating_point()
        else values.clone()
        for name, values in state.items()
    }


def save_cnniqa(path: Path, seed: int = 0) -> Path:
    """CNNIQA as pyiqa publishes it."""
    from pyiqa.archs.cnniqa_arch import CNNIQA

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        torch.save({"params": CNNIQA(pretrained=None).state_dict()}, path)
    return path


def save_vgg(path: Path) -> Path:
    """VGG-16 as torchvision publishes it."""
    import torchvision

    with torch.device("meta"):
        shapes = torchvision.models.vgg16().state_dict()
    torch.save(compact({name: torch.zeros(values.shape) for name, values in shapes.items()}), path)
    return path


def save_dists(path: Path) -> Path:
    """The weights of DISTS as pyiqa publishes them."""
    torch.save({name: torch.full((1, 1475, 1, 1), 0.1) for name in ("alpha", "beta")}, path)
    return path


def save_musiq(path: Path) -> Path:
    """MUSIQ as pyiqa publishes it."""
    from pyiqa.archs.musiq_arch import MUSIQ

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        torch.save(compact(MUSIQ(pretrained=False).state_dict()), path)
    return path


def save_maniqa(path: Path) -> Path:
    """MANIQA as pyiqa publishes it: the state dict alone, its ViT included."""
    from unittest import mock

    import timm
    from pyiqa.archs.maniqa_arch import MANIQA

    create = timm.create_model
    with (
        torch.random.fork_rng(devices=[]),
        mock.patch.object(timm, "create_model", lambda name, pretrained: create(name)),
    ):
        torch.manual_seed(0)
        torch.save(compact(MANIQA(pretrained=False).state_dict()), path)
    return path


def save_clip(path: Path) -> Path:
    """A small CLIP with a ResNet as OpenAI publishes it: TorchScript, half precision."""
    from pyiqa.archs.clip_model import CLIP

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = CLIP(32, 224, (1, 1, 1, 1), 16, None, 77, 49408, 64, 1, 1)
    for name, values in network.state_dict().items():
        if name.endswith("bn3.weight"):  # zero at first
            values.fill_(1.0)
    torch.jit.script(_tree(network.half().state_dict())).save(str(path))
    return path


class _Node(nn.Module):
    def forward(self) -> int:
        return 0


def _tree(state: Mapping[str, Tensor]) -> nn.Module:
    """Modules that hold a state dict."""
    node, below = _Node(), {}
    for name, values in state.items():
        first, _, rest = name.partition(".")
        if rest:
            below.setdefault(first, {})[rest] = values
        else:
            node.register_buffer(name, values)
    for name, part in below.items():
        node.add_module(name, _tree(part))
    return node
