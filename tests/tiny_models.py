"""A small codec whose weights are drawn, pictures for it, and a small discriminator: for the tests of training."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from gic.models.codec import Codec
from gic.models.compressor import ResidualCompressor
from gic.models.reverse import ReverseUNet
from gic.quality.discriminator import Adversarial, PatchDiscriminator


def tiny(seed: int = 0, gain: float = 20.0, **options: object) -> Codec:
    """A small codec in evaluation mode, with nothing left at zero."""
    torch.manual_seed(seed)
    compressor = ResidualCompressor((8, 8, 8, 8), (0, 0, 1, 1), latent_channels=8, hyper_channels=4, gain=gain)
    reverse = ReverseUNet(8, widths=(8, 16), blocks=(1, 1))
    for parameter in reverse.parameters():
        if not bool(parameter.any()):
            nn.init.normal_(parameter, std=0.3)
    return Codec(compressor, reverse, **options).eval()  # type: ignore[arg-type]


def images(count: int = 3, height: int = 64, width: int = 128) -> Tensor:
    return torch.rand(count, 3, height, width, generator=torch.Generator().manual_seed(0))


def judge(channels: int = 8) -> PatchDiscriminator:
    torch.manual_seed(1)
    return PatchDiscriminator(channels, width=4, latent_width=2, embedding=4)


def adversarial(**options: Any) -> Adversarial:
    return Adversarial(judge(), **{"warmup_steps": 0, "ramp_steps": 0, **options})


def started(term: Adversarial) -> Adversarial:
    term.steps = 1  # the warm-up of 0 steps is over
    return term
