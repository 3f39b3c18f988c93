"""The whole differentiable codec: compressor, level, reverse flow (DESIGN 2 to 7).

    x -> analyse -> y, mu, sigma -> level q -> y_q -> reverse flow with D -> y_hat -> g_s -> x_hat

It handles no bytes: this is the model that is trained and that the file codec uses.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gic.errors import ConfigError
from gic.method import sde
from gic.method.posterior import truncated_normal_mean, truncated_normal_nll
from gic.method.samplers import Denoiser, Realism, Sampler, reverse, sampler_of
from gic.models.compressor import Compressor, Latents
from gic.models.ranges import SKIP_BELOW, check_settings
from gic.models.reverse import ReverseNetwork, denoiser, refine


class CodecOutput(NamedTuple):
    """Result of one pass through the codec.

    Attributes:
        x_hat: Reconstruction, (B, 3, H, W), float32, not clamped.
        y_hat: Estimate of the latent behind it, (B, M, H/16, W/16).
        y_q: Latent at level q, as the decoder has it.
        latents: Latents of the encoder and the prior.
        bits: Ideal code length of each image, (B,), differentiable in training mode.
    """

    x_hat: Tensor
    y_hat: Tensor
    y_q: Tensor
    latents: Latents
    bits: Tensor


class Codec(nn.Module):
    """Rate-variable generative codec: one set of weights for every level q in ``q_range``.

    Args:
        compressor: Transforms and entropy model.
        reverse: The network U that refines the prior of the denoiser.
        q_min: Finest level, > 0, in units of y.
        q_max: Coarsest level.
        quantizer: ``round`` or ``dither`` (DESIGN 2).
        sampler: Default sampler of the reverse flow, for example ``heun`` or ``sde(alpha=0.3)`` (DESIGN 3).
        steps: Default number of steps.
        rho: Exponent of the step schedule.

    Raises:
        ConfigError: If the levels or the networks do not fit together.

    Example:
        >>> from gic.models.compressor import ResidualCompressor
        >>> from gic.models.reverse import ReverseUNet
        >>> codec = Codec(ResidualCompressor((8, 8, 8, 8), (0, 0, 0, 0), latent_channels=8, hyper_channels=4),
        ...               ReverseUNet(8, widths=(8,), blocks=(1,)))
        >>> out = codec(torch.rand(2, 3, 64, 64), q=torch.tensor([1.0, 4.0]))
        >>> out.x_hat.shape, out.bits.shape
        (torch.Size([2, 3, 64, 64]), torch.Size([2]))
    """

    def __init__(
        self,
        compressor: Compressor,
        reverse: ReverseNetwork,
        q_min: float = 0.5,
        q_max: float = 8.0,
        quantizer: Literal["round", "dither"] = "round",
        sampler: str | Sampler = "heun",
        steps: int = 2,
        rho: float = 1.0,
    ) -> None:
        super().__init__()
        check_settings(q_min, q_max, quantizer, steps, rho)
        reverse.refine_for(compressor.latent_channels)
        self.compressor = compressor
        self.reverse = reverse
        self.q_min, self.q_max = q_min, q_max
        self.quantizer = quantizer
        self.sampler = sampler_of(sampler)
        self.steps = steps
        self.rho = rho

    @property
    def networks(self) -> tuple[nn.Module, ...]:
        """The networks that training may compile."""
        return *self.compressor.networks, self.reverse

    # --- levels -------------------------------------------------------------------------------------------

    def check_level(self, q: float) -> float:
        """Return ``q`` if it lies in the trained range.

        Raises:
            ConfigError: If it does not; the text gives the range.
        """
        if not (math.isfinite(q) and self.q_min <= q <= self.q_max):
            raise ConfigError(f"q = {q:g} lies outside the range of this model, [{self.q_min:g}, {self.q_max:g}]")
        return q

    def sample_levels(self, count: int, device: torch.device | None = None) -> Tensor:
        """Draw ``count`` levels log-uniformly from [q_min, q_max], (count,) float32 (DESIGN 4)."""
        t = torch.rand(count, device=device)
        return torch.exp(math.log(self.q_min) + t * math.log(self.q_max / self.q_min))

    # --- the way forward and back -------------------------------------------------------------------------

    def to_level(self, latents: Latents, q: Tensor, generator: sde.Generator = None) -> Tensor:
        """Quantise y to level q with the codec's quantiser, as the decoder will have it (DESIGN 2).

        Args:
            latents: Latents of the encoder and the prior; y, mu and sigma (B, M, h, w), float32.
            q: Level of each image, (B,), or of each element, like y.
            generator: Where the dither is drawn from.

        Returns:
            ``y_q``, (B, M, h, w), within q / 2 of y; gradients pass straight through to y.
        """
        y, mu, sigma = latents.y, latents.mu, latents.sigma
        y_q = sde.forward(y, q, quantizer=self.quantizer, mu=mu, generator=generator)
        if self.quantizer == "dither" and not self.training:
            y_q = torch.where(sigma < SKIP_BELOW * sde.level(q, y), mu, y_q)
        return y_q

    def bits(self, latents: Latents, q: Tensor, y_q: Tensor) -> Tensor:
        """Measure the ideal code length of each image, y and z together, in bits, (B,) (DESIGN 5).

        In training mode the rate of y is that of additive noise, which is differentiable; in evaluation mode it is
        that of ``y_q`` itself.
        """
        if self.training:
            noisy, learned = sde.forward(latents.y, q, quantizer="noise"), self.compressor.latent_channels
            # The detail channels keep their symbols: the networks do not learn from them.
            y_q = torch.cat([noisy[:, :learned], y_q[:, learned:]], 1) if self.compressor.detail_channels else noisy
        p = self.compressor.likelihoods(latents, q, y_q)
        bits_y = -torch.log2(p["y"])
        if self.quantizer == "dither" and not self.training:
            bits_y = bits_y * (latents.sigma >= SKIP_BELOW * sde.level(q, y_q))
        return bits_y.flatten(1).sum(1) - torch.log2(p["z"]).flatten(1).sum(1)

    def denoiser(self, latents: Latents, realism: Realism = 0.0) -> Denoiser:
        """D(y_q, q) of DESIGN 4 (3) for the prior in ``latents``; with U's second weights at r > 0 if it has them."""
        return denoiser(self.reverse, latents.mu, latents.sigma, realism)

    def restore(
        self,
        latents: Latents,
        y_q: Tensor,
        q: Tensor,
        *,
        realism: Realism = 1.0,
        sampler: str | Sampler | None = None,
        steps: int | None = None,
        generator: sde.Generator = None,
    ) -> Tensor:
        """Run the reverse flow from ``y_q`` to an estimate of y (DESIGN 3, 7).

        Args:
            latents: Of these only the prior, mu and sigma, (B, M, h, w), is used: what a decoder has.
            y_q: Latent at level q, (B, M, h, w).
            q: Level of each image, (B,), or of each element, like y.
            realism: r in [0, 1], a number or one for each image.
            sampler: Sampler, the codec's default if left out.
            steps: Number of steps, the codec's default if left out.
            generator: Noise of stochastic samplers.

        Returns:
            Estimate of y, like ``y_q``, float32.
        """
        return reverse(
            self.denoiser(latents, realism),
            y_q,
            q,
            steps=self.steps if steps is None else steps,
            sampler=sampler or self.sampler,
            realism=realism,
            rho=self.rho,
            generator=generator,
        )

    def forward(
        self,
        x: Tensor,
        q: Tensor,
        *,
        realism: Realism = 1.0,
        sampler: str | Sampler | None = None,
        steps: int | None = None,
        generator: sde.Generator = None,
    ) -> CodecOutput:
        """Image to reconstruction and bits, end to end.

        Args:
            x: Image (B, 3, H, W) in [0, 1]; H and W multiples of ``compressor.multiple``.
            q: Level of each image, (B,), or of each element, like y.
            realism: r in [0, 1], a number or one for each sample (DESIGN 7).
            sampler: Sampler, the codec's default if left out.
            steps: Number of steps, the codec's default if left out.
            generator: Noise of the quantiser and of stochastic samplers.
        """
        latents = self.compressor.analyse(x)
        y_q = self.to_level(latents, q, generator)
        y_hat = self.restore(latents, y_q, q, realism=realism, sampler=sampler, steps=steps, generator=generator)
        x_hat = self.compressor.synthesise(y_hat, realism)
        return CodecOutput(x_hat, y_hat, y_q, latents, self.bits(latents, q, y_q))

    def reverse_loss(self, latents: Latents, y_q: Tensor, q: Tensor, kind: Literal["nll", "mse"] = "nll") -> Tensor:
        """How well D undoes the noise, at a random level q' <= q that reuses the residual of level q (DESIGN 4).

        The latents and the prior are constants here: only the reverse network learns.

        Args:
            latents: Latents of the encoder.
            y_q: Latent at level q, on real residuals.
            q: Level, (B,).
            kind: ``nll``, nats per element relative to a uniform cell, or ``mse``, ``||D - y||^2`` in units of
                q^2 / 12, the error of D = y_q.

        Returns:
            Loss of each sample, (B,).
        """
        own = slice(self.compressor.latent_channels)
        y, mu, sigma, y_q = (t[:, own].detach() for t in (latents.y, latents.mu, latents.sigma, y_q))
        q_file = sde.level(q, y)
        q = q_file * torch.rand_like(q_file).clamp_min(1e-3)
        eps = ((y_q - y) / q_file).clamp(-0.5, 0.5)
        y_q = y + q * eps
        mu, sigma = refine(self.reverse, y_q, q, mu, sigma)
        if kind == "nll":
            loss = truncated_normal_nll(y, y_q, q, mu, sigma)
        else:
            loss = (truncated_normal_mean(y_q, q, mu, sigma) - y) ** 2 * 12 / q**2
        return loss.flatten(1).mean(1)

    # --- whole images of any size -------------------------------------------------------------------------

    def pad(self, x: Tensor) -> Tensor:
        """Repeat the last row and column until both sides are multiples of ``compressor.multiple``."""
        m = self.compressor.multiple
        height, width = x.shape[-2:]
        return F.pad(x, (0, -width % m, 0, -height % m), mode="replicate")


def trainable_parameters(codec: nn.Module, prefixes: list[str]) -> dict[str, bool]:
    """Which parameters learn when only the modules named by ``prefixes`` do.

    Args:
        codec: The model.
        prefixes: Dotted names of modules or parameters, for example ``["reverse", "compressor.g_s"]``; ``[""]``
            is everything.

    Returns:
        Name of every parameter and whether it learns.

    Raises:
        ConfigError: If a prefix names nothing.
    """
    names = [name for name, _ in codec.named_parameters()]

    def matches(name: str, prefix: str) -> bool:
        return prefix == "" or name == prefix or name.startswith(prefix + ".")

    for prefix in prefixes:
        if not any(matches(name, prefix) for name in names):
            tops = sorted({".".join(name.split(".")[:2]) for name in names})
            raise ConfigError(f"no module {prefix!r} in the codec; there are {', '.join(tops)}")
    return {name: any(matches(name, prefix) for prefix in prefixes) for name in names}


def macs_per_pixel(run: Callable[[], object], pixels: int) -> float:
    """Multiply-accumulates per pixel of what ``run`` computes, counted by PyTorch."""
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counter, torch.no_grad():
        run()
    return float(counter.get_total_flops()) / 2 / pixels


def parameter_counts(codec: nn.Module) -> Mapping[str, int]:
    """Number of parameters of each part of the codec, by name, and in all."""
    counts = {
        name: sum(p.numel() for p in module.parameters())
        for name, module in codec.named_modules()
        if name in ("compressor.g_a", "compressor.g_s", "compressor.h_a", "compressor.h_s", "reverse")
    }
    return {**counts, "all": sum(p.numel() for p in codec.parameters())}
