"""The compressor: transforms g_a and g_s, and the hyperprior entropy model at level q (DESIGN 1, 5).

    x -> g_a -> y -> h_a -> z --round--> z_hat -> h_s -> mu, sigma
                y -> level q (see gic.sde) -> y_q, coded with N(mu, sigma^2) on the grid of step q
                                              y_hat -> g_s -> x_hat

z and hence mu and sigma do not depend on q: one analysis serves all rates. h_s is made of 3x3 convolutions, ReLU
and pixel shuffles alone, so that it can be run in exact integer arithmetic. Names, layers and entropy models are
CompressAI's; the hyperprior is that of Minnen et al. 2018 (arXiv 1809.02736).
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from functools import partial
from itertools import groupby
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from gic import sde
from gic.errors import ConfigError
from gic.lapped import LappedTransform
from gic.layers import AttentionBlock, LowerBound, ResidualBlock, ResidualBottleneckBlock, conv3x3, subpel_conv3x3
from gic.sde import level

Block = Literal["residual", "bottleneck"]

DOWNSAMPLING = 16
"""Pixels per latent element along each side."""
HYPER_DOWNSAMPLING = 4
"""Elements of y per element of z along each side."""
SIGMA_MIN, SIGMA_MAX = 0.05, 256.0
"""Range of the prior's standard deviation, in units of y ..."""
LAPPED_SIGMA_MAX = 1024.0
"""... and its end with the lapped transform, whose coarsest coefficients are wide."""
_ABOVE = 8.0  # activity plus this is never negative
_Z_PER_NAT = 1.25  # units of z for a factor e of activity, where z begins with it;
_OTHERS, _SLOPE = 0.1, 3.0  # how strong its other channels are there, and how narrow its prior
_BLOCKS = (ResidualBlock, ResidualBottleneckBlock, AttentionBlock)


class Latents(NamedTuple):
    """What one analysis of a batch yields; nothing of it depends on q.

    Attributes:
        y: Latent g_a(x), (B, M, H/16, W/16).
        z: Hyper-latent h_a(y), (B, N, H/64, W/64).
        z_hat: z rounded to whole numbers, with straight-through gradient.
        mu: Prior mean of y, like y.
        sigma: Prior standard deviation of y, like y, at least SIGMA_MIN and at most the compressor's ``sigma_max``.
    """

    y: Tensor
    z: Tensor
    z_hat: Tensor
    mu: Tensor
    sigma: Tensor


class FactorizedPrior(nn.Module):
    """Learned density of whole numbers, one for each channel (Balle et al. 2018, arXiv 1802.01436, appendix 6.1).

    CompressAI's entropy bottleneck around the median 0, so that z_hat is made of whole numbers; everything that coding
    needs follows from the weights when they are loaded.

    Args:
        channels: N, channels of z.
        filters: Widths of the layers between a value and its cumulative logit.
        slope: Slope of the logits at the start, the same law in every channel, narrower for a larger one; if left out
            it is 1/2, and each channel is off centre by chance.
    """

    def __init__(self, channels: int, filters: Sequence[int] = (3, 3, 3, 3), slope: float | None = None) -> None:
        super().__init__()
        self.channels = channels
        self.matrices, self.biases, self.factors = nn.ParameterList(), nn.ParameterList(), nn.ParameterList()
        # Narrow at first: z is of order one then, and a wide law costs bits until it has been unlearnt.
        scale = (slope or 0.5) ** (-1 / (len(filters) + 1))
        for rows, columns in zip((*filters, 1), (1, *filters), strict=True):
            self.matrices.append(
                nn.Parameter(torch.full((channels, rows, columns), math.log(math.expm1(1 / scale / rows))))
            )
            self.biases.append(nn.Parameter(torch.rand(channels, rows, 1) - 0.5))
        for rows in filters:
            self.factors.append(nn.Parameter(torch.zeros(channels, rows, 1)))
        self.likelihood_lower_bound = LowerBound(1e-9)
        if slope is not None:
            with torch.no_grad():
                self.biases[-1] -= self._logits_cumulative(torch.zeros(channels, 1, 1))

    def _logits_cumulative(self, values: Tensor) -> Tensor:
        """Logits of the distribution functions at values (C, 1, n)."""
        for i, (matrix, bias) in enumerate(zip(self.matrices, self.biases, strict=True)):
            values = torch.matmul(F.softplus(matrix), values) + bias
            if i < len(self.factors):
                values = values + torch.tanh(self.factors[i]) * torch.tanh(values)
        return values

    def forward(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Latent z (B, C, ...), noisy in training mode and rounded otherwise, and its probabilities, at least 1e-9."""
        across = z.transpose(0, 1).contiguous()  # so that the noise does not depend on the layout
        values = across.reshape(self.channels, 1, -1)
        values = values + (torch.rand_like(values) - 0.5) if self.training else torch.round(values)
        p = torch.sigmoid(self._logits_cumulative(values + 0.5)) - torch.sigmoid(self._logits_cumulative(values - 0.5))
        p = self.likelihood_lower_bound(p)
        return values.reshape(across.shape).transpose(0, 1), p.reshape(across.shape).transpose(0, 1)


class LevelGaussian(nn.Module):
    """Gaussian conditional for a latent that is already at level q, on any grid offset."""

    def __init__(self) -> None:
        super().__init__()
        self.lower_bound_scale = LowerBound(0.11)
        self.likelihood_lower_bound = LowerBound(1e-9)

    def forward(self, y_q: Tensor, q: Tensor, mu: Tensor, sigma: Tensor) -> Tensor:
        """Probability of the cell of width q around ``y_q`` under N(mu, sigma^2), at least 1e-9 (DESIGN 5).

        Valid for both quantisers: under ``dither`` the cell is the one shifted by u.
        """
        scale = self.lower_bound_scale(sigma / q)
        distance = torch.abs(y_q / q - mu / q)
        p = (torch.erfc((distance - 0.5) / scale * 2**-0.5) - torch.erfc((distance + 0.5) / scale * 2**-0.5)) / 2
        return self.likelihood_lower_bound(p)  # type: ignore[no-any-return]


def _make_block(kind: Block, channels: int) -> nn.Module:
    if kind == "residual":
        return ResidualBlock(channels)
    return ResidualBottleneckBlock(channels)


def _membership(groups: Sequence[int]) -> Tensor:
    """Which channel (row) belongs to which group (column), 1 or 0; (0,) for no channels."""
    if not groups:
        return torch.zeros(0, 0)
    return (torch.tensor(groups)[:, None] == torch.arange(max(groups) + 1)).float()


def _initialise(network: nn.Module) -> None:
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
    """Layers in a row, with other weights if they are given.

    With ``checkpointing`` what is inside of the blocks is not kept for the gradient but computed a second time.
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
    """Whether training computes what is inside of the blocks a second time instead of keeping it."""

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
        self.to(memory_format=torch.channels_last)  # a third faster at these widths, on CPUs and GPUs

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
        gain: The analysis' gain, taken out again.
        realistic_stages: Number of stages, counted from the image, that have weights of their own for r = 1: there
            the weights are ``W + r * dW``, the interpolation of two networks (arXiv 1811.10515). dW is 0 at first,
            and r = 0 knows nothing of it, so that perception does not cost distortion.

    Raises:
        ConfigError: If there are fewer stages than ``realistic_stages``.
    """

    checkpointing = False
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
        self.realistic = copy.deepcopy(self.layers[self.shared :])
        """dW, in the shape of the layers that it belongs to."""
        for weights in self.realistic.parameters():
            nn.init.zeros_(weights)
        self.register_load_state_dict_pre_hook(_without_realism)  # type: ignore[no-untyped-call]
        self.to(memory_format=torch.channels_last)

    def forward(self, y: Tensor, realism: sde.Realism = 0.0) -> Tensor:
        """Latent to image.

        Args:
            y: Latent (B, M, h, w).
            realism: r in [0, 1], a number or one for each sample, best with equal ones next to each other: these
                are decoded together.

        Returns:
            Image (B, 3, 16 h, 16 w), float32, not clamped.
        """
        x = _through(self.layers[: self.shared], y / self.gain, self.checkpointing)
        values = sde.numbers(realism)
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
    """Weights from before there was a second set: dW = 0."""
    names = [f"{prefix}realistic.{name}" for name, _ in module.realistic.named_parameters()]
    if not any(name in state for name in names):
        state |= {
            name: torch.zeros_like(weights) for name, weights in zip(names, module.realistic.parameters(), strict=True)
        }


class Compressor(nn.Module):
    """Transforms and hyperprior: everything of the codec but the reverse network.

    Args:
        widths: Channels of g_a's stages at H/2, H/4, H/8, H/16, mirrored by g_s.
        blocks: Residual blocks in each stage of g_a and, unless given apart, of g_s.
        synthesis_blocks: Residual blocks in each stage of g_s.
        latent_channels: M, channels of y.
        hyper_channels: N, channels of z.
        block: Kind of residual block, ``residual`` or ``bottleneck``.
        attention: Attention blocks in the transforms, as in ELIC.
        gain: Scale of y at the start of training.
        realistic_stages: Stages of g_s with weights of their own for r = 1, see :class:`Synthesis`.
        detail_channels: Further channels of y, the lapped coefficients of the next higher frequencies as they are: they
            pass by g_a, g_s and the reverse network, have mu = 0, and share one sigma from h_s in each group
            (:meth:`gic.lapped.LappedTransform.groups`), times a learned factor of each. They cost next to nothing
            where the step is coarse.
        hyper_activity: Show h_a, beside y, the logarithm of how strong each group of channels is, and let z begin as
            its mean and sigma follow it: the prior begins with what it would take long to find. Takes the lapped
            transform.
        lapped: Give g_a and g_s the lapped orthogonal transform (:mod:`gic.lapped`) as a shortcut around their
            networks: they begin as a linear codec and learn what is missing, which takes far fewer steps.

    Raises:
        ConfigError: If there are more channels than the lapped transform has, too many realistic stages, or detail
            channels without the lapped transform or with too few others.

    Example:
        >>> model = Compressor(widths=(8, 8, 8, 8), blocks=(0, 0, 1, 1), latent_channels=16, hyper_channels=8)
        >>> latents = model.analyse(torch.rand(2, 3, 64, 128))
        >>> latents.y.shape, latents.z.shape
        (torch.Size([2, 16, 4, 8]), torch.Size([2, 8, 1, 2]))
    """

    membership: Tensor
    seen: Tensor

    def __init__(
        self,
        widths: Sequence[int] = (40, 88, 128, 192),
        blocks: Sequence[int] = (1, 1, 2, 2),
        synthesis_blocks: Sequence[int] | None = None,
        latent_channels: int = 192,
        hyper_channels: int = 128,
        block: Block = "residual",
        attention: bool = False,
        gain: float = 8.0,
        realistic_stages: int = 0,
        lapped: bool = False,
        detail_channels: int = 0,
        hyper_activity: bool = False,
    ) -> None:
        super().__init__()
        if (detail_channels or hyper_activity) and not lapped:
            name = "detail_channels" if detail_channels else "hyper_activity"
            raise ConfigError(f"{name} builds on the lapped transform: set lapped too")
        self.latent_channels = latent_channels
        self.detail_channels = detail_channels
        self.hyper_channels = hyper_channels
        m, n = latent_channels, hyper_channels
        self.lapped = LappedTransform(m + detail_channels) if lapped else None
        self.groups: list[int] = []
        """Group of each detail channel."""
        if self.lapped is not None and detail_channels:
            if max(self.lapped.means) >= m:
                raise ConfigError(f"{m} latent_channels are too few beside {detail_channels} detail_channels")
            self.groups = self.lapped.groups(m)
        groups = len(set(self.groups))
        self.register_buffer("membership", _membership(self.groups), persistent=False)
        """Which detail channel (row) belongs to which group (column)."""
        self.hyper_activity = hyper_activity
        seen = _membership(self.lapped.groups(0)) if self.lapped is not None and hyper_activity else self.membership
        self.register_buffer("seen", seen, persistent=False)
        """The same for the channels whose activity h_a sees: all, or the detail."""
        self.g_a = Analysis(widths, blocks, m, block, attention, gain)
        self.g_s = Synthesis(widths, synthesis_blocks or blocks, m, block, attention, gain, realistic_stages)
        self.h_a = nn.Sequential(
            conv3x3(m + self.seen.shape[1], n),
            nn.LeakyReLU(inplace=True),
            conv3x3(n, n, stride=2),
            nn.LeakyReLU(inplace=True),
            conv3x3(n, n, stride=2),
        )
        self.h_s = nn.Sequential(
            subpel_conv3x3(n, n, 2),
            nn.ReLU(inplace=True),
            subpel_conv3x3(n, n, 2),
            nn.ReLU(inplace=True),
            conv3x3(n, 2 * m + groups),
        )
        for network in (self.g_a, self.g_s.layers, self.h_a, self.h_s):
            _initialise(network)
        self.gain = gain
        self.detail: nn.Parameter | None = None
        """Logarithm of each detail channel's sigma, beyond what its group has."""
        if self.lapped is not None and detail_channels:
            expected = (gain * self.lapped.scale * self.lapped.deviation)[m:]
            self.detail = nn.Parameter(expected.log())
        if self.lapped is not None:
            self._begin_linear(self.lapped)
        self.prior_z = FactorizedPrior(n, slope=_SLOPE if hyper_activity else None)
        self.prior_y = LevelGaussian()
        self.lower = LowerBound(math.log(SIGMA_MIN))
        self.upper = LowerBound(-math.log(LAPPED_SIGMA_MAX if lapped else SIGMA_MAX))

    @torch.no_grad()
    def _begin_linear(self, lapped: LappedTransform) -> None:
        """Let the networks add little at first, and the prior know how wide each coefficient is."""
        g_a_last: Any = self.g_a.layers[-1]
        g_s_last: Any = self.g_s.layers[-1]
        h_a_last: Any = self.h_a[-1]
        h_s_last: Any = self.h_s[-1]
        for last in (g_a_last, g_s_last[0]):
            last.weight.zero_()
        m = self.latent_channels
        mu, log_sigma = h_s_last.weight[:m], h_s_last.weight[m:]
        scale, deviation = lapped.scale[:m], lapped.deviation[:m]
        mu.mul_(0.1 * (scale * self._unit())[:, None, None, None])
        log_sigma.mul_(0.1)
        h_a_last.weight.mul_(3)  # z of a trained codec is of order one; what is smaller is rounded away
        h_s_last.bias[m : 2 * m] = (self.gain * scale * deviation).log()
        passing = self._begin_with_activity(lapped) if self.hyper_activity else 0
        if self.hyper_channels >= 2 * HYPER_DOWNSAMPLING**2:
            width = scale * deviation
            offset = (lapped.coarse_scale * lapped.coarse_deviation / width[lapped.means, None, None]).log()
            self._know_places([m + channel for channel in lapped.means], offset, passing)

    @torch.no_grad()
    def _begin_with_activity(self, lapped: LappedTransform) -> int:
        """Let z begin as the mean activity of each group over 4 x 4 elements, and log sigma follow it.

        The first channels of all hidden layers carry it, one for each group but those of the means of blocks, each
        apart from the others, as many as leave 32 others. Returns how many there are.
        """
        of_channel, m = lapped.groups(0), self.latent_channels
        means = {of_channel[channel] for channel in lapped.means}
        room = max(0, self.hyper_channels - 2 * HYPER_DOWNSAMPLING**2)
        passing = [group for group in range(self.seen.shape[1]) if group not in means][:room]
        own = slice(len(passing))
        convolutions: list[Any] = [self.h_a[0], self.h_a[2], self.h_a[4]]
        for number, conv in enumerate(convolutions):
            if number > 0:
                conv.weight[:, own] = 0
            conv.weight[own] = 0
            for i, group in enumerate(passing):
                if number == 0:
                    conv.weight[i, m + group, 1, 1] = 1
                else:
                    conv.weight[i, i, 1:, 1:] = 0.25  # 2 x 2 elements
        convolutions[0].bias[own] = _ABOVE
        convolutions[2].weight[len(passing) :] *= _OTHERS
        convolutions[2].weight[own] *= _Z_PER_NAT
        convolutions[2].bias[own] = -_ABOVE * _Z_PER_NAT
        first: Any = self.h_s[0][0]  # type: ignore[index]
        second: Any = self.h_s[2][0]  # type: ignore[index]
        last: Any = self.h_s[4]
        four = slice(4 * len(passing))
        offset = _ABOVE * _Z_PER_NAT
        first.weight[four], second.weight[four], second.weight[:, own], last.weight[:, own] = 0, 0, 0, 0
        first.bias[four] = offset
        for i, group in enumerate(passing):
            first.weight[4 * i : 4 * i + 4, i, 1, 1] = 1
            second.weight[4 * i : 4 * i + 4, i, 1, 1] = 1
            outputs = [m + channel for channel in range(m) if of_channel[channel] == group]
            outputs += sorted({2 * m + self.groups[t] for t in range(len(self.groups)) if of_channel[m + t] == group})
            last.weight[outputs, i, 1, 1] = 1 / _Z_PER_NAT
            last.bias[outputs] -= _ABOVE
        return len(passing)

    @torch.no_grad()
    def _know_places(self, outputs: Sequence[int], offsets: Tensor, passing: int = 0) -> None:
        """Let h_s add offsets (K, 4, 4) to K of its outputs, by the place of an element among the 4 x 4 of one of z.

        Hidden channels are taken for it that are one in their place and zero elsewhere, whatever z: 4 after the first
        shuffle, 16 after the second; of a trained network those that mattered least, the first ``passing`` excepted.
        """
        first: Any = self.h_s[0][0]  # type: ignore[index]
        second: Any = self.h_s[2][0]  # type: ignore[index]
        last: Any = self.h_s[4]
        matter = [conv.weight[:, passing:].square().sum((0, 2, 3)) for conv in (second, last)]
        corners, places = ((passing + w.argsort()[:n]).tolist() for w, n in zip(matter, (4, 16), strict=True))
        for i, corner in enumerate(corners):  # a shuffle makes channel c of 4 c ... 4 c + 3, in rows
            first.weight[4 * corner : 4 * corner + 4] = 0
            first.bias[4 * corner : 4 * corner + 4] = (torch.arange(4) == i).float()
            second.weight[:, corner] = 0
        for number, place in enumerate(places):
            coarse, fine = divmod(number, 4)
            own = slice(4 * place, 4 * place + 4)
            second.weight[own] = 0
            second.weight[own, corners[coarse], 1, 1] = 1
            second.bias[own] = (torch.arange(4) == fine).float() - 1
            last.weight[:, place] = 0
            last.weight[outputs, place, 1, 1] = offsets[:, 2 * (coarse // 2) + fine // 2, 2 * (coarse % 2) + fine % 2]

    def _unit(self) -> Tensor:
        """Scale of each coefficient of y in the eyes of the networks, (M,): as wide as it is, but no less than 1."""
        assert self.lapped is not None
        return torch.sqrt((self.gain * self.lapped.deviation[: self.latent_channels]) ** 2 + 1)

    @property
    def coded_channels(self) -> int:
        """Channels of y that a file holds: those of the networks, then the detail."""
        return self.latent_channels + self.detail_channels

    @property
    def sigma_max(self) -> float:
        """Largest standard deviation that the prior of files has, in units of y.

        It follows from ``lapped``; weights of version 0.4 and earlier hold a rounded one, which their files keep.
        """
        return math.exp(-(self.upper.bound if self.upper.on_file is None else self.upper.on_file))

    @property
    def multiple(self) -> int:
        """Sides of the image must be multiples of this, in pixels."""
        return DOWNSAMPLING * HYPER_DOWNSAMPLING

    def analyse(self, x: Tensor) -> Latents:
        """Image (B, 3, H, W) in [0, 1], H and W multiples of 64, to its latents; q plays no part.

        The latents and the prior are float32 whatever the autocast dtype of the transforms.
        """
        y = self.analysis(x)
        z = self.hyper_analysis(y)
        z_hat = z + (torch.round(z) - z).detach()
        mu, sigma = self.hyper_synthesis(z_hat)
        return Latents(y, z, z_hat, mu, sigma)

    def analysis(self, x: Tensor) -> Tensor:
        """Image (B, 3, H, W) in [0, 1], H and W multiples of 64, to latent y (B, M, H/16, W/16), float32.

        The detail channels, if there are any, come after the M others, here and wherever y, mu and sigma are.
        """
        y: Tensor = self.g_a(x)
        if self.lapped is not None:
            learned = self._unit()[:, None, None] / self.gain * y
            y = self.gain * self.lapped(x - 0.5) + self._with_detail(self.lapped.gather(learned))
        return y

    def hyper_analysis(self, y: Tensor) -> Tensor:
        """Latent y to z (B, N, h/4, w/4), float32, not yet rounded."""
        if self.lapped is not None:
            y = self.lapped.spread(y) / (self.gain * self.lapped.deviation)[:, None, None]
            if len(self.seen):
                y = torch.cat([y[:, : self.latent_channels], self._activity(y[:, -len(self.seen) :])], 1)
        return self.h_a(y).float()  # type: ignore[no-any-return]

    def _with_detail(self, y: Tensor) -> Tensor:
        """Zeros for the detail channels behind y, (B, M, h, w)."""
        return F.pad(y, (0, 0, 0, 0, 0, self.detail_channels)) if self.detail_channels else y

    def _activity(self, y: Tensor) -> Tensor:
        """Logarithm of how strong each group of channels is, relative to what is expected, (B, G, h, w)."""
        with torch.autocast(y.device.type, enabled=False):
            means = torch.einsum("tg,bthw->bghw", self.seen / self.seen.sum(0), y.float() ** 2)
        return torch.log(torch.sqrt(means + 1e-6) + 0.1)

    def hyper_synthesis(self, z_hat: Tensor) -> tuple[Tensor, Tensor]:
        """Prior (mu, sigma) of y from whole numbers z_hat, (B, N, h, w) to twice (B, M, 4h, 4w)."""
        m = self.latent_channels
        out = self.h_s(z_hat).float()
        mu, log_sigma = out[:, :m], out[:, m : 2 * m]
        if self.detail is not None:
            with torch.autocast(out.device.type, enabled=False):
                detail = torch.einsum("tg,bghw->bthw", self.membership, out[:, 2 * m :]) + self.detail[:, None, None]
            mu, log_sigma = self._with_detail(mu), torch.cat([log_sigma, detail], 1)
        # LowerBound lets gradients through that lead back into the range.
        log_sigma = -self.upper(-self.lower(log_sigma))
        return mu, torch.exp(log_sigma)

    def synthesise(self, y: Tensor, realism: sde.Realism = 0.0) -> Tensor:
        """Latent (B, M, h, w) at realism r, a number or B of them, to image (B, 3, 16 h, 16 w), float32, unclamped."""
        if self.lapped is None:
            return self.g_s(y, realism)  # type: ignore[no-any-return]
        spread = self.lapped.spread(y[:, : self.latent_channels])
        learned: Tensor = self.g_s(self.gain * spread / self._unit()[:, None, None], realism)
        return learned + self.lapped.inverse(y / self.gain)

    def likelihoods(self, latents: Latents, q: Tensor, y_q: Tensor) -> dict[str, Tensor]:
        """Probabilities of the symbols at level q (DESIGN 5).

        Args:
            latents: From :meth:`analyse`.
            q: Quantisation step per sample, (B,) or a number.
            y_q: Latent at level q; a sample of the additive noise gives the differentiable rate of training.

        Returns:
            ``y`` like ``latents.y`` and ``z`` like ``latents.z``, in [1e-9, 1]. z is noisy in training mode and
            rounded in evaluation mode.
        """
        with torch.autocast(y_q.device.type, enabled=False):
            y = self.prior_y(y_q, level(q, y_q), latents.mu, latents.sigma)
            _, z = self.prior_z(latents.z)
        return {"y": y, "z": z}
