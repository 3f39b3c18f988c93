"""Descriptions of gic's networks: the arguments of the classes in :mod:`gic.models`, without PyTorch.

Each class has the name and the arguments of the network that it describes, with the same defaults; a test holds them
together.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from gic.errors import ConfigError
from gic.method.samplers import SAMPLERS, Sampler
from gic.models.lot import BLOCK, SideChannels, lot
from gic.models.ranges import Prior, check_prior, check_settings

Block = Literal["residual", "bottleneck"]


class Part:
    """Base of all descriptions."""


@dataclass
class _Transform(Part):
    """What g_a and g_s have in common."""

    widths: Sequence[int]
    blocks: Sequence[int]
    latent_channels: int
    block: Block = "residual"
    attention: bool = False
    gain: float = 8.0


@dataclass
class Analysis(_Transform):
    """g_a: :class:`gic.models.transforms.Analysis`."""

    def __post_init__(self) -> None:
        """Check the lengths."""
        if len(self.widths) != len(self.blocks):
            raise ConfigError("widths and blocks of g_a must have the same length")

    @property
    def stride(self) -> int:
        """Pixels for each element of y, along each side."""
        return 1 << len(self.widths)


@dataclass
class Synthesis(_Transform):
    """g_s: :class:`gic.models.transforms.Synthesis`."""

    realistic_stages: int = 0

    def __post_init__(self) -> None:
        """Check the numbers of stages."""
        if len(self.blocks) < len(self.widths):
            raise ConfigError("blocks of g_s must be as many as widths")
        if not 0 <= self.realistic_stages <= len(self.widths):
            raise ConfigError(f"realistic_stages must lie in 0 ... {len(self.widths)}, not {self.realistic_stages}")


@dataclass
class HyperAnalysis(Part):
    """h_a: :class:`gic.models.hyper.HyperAnalysis`."""

    channels: int
    hyper_channels: int


@dataclass
class HyperSynthesis(Part):
    """h_s: :class:`gic.models.hyper.HyperSynthesis`."""

    hyper_channels: int
    channels: int


HYPER_STRIDE = 4
"""Elements of y for each element of z, along each side, of both."""


@dataclass
class Compressor(Part):
    """:class:`gic.models.compressor.Compressor`."""

    g_a: Analysis
    g_s: Synthesis
    h_a: HyperAnalysis
    h_s: HyperSynthesis
    latent_channels: int = 192
    hyper_channels: int = 128
    gain: float = 8.0
    lapped: bool = False
    detail_channels: int = 0
    hyper_activity: bool = False
    prior: Prior = "gaussian"

    def __post_init__(self) -> None:
        """Check the prior, and what the lapped transform needs."""
        check_prior(self.prior)
        m, detail = self.latent_channels, self.detail_channels
        SideChannels.of(m, self.lapped, detail, self.hyper_activity)
        if self.lapped and max(lot(m + detail).means) >= m and detail:
            raise ConfigError(f"{m} latent_channels are too few beside {detail} detail_channels")
        if self.lapped and self.g_a.stride != BLOCK:
            raise ConfigError(
                f"the lapped transform has a stride of {BLOCK}, g_a {self.g_a.stride}: set lapped to false"
            )


class ResidualCompressor(Compressor):
    """:class:`gic.models.compressor.ResidualCompressor`."""

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
        prior: Prior = "gaussian",
    ) -> None:
        m, n = latent_channels, hyper_channels
        groups, seen = (len(set(each)) for each in SideChannels.of(m, lapped, detail_channels, hyper_activity))
        super().__init__(
            Analysis(widths, blocks, m, block, attention, gain),
            Synthesis(widths, synthesis_blocks or blocks, m, block, attention, gain, realistic_stages),
            HyperAnalysis(m + seen, n),
            HyperSynthesis(n, 2 * m + groups),
            m,
            n,
            gain,
            lapped,
            detail_channels,
            hyper_activity,
            prior,
        )


@dataclass
class ReverseUNet(Part):
    """U: :class:`gic.models.reverse.ReverseUNet`."""

    latent_channels: int | None = None
    widths: Sequence[int] = (128, 192)
    blocks: Sequence[int] = (1, 2)
    embedding: int = 64
    attention: bool = False
    realistic: bool = False

    def __post_init__(self) -> None:
        """Check the lengths."""
        if not 1 <= len(self.widths) <= 3 or len(self.widths) != len(self.blocks):
            raise ConfigError("widths and blocks of the reverse network must have the same length, 1 to 3")


@dataclass
class Codec(Part):
    """:class:`gic.models.codec.Codec`."""

    compressor: Compressor
    reverse: ReverseUNet
    q_min: float = 0.5
    q_max: float = 8.0
    quantizer: Literal["round", "dither"] = "round"
    sampler: str | Sampler = "heun"
    steps: int = 2
    rho: float = 1.0

    def __post_init__(self) -> None:
        """Check the settings, and that the networks fit together."""
        check_settings(self.q_min, self.q_max, self.quantizer, self.steps, self.rho)
        if self.reverse.latent_channels not in (None, self.compressor.latent_channels):
            raise ConfigError(
                f"the reverse network is made for {self.reverse.latent_channels} latent channels, the compressor has "
                f"{self.compressor.latent_channels}: leave latent_channels of the reverse network out"
            )


KNOWN: dict[str, type[Any]] = {
    "gic.models.codec.Codec": Codec,
    "gic.models.compressor.Compressor": Compressor,
    "gic.models.compressor.ResidualCompressor": ResidualCompressor,
    "gic.models.transforms.Analysis": Analysis,
    "gic.models.transforms.Synthesis": Synthesis,
    "gic.models.hyper.HyperAnalysis": HyperAnalysis,
    "gic.models.hyper.HyperSynthesis": HyperSynthesis,
    "gic.models.reverse.ReverseUNet": ReverseUNet,
    **{f"{kind.__module__}.{kind.__qualname__}": kind for kind in SAMPLERS.values()},
}
"""What describes each network, by the name of its class."""
