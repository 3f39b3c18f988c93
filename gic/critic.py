"""The critic Q: a small network that ranks quality without seeing the original (DESIGN 6).

    score(x) = mean over places of sigmoid(local score), in (0, 1), higher is better

About 1 for a photograph as it is, about exp(-3 (LPIPS + 1 - MS-SSIM)) for a spoiled one, which is the label that it was
trained on (:mod:`gic.fit_critic`). Local scores are bounded, so that no place can pay for another and what is natural
already gives little gradient; smooth activations and binomial filters before every reduction keep the gradient free of
the grid. The weights come with gic: nothing is downloaded.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F

from gic.errors import ConfigError
from gic.files import replacing
from gic.losses import PerceptualTerm
from gic.perceptual import _random_crop

WEIGHTS = Path(__file__).parent / "weights" / "critic" / "critic.safetensors"
"""The weights that come with gic."""

SMALLEST = 64
"""Smallest side of an image that the critic judges, in pixels."""


class Halve(nn.Module):
    """Halve the size after a binomial filter (1, 3, 3, 1), so that nothing aliases (Zhang 2019)."""

    kernel: Tensor

    def __init__(self, channels: int) -> None:
        super().__init__()
        taps = torch.tensor([1.0, 3.0, 3.0, 1.0]) / 8
        self.register_buffer("kernel", (taps[:, None] * taps).repeat(channels, 1, 1, 1), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, h, w) to (B, C, h // 2, w // 2)."""
        return F.conv2d(x, self.kernel, stride=2, padding=1, groups=len(self.kernel))


class LocalContrast(nn.Module):
    """What a place looks like beside its surroundings, and what these look like.

        n = (x - m) / s,   m = G * x,   s = sqrt(G * (x - m)^2 + c^2)

    with a Gaussian G of 7 taps: much like the coefficients of BRISQUE (Mittal et al. 2012), for each channel. Detail of
    a hundredth and of a tenth become alike in size, so that the network sees both.

    Args:
        c: Contrast below which a place counts as flat.
    """

    window: Tensor

    def __init__(self, c: float = 0.04) -> None:
        super().__init__()
        self.c = c
        taps = torch.exp(-0.5 * (torch.arange(-3, 4) / (7 / 6)) ** 2)
        self.register_buffer("window", (taps / taps.sum()).repeat(3, 1, 1, 1), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """(B, 3, H, W) in [0, 1] to (B, 9, H, W): n, m and log s, each about centred and of order one."""
        m = self._blur(x)
        d = x - m
        s = (self._blur(d * d) + self.c**2).sqrt()
        return torch.cat([d / s, 4 * (m - 0.5), s.log() + 3], dim=1)

    def _blur(self, x: Tensor) -> Tensor:
        x = F.pad(x, (3, 3, 3, 3), mode="replicate")
        return F.conv2d(F.conv2d(x, self.window, groups=3), self.window.transpose(2, 3), groups=3)


class CriticNetwork(nn.Module):
    """Fully convolutional: local contrast, then 3x3 convolutions at several sizes, then a local score.

    Batch normalisation is a constant gain once trained, so that each image is judged by itself.

    Args:
        widths: Channels at full size, half size and so on.

    Example:
        >>> CriticNetwork().eval()(torch.rand(2, 3, 64, 80)).shape
        torch.Size([2])
    """

    def __init__(self, widths: Sequence[int] = (12, 24, 48, 96, 128)) -> None:
        super().__init__()
        self.widths = tuple(widths)
        layers: list[nn.Module] = [LocalContrast(), *_convolution(9, widths[0])]
        for narrow, wide in pairwise(widths):
            layers += [Halve(narrow), *_convolution(narrow, wide), *_convolution(wide, wide)]
        layers.append(nn.Conv2d(widths[-1], 1, 1))
        self.layers = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        """Score of each image (B, 3, H, W) in [0, 1], sides at least :data:`SMALLEST`: (B,) in (0, 1)."""
        local: Tensor = self.layers(x)
        return torch.sigmoid(local).flatten(1).mean(1)


def _convolution(narrow: int, wide: int) -> list[nn.Module]:
    return [nn.Conv2d(narrow, wide, 3, padding=1, bias=False), nn.BatchNorm2d(wide), nn.SiLU()]


def save_critic(path: str | Path, network: CriticNetwork, about: Mapping[str, Any]) -> None:
    """Write a critic's weights as float16, whole or not at all.

    Args:
        path: Where to; ends in ``.safetensors``.
        network: The critic.
        about: Where it comes from, kept in the metadata; ``widths`` are those of the network.
    """
    state = {
        name: tensor.detach().to("cpu", torch.float16).contiguous() for name, tensor in network.state_dict().items()
    }
    with replacing(path) as temporary:
        save_file(state, temporary, {"gic.critic": json.dumps(dict(about), sort_keys=True)})


def load_critic(path: str | Path | None = None) -> CriticNetwork:
    """Rebuild a critic, float32, frozen, on the CPU.

    Args:
        path: Weights file of :func:`save_critic`; those that come with gic if left out.

    Raises:
        ConfigError: If there is no such file or it holds no critic.
    """
    path = WEIGHTS if path is None else Path(path)
    if not path.is_file():
        raise ConfigError(f"no file {path}: it should hold a critic's weights (gic fit-critic makes one)")
    try:
        with safe_open(path, framework="pt") as file:
            about = json.loads((file.metadata() or {})["gic.critic"])
            state = {name: file.get_tensor(name).float() for name in file.keys()}  # noqa: SIM118
        network = CriticNetwork(about["widths"])
        network.load_state_dict(state)
    except (SafetensorError, OSError) as error:
        raise ConfigError(f"{path} cannot be read as safetensors: {error}") from error
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise ConfigError(f"{path} holds no critic of this version of gic (gic fit-critic makes one)") from error
    return network.eval().requires_grad_(False)


class Critic(PerceptualTerm):
    """The embedded no-reference quality as a term of the loss: ``1 - score``, in (0, 1).

    Args:
        weight: Factor in the loss, w_nr.
        weights: Weights file of a critic; the one that comes with gic if left out.
        crop: Side of the random crop that is judged, in pixels, at least 64; None judges the whole image.

    Raises:
        ConfigError: If the weights cannot be used or the crop is too small.

    Example:
        >>> Critic(weight=0.5)(torch.rand(2, 3, 64, 64), torch.rand(2, 3, 64, 64)).shape
        torch.Size([2])
    """

    def __init__(self, weight: float = 1.0, weights: str | None = None, crop: int | None = None) -> None:
        super().__init__(weight)
        if crop is not None and crop < SMALLEST:
            raise ConfigError(f"the critic judges crops of at least {SMALLEST} pixels, not {crop}")
        self.network = load_critic(weights)
        self.crop = crop

    def __call__(self, x_hat: Tensor, x: Tensor) -> Tensor:
        """Lack of quality of each image, (B,); ``x`` is not looked at.

        Raises:
            ConfigError: If a side is shorter than 64 pixels.
        """
        if min(x_hat.shape[-2:]) < SMALLEST:
            raise ConfigError(
                f"the critic judges images of at least {SMALLEST} pixels, not {x_hat.shape[-1]} x {x_hat.shape[-2]}"
            )
        self.network.to(x_hat.device)
        image = x_hat if self.crop is None else _random_crop(x_hat, self.crop)
        score: Tensor = self.network(image.clamp(0, 1))
        return 1 - score
