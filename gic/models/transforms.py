"""The transforms: g_a takes an image to its latent y, g_s takes y back to an image (DESIGN 1).

Another network may replace them: a module that maps the same shapes and has an attribute ``stride``. Two things are
optional: a method ``begin_silent()``, called if there is a lapped transform, and an attribute ``checkpointing``, which
training sets.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from functools import partial
from itertools import groupby
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from gic.errors import ConfigError
from gic.method.samplers import Realism, numbers
from gic.models.layers import AttentionBlock, ResidualBlock, ResidualBottleneckBlock, conv3x3, subpel_conv3x3

Block = Literal["residual", "bottleneck"]

_BLOCKS = (ResidualBlock, ResidualBottleneckBlock, AttentionBlock)


def _make_block(kind: Block, channels: int) -> nn.Module:
    if kind == "residual":
        return ResidualBlock(channels)
    return ResidualBottleneckBlock(channels)


def initialise(network: nn.Module) -> None:
    """Keep the variance of the signal through every convolution, and residual branches small, at the start."""
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, nonlinearity="linear")
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    for module in network.modules():
        last = {ResidualBlock: "conv2", ResidualBottleneckBlock: "conv3"}.get(type(module))
        if last is not None:
            getattr(module, last).weight.data.mul_(0.3)


def _through(
    layers: nn.Sequential, x: Tensor, checkpointing: bool, weights: Mapping[str, Tensor] | None = None
) -> Tensor:
    """Apply layers in sequence, with other weights if they are given.

    With ``checkpointing`` the activations inside the blocks are recomputed for the gradient instead of kept.
    """
    for place, layer in layers.named_children():
        call: Any = layer
        if weights is not None:
            own = {name: weights[f"{place}.{name}"] for name, _ in layer.named_parameters()}
            call = partial(torch.func.functional_call, layer, own)
        if checkpointing and torch.is_grad_enabled() and isinstance(layer, _BLOCKS):
            x = checkpoint(call, x, use_reentrant=False, preserve_rng_state=False)
        else:
            x = call(x)
    return x


class Analysis(nn.Module):
    """g_a: image to latent, four stages that each halve the size.

    Args:
        widths: Channels of the four stages, from H/2 to H/16.
        blocks: Residual blocks in each stage.
        latent_channels: M, channels of y.
        block: ``residual`` (two 3x3 convolutions) or ``bottleneck`` (1x1, 3x3, 1x1, as in ELIC).
        attention: Put CompressAI's attention block at the end of the stages H/8 and H/16, as ELIC does.
        gain: Factor on the output, which sets the scale of y at the start of training.
    """

    checkpointing = False
    """Whether training recomputes the activations inside the blocks instead of keeping them."""
    stride: int
    """Pixels for each element of y, along each side."""

    def __init__(
        self,
        widths: Sequence[int],
        blocks: Sequence[int],
        latent_channels: int,
        block: Block = "residual",
        attention: bool = False,
        gain: float = 8.0,
    ) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        channels = 3
        for stage, (width, count) in enumerate(zip(widths, blocks, strict=True)):
            layers.append(nn.Conv2d(channels, width, 5 if stage == 0 else 3, 2, 2 if stage == 0 else 1))
            layers += [_make_block(block, width) for _ in range(count)]
            if attention and stage % 2 == 1:
                layers.append(AttentionBlock(width))
            channels = width
        layers.append(conv3x3(channels, latent_channels))
        self.layers = nn.Sequential(*layers)
        self.gain = gain
        self.stride = 2 ** len(widths)
        self.to(memory_format=torch.channels_last)  # a third faster at these widths, on CPUs and GPUs

    def begin_silent(self) -> None:
        """Initialise the output to zero: only the shortcut around the network contributes."""
        last: Any = self.layers[-1]
        nn.init.zeros_(last.weight)

    def forward(self, x: Tensor) -> Tensor:
        """Image (B, 3, H, W) in [0, 1], H and W multiples of 16, to y (B, M, H/16, W/16)."""
        # float32 before anything else is done with it: under autocast the layers yield bfloat16.
        return self.gain * _through(self.layers, x - 0.5, self.checkpointing).float()


class Synthesis(nn.Module):
    """g_s: latent to image, the mirror of :class:`Analysis` with pixel shuffles.

    Args:
        widths: Channels of the four stages, from H/2 to H/16, as in the analysis.
        blocks: Residual blocks in each stage.
        latent_channels: M, channels of y.
        block: Kind of residual block.
        attention: As in the analysis.
        gain: Gain of the analysis, divided out here.
        realistic_stages: Number of stages, counted from the image, that have weights of their own for r = 1: there
            the weights are ``W + r * dW``, the interpolation of two networks (arXiv 1811.10515). dW is 0 at first,
            and r = 0 does not depend on it, so that perception does not cost distortion.

    Raises:
        ConfigError: If there are fewer stages than ``realistic_stages``.
    """

    checkpointing = False
    """As in the analysis."""
    stride: int
    """As in the analysis."""

    def __init__(
        self,
        widths: Sequence[int],
        blocks: Sequence[int],
        latent_channels: int,
        block: Block = "residual",
        attention: bool = False,
        gain: float = 8.0,
        realistic_stages: int = 0,
    ) -> None:
        super().__init__()
        if not 0 <= realistic_stages <= len(widths):
            raise ConfigError(f"realistic_stages must lie in 0 ... {len(widths)}, not {realistic_stages}")
        layers: list[nn.Module] = [conv3x3(latent_channels, widths[-1])]
        self.shared = 0
        for stage in reversed(range(len(widths))):
            if stage == realistic_stages - 1:
                self.shared = len(layers)
            width = widths[stage]
            if attention and stage % 2 == 1:
                layers.append(AttentionBlock(width))
            layers += [_make_block(block, width) for _ in range(blocks[stage])]
            if stage > 1:
                layers.append(subpel_conv3x3(width, widths[stage - 1], 2))
            elif stage == 1:
                layers.append(nn.Sequential(nn.Conv2d(width, 4 * widths[0], 1), nn.PixelShuffle(2)))
            else:
                layers.append(subpel_conv3x3(width, 3, 2))
        if realistic_stages == 0:
            self.shared = len(layers)
        self.layers = nn.Sequential(*layers)
        self.gain = gain
        self.stride = 2 ** len(widths)
        self.realistic = copy.deepcopy(self.layers[self.shared :])
        """dW, in the shape of the layers that it belongs to."""
        for weights in self.realistic.parameters():
            nn.init.zeros_(weights)
        self.register_load_state_dict_pre_hook(_without_realism)  # type: ignore[no-untyped-call]
        self.to(memory_format=torch.channels_last)

    def begin_silent(self) -> None:
        """Initialise the image to plain grey for every y."""
        last: Any = self.layers[-1]
        nn.init.zeros_(last[0].weight)

    def forward(self, y: Tensor, realism: Realism = 0.0) -> Tensor:
        """Latent to image.

        Args:
            y: Latent (B, M, h, w).
            realism: r in [0, 1], a number or one for each sample. Neighbours with equal r are decoded together, which
                is faster.

        Returns:
            Image (B, 3, 16 h, 16 w), float32, not clamped.
        """
        x = _through(self.layers[: self.shared], y / self.gain, self.checkpointing)
        values = numbers(realism)
        if len(values) == 1:
            return self._image(x, values[0])
        runs = [(r, len(list(run))) for r, run in groupby(values)]
        parts = torch.split(x, [count for _, count in runs])
        return torch.cat([self._image(part, r) for part, (r, _) in zip(parts, runs, strict=True)])

    def _image(self, x: Tensor, r: float) -> Tensor:
        """Last layers, at one r for all the batch."""
        layers = self.layers[self.shared :]
        if r == 0 and not self.training:
            out: Tensor = layers(x)
        else:
            # In training also at r = 0: DistributedDataParallel wants every parameter in every step.
            change = dict(self.realistic.named_parameters())
            weights = {name: w + r * change[name] for name, w in layers.named_parameters()}
            out = _through(layers, x, self.checkpointing, weights)
        return out.float() + 0.5  # added in float32: in bfloat16 the sum would have steps of 1/256


def _without_realism(module: Synthesis, state: dict[str, Any], prefix: str, *_: Any) -> None:
    """Complete weights without a second set: dW = 0."""
    names = [f"{prefix}realistic.{name}" for name, _ in module.realistic.named_parameters()]
    if not any(name in state for name in names):
        state |= {
            name: torch.zeros_like(weights) for name, weights in zip(names, module.realistic.parameters(), strict=True)
        }
