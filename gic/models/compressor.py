"""The compressor: transforms g_a and g_s around a hyperprior entropy model at level q (DESIGN 1, 5).

    x -> g_a -> y -> h_a -> z --round--> z_hat -> h_s -> mu, sigma
                y -> level q (see gic.method.sde) -> y_q, coded with N(mu, sigma^2) on the grid of step q
                                              y_hat -> g_s -> x_hat

z and hence mu and sigma do not depend on q: one analysis serves all rates. Names, layers and entropy models are
CompressAI's; the hyperprior is that of Minnen et al. 2018 (arXiv 1809.02736).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gic.errors import ConfigError
from gic.method.samplers import Realism
from gic.method.sde import level
from gic.models.entropy_model import FactorizedPrior, LevelGaussian, LevelLaplace
from gic.models.hyper import HyperAnalysis, HyperSynthesis
from gic.models.lapped import LappedTransform
from gic.models.layers import LowerBound
from gic.models.linear_start import PRIOR_SLOPE, begin_linear
from gic.models.lot import SideChannels
from gic.models.ranges import LAPPED_SIGMA_MAX, SIGMA_MAX, SIGMA_MIN, Prior, check_prior
from gic.models.transforms import Analysis, Block, Synthesis, initialise


class Latents(NamedTuple):
    """What one analysis of a batch yields; nothing of it depends on q.

    Attributes:
        y: Latent g_a(x), (B, M, H/16, W/16).
        z: Hyper-latent h_a(y), (B, N, H/64, W/64).
        z_hat: z rounded to integers, with straight-through gradient.
        mu: Prior mean of y, like y.
        sigma: Prior standard deviation of y, like y, at least SIGMA_MIN and at most the compressor's ``sigma_max``.
    """

    y: Tensor
    z: Tensor
    z_hat: Tensor
    mu: Tensor
    sigma: Tensor


def _membership(groups: Sequence[int]) -> Tensor:
    """Which channel (row) belongs to which group (column), 1 or 0; (0,) for no channels."""
    if not groups:
        return torch.zeros(0, 0)
    return (torch.tensor(groups)[:, None] == torch.arange(max(groups) + 1)).float()


def _stride(network: nn.Module) -> int:
    stride = getattr(network, "stride", None)
    if not isinstance(stride, int) or stride < 1:
        raise ConfigError(f"{type(network).__name__} has no stride: give the class an attribute `stride`")
    return stride


class Compressor(nn.Module):
    """Transforms and hyperprior: everything of the codec but the reverse network.

    Args:
        g_a: Image (B, 3, H, W) in [0, 1] to y (B, M, H/s, W/s), s its ``stride``.
        g_s: Latent (B, M, h, w) and realism r to image (B, 3, s h, s w).
        h_a: y, and the activity if ``hyper_activity`` is set, to z (B, N, h/t, w/t), t its ``stride``.
        h_s: Integers z_hat (B, N, h, w) to mu, log sigma, and log sigma of each group of the detail, (B, C, t h, t w).
            To code files it must consist of layers that :class:`gic.bitstream.exact.IntegerNetwork` takes.
        latent_channels: M, channels of y.
        hyper_channels: N, channels of z.
        gain: Factor on the lapped transform, which sets the scale of y.
        lapped: Use the lapped orthogonal transform (:mod:`gic.models.lapped`), of stride 16, as a shortcut around g_a
            and g_s: training starts from a linear codec and takes far fewer steps.
        detail_channels: Further channels of y: the lapped coefficients of the next higher frequencies, unchanged. They
            bypass g_a, g_s and the reverse network and have mu = 0. Each group
            (:func:`gic.models.lot.frequency_groups`) shares one sigma from h_s, times a learned factor for each
            channel. At coarse steps they cost almost nothing.
        hyper_activity: Give h_a, beside y, the activity: the logarithm of the magnitude of each group of channels. At
            the start z is its mean and sigma follows z, which saves training steps. Needs the lapped transform.
        prior: Distribution of y about mu with which files are coded, ``gaussian`` or ``laplace``. The reverse flow
            takes it for Gaussian (DESIGN 4), and U learns the difference.

    Raises:
        ConfigError: If there are more channels than the lapped transform has, a network has no ``stride``, the prior
            is neither of the two, or there are detail channels without the lapped transform or with too few others.
    """

    membership: Tensor
    seen: Tensor

    def __init__(
        self,
        g_a: nn.Module,
        g_s: nn.Module,
        h_a: nn.Module,
        h_s: nn.Module,
        latent_channels: int = 192,
        hyper_channels: int = 128,
        gain: float = 8.0,
        lapped: bool = False,
        detail_channels: int = 0,
        hyper_activity: bool = False,
        prior: Prior = "gaussian",
    ) -> None:
        super().__init__()
        channels = SideChannels.of(latent_channels, lapped, detail_channels, hyper_activity)
        self.latent_channels = latent_channels
        self.detail_channels = detail_channels
        self.hyper_channels = hyper_channels
        self.lapped = LappedTransform(latent_channels + detail_channels) if lapped else None
        if self.lapped is not None and detail_channels and max(self.lapped.means) >= latent_channels:
            raise ConfigError(f"{latent_channels} latent_channels are too few beside {detail_channels} detail_channels")
        self.groups = channels.groups
        """Group of each detail channel."""
        self.register_buffer("membership", _membership(channels.groups), persistent=False)
        """Which detail channel (row) belongs to which group (column)."""
        self.hyper_activity = hyper_activity
        self.register_buffer("seen", _membership(channels.seen), persistent=False)
        """The same for the channels whose activity h_a receives: all, or the detail."""
        self.g_a, self.g_s, self.h_a, self.h_s = g_a, g_s, h_a, h_s
        self.gain = gain
        self.detail: nn.Parameter | None = None
        """Log sigma of each detail channel, relative to its group's."""
        if self.lapped is not None and detail_channels:
            expected = (gain * self.lapped.scale * self.lapped.deviation)[latent_channels:]
            self.detail = nn.Parameter(expected.log())
        if self.lapped is not None:
            if self.downsampling != 16:
                raise ConfigError(
                    f"the lapped transform has a stride of 16, g_a {self.downsampling}: set lapped to false"
                )
            for network in (g_a, g_s):
                if callable(begin := getattr(network, "begin_silent", None)):
                    begin()
            if isinstance(h_a, HyperAnalysis) and isinstance(h_s, HyperSynthesis):
                unit = self._unit()
                begin_linear(
                    h_a,
                    h_s,
                    self.lapped,
                    latent_channels,
                    gain,
                    unit,
                    activity=hyper_activity,
                    detail_groups=self.groups,
                )
        self.prior_z = FactorizedPrior(hyper_channels, slope=PRIOR_SLOPE if hyper_activity else None)
        self.prior = check_prior(prior)
        self.prior_y = LevelLaplace() if prior == "laplace" else LevelGaussian()
        self.lower = LowerBound(math.log(SIGMA_MIN))
        self.upper = LowerBound(-math.log(LAPPED_SIGMA_MAX if lapped else SIGMA_MAX))

    def _unit(self) -> Tensor:
        """Scale of each coefficient of y for the networks, (M,): its standard deviation, but at least 1."""
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
    def downsampling(self) -> int:
        """Pixels for each element of y, along each side."""
        return _stride(self.g_a)

    @property
    def hyper_downsampling(self) -> int:
        """Elements of y for each element of z, along each side."""
        return _stride(self.h_a)

    @property
    def multiple(self) -> int:
        """Sides of the image must be multiples of this, in pixels."""
        return self.downsampling * self.hyper_downsampling

    @property
    def networks(self) -> tuple[nn.Module, ...]:
        """The networks that training may compile."""
        return self.g_a, self.g_s, self.h_a, self.h_s

    def analyse(self, x: Tensor) -> Latents:
        """Image (B, 3, H, W) in [0, 1], H and W multiples of 64, to its latents, which do not depend on q.

        The latents and the prior are float32 for every autocast dtype of the transforms.
        """
        y = self.analysis(x)
        z = self.hyper_analysis(y)
        z_hat = z + (torch.round(z) - z).detach()
        mu, sigma = self.hyper_synthesis(z_hat)
        return Latents(y, z, z_hat, mu, sigma)

    def analysis(self, x: Tensor) -> Tensor:
        """Image (B, 3, H, W) in [0, 1], H and W multiples of 64, to latent y (B, M, H/16, W/16), float32.

        The detail channels, if there are any, come after the M others, here and in every y, mu and sigma.
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
        """Append zeros for the detail channels to y, (B, M, h, w)."""
        return F.pad(y, (0, 0, 0, 0, 0, self.detail_channels)) if self.detail_channels else y

    def _activity(self, y: Tensor) -> Tensor:
        """Log magnitude of each group of channels, relative to the expected one, (B, G, h, w)."""
        with torch.autocast(y.device.type, enabled=False):
            means = torch.einsum("tg,bthw->bghw", self.seen / self.seen.sum(0), y.float() ** 2)
        return torch.log(torch.sqrt(means + 1e-6) + 0.1)

    def hyper_synthesis(self, z_hat: Tensor) -> tuple[Tensor, Tensor]:
        """Prior (mu, sigma) of y from integers z_hat, (B, N, h, w) to twice (B, M, 4h, 4w)."""
        m = self.latent_channels
        out = self.h_s(z_hat).float()
        mu, log_sigma = out[:, :m], out[:, m : 2 * m]
        if self.detail is not None:
            with torch.autocast(out.device.type, enabled=False):
                detail = torch.einsum("tg,bghw->bthw", self.membership, out[:, 2 * m :]) + self.detail[:, None, None]
            mu, log_sigma = self._with_detail(mu), torch.cat([log_sigma, detail], 1)
        # LowerBound passes gradients that lead back into the range.
        log_sigma = -self.upper(-self.lower(log_sigma))
        return mu, torch.exp(log_sigma)

    def synthesise(self, y: Tensor, realism: Realism = 0.0) -> Tensor:
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
            q: Quantisation step, a number, (B,) or a field like ``latents.y``.
            y_q: Latent at level q; a sample of the additive noise gives the differentiable rate of training.

        Returns:
            ``y`` like ``latents.y`` and ``z`` like ``latents.z``, in [1e-9, 1]. z is noisy in training mode and
            rounded in evaluation mode.
        """
        with torch.autocast(y_q.device.type, enabled=False):
            y = self.prior_y(y_q, level(q, y_q), latents.mu, latents.sigma)
            _, z = self.prior_z(latents.z)
        return {"y": y, "z": z}


class ResidualCompressor(Compressor):
    """The compressor of gic's own weights: transforms of residual blocks, made from a few numbers.

    Args:
        widths: Channels of g_a's stages at H/2, H/4, H/8, H/16, mirrored by g_s.
        blocks: Residual blocks in each stage of g_a and, without ``synthesis_blocks``, of g_s.
        synthesis_blocks: Residual blocks in each stage of g_s.
        latent_channels: M, channels of y.
        hyper_channels: N, channels of z.
        block: Kind of residual block, ``residual`` or ``bottleneck``.
        attention: Attention blocks in the transforms, as in ELIC.
        gain: Scale of y at the start of training.
        realistic_stages: Stages of g_s with weights of their own for r = 1, see :class:`Synthesis`.
        lapped: As in :class:`Compressor`, and the three below.
        detail_channels: Coefficients of higher frequencies that bypass the networks.
        hyper_activity: Give h_a the activity of each group of channels.
        prior: Distribution of y about mu, ``gaussian`` or ``laplace``.

    Raises:
        ConfigError: If there are more channels than the lapped transform has, too many realistic stages, or detail
            channels without the lapped transform or with too few others.

    Example:
        >>> model = ResidualCompressor(widths=(8, 8, 8, 8), blocks=(0, 0, 1, 1), latent_channels=16, hyper_channels=8)
        >>> latents = model.analyse(torch.rand(2, 3, 64, 128))
        >>> latents.y.shape, latents.z.shape
        (torch.Size([2, 16, 4, 8]), torch.Size([2, 8, 1, 2]))
    """

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
        groups, seen = (
            len(set(each)) for each in SideChannels.of(latent_channels, lapped, detail_channels, hyper_activity)
        )
        g_a = Analysis(widths, blocks, m, block, attention, gain)
        g_s = Synthesis(widths, synthesis_blocks or blocks, m, block, attention, gain, realistic_stages)
        h_a, h_s = HyperAnalysis(m + seen, n), HyperSynthesis(n, 2 * m + groups)
        for network in (g_a, g_s.layers, h_a, h_s):
            initialise(network)
        super().__init__(g_a, g_s, h_a, h_s, m, n, gain, lapped, detail_channels, hyper_activity, prior)
