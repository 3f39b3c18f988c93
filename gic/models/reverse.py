"""The reverse network U and the denoiser D it makes (DESIGN 4).

    (d_mu, d_sigma) = U(y_q, mu, log sigma, log q)             last layer zero
    mu' = mu + sigma * d_mu,   sigma' = sigma * exp(d_sigma)
    D = mean of N(mu', sigma'^2) truncated to the cell of y_q                  (3)

At initialisation D is the exact posterior mean under the entropy model, and it never leaves the cell. U may have a
second set of weights for realism: with W + r * dW it is the generator at r = 1 and the posterior at r = 0.
"""

from __future__ import annotations

import copy
import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from itertools import groupby
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gic.errors import ConfigError
from gic.method.posterior import truncated_normal_mean
from gic.method.samplers import Denoiser, Realism, numbers
from gic.models.ranges import D_SIGMA_MAX


class LevelEmbedding(nn.Module):
    """Smooth features of log q, (B,) to (B, channels)."""

    frequencies: Tensor

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.register_buffer("frequencies", 2.0 ** torch.arange(-2, 3) * math.pi / 2, persistent=False)
        self.mlp = nn.Sequential(
            nn.Linear(2 * len(self.frequencies) + 1, channels),
            nn.SiLU(),
            nn.Linear(channels, channels),
            nn.SiLU(),
        )

    def forward(self, log_q: Tensor) -> Tensor:
        """Embed natural logarithms of q."""
        phase = log_q[:, None] * self.frequencies
        return self.mlp(torch.cat([log_q[:, None], phase.sin(), phase.cos()], dim=1))  # type: ignore[no-any-return]


class LevelBlock(nn.Module):
    """Residual block of two 3x3 convolutions, scaled and shifted by the embedding of q; identity at first."""

    def __init__(self, channels: int, embedding: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1)
        self.film = nn.Linear(embedding, 2 * channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1)
        nn.init.zeros_(self.conv2.weight)
        nn.init.zeros_(self.conv2.bias)  # type: ignore[arg-type]

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        """(B, C, h, w) and (B, E) to (B, C, h, w)."""
        scale, shift = self.film(embedding)[:, :, None, None].chunk(2, dim=1)
        h = self.conv1(F.silu(x)) * (1 + scale) + shift
        return x + self.conv2(F.silu(h))  # type: ignore[no-any-return]


class LevelBlocks(nn.Module):
    """Blocks in a row at one resolution."""

    def __init__(self, count: int, channels: int, embedding: int) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(LevelBlock(channels, embedding) for _ in range(count))

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        """(B, C, h, w) and (B, E) to (B, C, h, w)."""
        for block in self.blocks:
            x = block(x, embedding)
        return x


class Attention(nn.Module):
    """Multi-head self-attention over all positions, with a residual; for the coarsest level only."""

    def __init__(self, channels: int, heads: int = 4) -> None:
        super().__init__()
        self.heads = heads
        self.norm = nn.GroupNorm(1, channels)
        self.qkv = nn.Conv2d(channels, 3 * channels, 1)
        self.out = nn.Conv2d(channels, channels, 1)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, h, w) to (B, C, h, w)."""
        b, c, h, w = x.shape
        qkv = self.qkv(self.norm(x)).reshape(b, 3, self.heads, c // self.heads, h * w).transpose(-1, -2)
        a = F.scaled_dot_product_attention(*qkv.unbind(1))
        return x + self.out(a.transpose(-1, -2).reshape(b, c, h, w))  # type: ignore[no-any-return]


class ReverseNetwork(nn.Module, ABC):
    """U: what refines the prior of y from y_q; a subclass may be any network.

    Attributes:
        latent_channels: M, channels of y that it refines; None until :meth:`refine_for` sets it.
        realistic: Second weights for r > 0; None, or no such attribute, for a network in which r changes nothing.
    """

    latent_channels: int | None = None
    realistic: nn.Module | None

    def refine_for(self, latent_channels: int) -> None:
        """Set the number of latent channels of the compressor; called by the codec.

        Raises:
            ConfigError: If the network is made for another number.
        """
        if self.latent_channels != latent_channels:
            raise ConfigError(
                f"the reverse network is made for {self.latent_channels} latent channels, the compressor has "
                f"{latent_channels}: leave latent_channels of the reverse network out"
            )

    @abstractmethod
    def forward(
        self, y_q: Tensor, mu: Tensor, log_sigma: Tensor, log_q: Tensor, realism: Realism = 0.0
    ) -> tuple[Tensor, Tensor]:
        """Refine the prior of y.

        Args:
            y_q: Latent at level q, (B, M, h, w).
            mu: Prior mean, like ``y_q``.
            log_sigma: Natural logarithm of the prior's standard deviation, like ``y_q``.
            log_q: Natural logarithm of the level, (B,); where levels differ between elements, a field like ``y_q``, of
                which :func:`mean_level` makes one number for each sample (DESIGN 11).
            realism: r in [0, 1], a number or one for each sample; passed only where ``realistic`` is not None.

        Returns:
            ``d_mu`` (in units of sigma) and ``d_sigma`` (in nats), like ``y_q``, float32. Both zero leave the prior
            unchanged, a good initialisation.
        """


class ReverseUNet(ReverseNetwork):
    """U: a small U-Net at latent resolution, conditioned on log q.

    Args:
        latent_channels: M, channels of y; the compressor's if left out.
        widths: Channels at each resolution, from H/16 downwards, each half the size of the one before.
        blocks: Residual blocks at each resolution; those above the coarsest are there twice, down and up.
        embedding: Channels of the embedding of q.
        attention: Self-attention after the blocks of the coarsest resolution.
        realistic: Have weights ``W + r * dW``, the interpolation of two networks (arXiv 1811.10515), as the last stages
            of g_s do: dW learns realism, and r = 0 does not depend on it. dW is 0 at first.
    """

    _plain: _Plain

    def __init__(
        self,
        latent_channels: int | None = None,
        widths: Sequence[int] = (128, 192),
        blocks: Sequence[int] = (1, 2),
        embedding: int = 64,
        attention: bool = False,
        realistic: bool = False,
    ) -> None:
        super().__init__()
        if not 1 <= len(widths) <= 3 or len(widths) != len(blocks):
            raise ValueError("widths and blocks of the reverse network must have the same length, 1 to 3")
        self.latent_channels = None
        self._settings = (widths, blocks, embedding, attention, realistic)
        if latent_channels is not None:
            self.refine_for(latent_channels)

    def refine_for(self, latent_channels: int) -> None:
        """Set the number of latent channels of the compressor; build the network if it was left open.

        Raises:
            ConfigError: If the network is made for another number.
        """
        if self.latent_channels is not None:
            super().refine_for(latent_channels)
            return
        widths, blocks, embedding, attention, realistic = self._settings
        self.latent_channels = latent_channels
        self.embed = LevelEmbedding(embedding)
        self.enter = nn.Conv2d(3 * latent_channels, widths[0], 1)
        self.down_blocks, self.up_blocks = nn.ModuleList(), nn.ModuleList()
        self.down, self.up = nn.ModuleList(), nn.ModuleList()
        for i, (width, count) in enumerate(zip(widths, blocks, strict=True)):
            self.down_blocks.append(LevelBlocks(count, width, embedding))
            if i + 1 < len(widths):
                self.down.append(nn.Conv2d(width, widths[i + 1], 3, stride=2, padding=1))
                self.up.append(nn.Sequential(nn.Conv2d(widths[i + 1], 4 * width, 1), nn.PixelShuffle(2)))
                self.up_blocks.append(LevelBlocks(count, width, embedding))
        self.attention = Attention(widths[-1]) if attention else nn.Identity()
        self.leave = nn.Conv2d(widths[0], 2 * latent_channels, 1)
        nn.init.zeros_(self.leave.weight)
        nn.init.zeros_(self.leave.bias)  # type: ignore[arg-type]
        change = copy.deepcopy(self) if realistic else None
        if change is not None:
            for weights in change.parameters():
                nn.init.zeros_(weights)
        self.realistic = change
        """dW, in the shape of the network; None without."""
        self.__dict__["_plain"] = _Plain(self)  # beside the modules: it holds this one
        self.register_load_state_dict_pre_hook(_without_realism)  # type: ignore[no-untyped-call]

    def forward(
        self, y_q: Tensor, mu: Tensor, log_sigma: Tensor, log_q: Tensor, realism: Realism = 0.0
    ) -> tuple[Tensor, Tensor]:
        """Refine the prior of y.

        Args:
            y_q: Latent at level q, (B, M, h, w), h and w multiples of 2 ** (len(widths) - 1).
            mu: Prior mean, like ``y_q``.
            log_sigma: Natural logarithm of the prior's standard deviation, like ``y_q``.
            log_q: Natural logarithm of the level, (B,), or a field like ``y_q``.
            realism: r in [0, 1], a number or one for each sample. Neighbours with equal r go through the network
                together, which is faster. Without second weights it has no effect.

        Returns:
            ``d_mu`` (in units of sigma) and ``d_sigma`` (in nats, |d_sigma| < D_SIGMA_MAX), like ``y_q``, float32.
        """
        inputs = (y_q, mu, log_sigma, log_q)
        if self.realistic is None:
            return self._refined(*inputs)
        values = numbers(realism)
        if len(values) == 1:
            return self._at(values[0], *inputs)
        runs = [(r, len(list(run))) for r, run in groupby(values)]
        pieces = zip(*(torch.split(x, [count for _, count in runs]) for x in inputs), strict=True)
        parts = [self._at(r, *piece) for (r, _), piece in zip(runs, pieces, strict=True)]
        d_mu, d_sigma = zip(*parts, strict=True)
        return torch.cat(d_mu), torch.cat(d_sigma)

    def _at(self, r: float, *inputs: Tensor) -> tuple[Tensor, Tensor]:
        """The network at one r for all the batch."""
        assert self.realistic is not None
        if r == 0 and not self.training:
            return self._refined(*inputs)
        # In training also at r = 0: DistributedDataParallel wants every parameter in every step.
        change = dict(self.realistic.named_parameters())
        weights = {f"network.{name}": self.get_parameter(name) + r * dw for name, dw in change.items()}
        refined: tuple[Tensor, Tensor] = torch.func.functional_call(self._plain, weights, inputs)
        return refined

    def _refined(self, y_q: Tensor, mu: Tensor, log_sigma: Tensor, log_q: Tensor) -> tuple[Tensor, Tensor]:
        embedding = self.embed(mean_level(log_q))
        log_q = log_q if log_q.dim() > 1 else log_q[:, None, None, None]
        q = torch.exp(log_q)
        # The symbol, the prior mean and sigma / q, squeezed so that outliers stay of order one.
        x = torch.cat([torch.asinh((y_q - mu) / q), torch.asinh(mu / q), log_sigma - log_q], 1)
        x = self.enter(x)
        skips: list[Tensor] = []
        for i, blocks in enumerate(self.down_blocks):
            x = blocks(x, embedding)
            if i < len(self.down):
                skips.append(x)
                x = self.down[i](x)
        x = self.attention(x)
        for i in reversed(range(len(self.up))):
            x = self.up[i](x) + skips[i]
            x = self.up_blocks[i](x, embedding)
        d_mu, d_sigma = self.leave(F.silu(x)).float().chunk(2, dim=1)
        return d_mu, D_SIGMA_MAX * torch.tanh(d_sigma / D_SIGMA_MAX)


class _Plain(nn.Module):
    """A network without the argument r, to be called with other weights."""

    def __init__(self, network: ReverseUNet) -> None:
        super().__init__()
        self.network = network

    def forward(self, *inputs: Tensor) -> tuple[Tensor, Tensor]:
        return self.network._refined(*inputs)


def _without_realism(module: ReverseUNet, state: dict[str, Any], prefix: str, *_: Any) -> None:
    """Complete weights without a second set: dW = 0."""
    if module.realistic is not None and not any(name.startswith(f"{prefix}realistic.") for name in state):
        change = module.realistic.named_parameters()
        state |= {f"{prefix}realistic.{name}": torch.zeros_like(weights) for name, weights in change}


def mean_level(log_q: Tensor) -> Tensor:
    """One logarithm of the level for each sample, (B,): the mean of a field (B, M, h, w), or (B,) as it is.

    >>> mean_level(torch.tensor([[[[0.0, 2.0]]]])), mean_level(torch.tensor([0.5]))
    (tensor([1.]), tensor([0.5000]))
    """
    if log_q.dim() == 1:
        return log_q
    return log_q.flatten(1).double().mean(1).to(log_q.dtype)  # in float64, so that the mean of equal numbers is theirs


def refine(
    network: nn.Module, y_q: Tensor, q: Tensor, mu: Tensor, sigma: Tensor, realism: Realism = 0.0
) -> tuple[Tensor, Tensor]:
    """Refined prior ``mu' = mu + sigma * d_mu``, ``sigma' = sigma * exp(d_sigma)`` (DESIGN 4).

    Args:
        network: U.
        y_q: Latent at level q, (B, M, h, w).
        q: Level, (B, 1, 1, 1), or a field like ``y_q``.
        mu: Prior mean, like ``y_q``.
        sigma: Prior standard deviation, like ``y_q``.
        realism: r, a number or one for each sample; for networks with a second set of weights.

    Returns:
        ``mu'`` and ``sigma'``, like ``y_q``, float32.
    """
    second = {} if getattr(network, "realistic", None) is None else {"realism": realism}
    log_q = torch.log(q)
    log_q = log_q.reshape(-1) if q.numel() == q.shape[0] else log_q.expand_as(y_q)
    d_mu, d_sigma = network(y_q, mu, torch.log(sigma), log_q, **second)
    return mu + sigma * d_mu, sigma * torch.exp(d_sigma)


@torch.no_grad()
def _passed(y_q: Tensor, q: Tensor, mu: Tensor, sigma: Tensor) -> Tensor:
    """D of the prior without refinement; where ``y_q`` is mu, as in most of the detail, D is mu too."""
    if y_q.device.type != "cpu":  # counting the others would synchronise a GPU
        return truncated_normal_mean(y_q, q, mu, sigma)
    others = (y_q != mu).nonzero(as_tuple=True)
    return y_q.index_put(others, truncated_normal_mean(*(t[others] for t in (y_q, q, mu, sigma))))


def denoiser(network: nn.Module, mu: Tensor, sigma: Tensor, realism: Realism = 0.0) -> Denoiser:
    """D(y_q, q) of DESIGN 4 (3) for given prior and r, in the form that :func:`gic.method.samplers.reverse` takes.

    Channels beyond the network's (the detail) keep their prior, and the network does not learn from them.
    """
    own = slice(None, getattr(network, "latent_channels", None))
    detail = slice(own.stop or mu.shape[1], None)

    def denoise(y_q: Tensor, q: Tensor) -> Tensor:
        if detail.start == y_q.shape[1]:
            return truncated_normal_mean(y_q, q, *refine(network, y_q, q, mu, sigma, realism))
        field = q.expand_as(y_q)
        q = q if q.shape[1] == 1 else q[:, own]
        y, m, s = (t[:, own] for t in (y_q, mu, sigma))
        mean = truncated_normal_mean(y, q, *refine(network, y, q, m, s, realism))
        return torch.cat([mean, _passed(*(t[:, detail] for t in (y_q, field, mu, sigma)))], 1)

    return denoise
