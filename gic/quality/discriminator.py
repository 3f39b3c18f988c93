"""The adversarial term: a discriminator without a reference, trained together with the codec (DESIGN 12).

    D minimises   E[f(-D(x, y_hat, q))] + E[f(D(x_hat, y_hat, q))]         f: hinge or softplus
    the decoder   w * E[-D(x_hat, y_hat, q)]                               (softplus of it for the non-saturating loss)

D gets small patches of the picture, the latent behind it and the level. w adapts to each sample: the term's gradient at
the reconstruction is ``weight`` times as large as that of the sample's other terms, so that one setting serves all q.
HiFiC (arXiv 2006.09965) conditions on the latent. VQGAN (arXiv 2012.09841) adapts the weight by gradients at the last
layer; the gradient at the picture needs no second pass and is separate for each sample.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.parametrizations import spectral_norm

from gic.errors import ConfigError, GicError
from gic.models.reverse import LevelEmbedding

WEIGHT_MAX = 1e4
"""Bound on the adaptive weight, for samples whose gradients nearly vanish."""
LOSS_MAX = 50.0
"""A discriminator whose loss is larger than this has diverged; it begins at about 2."""


class DiscriminatorError(GicError, ArithmeticError):
    """The discriminator has diverged; the text says how far and what to do."""


class _Loss(NamedTuple):
    real: Callable[[Tensor], Tensor]
    decoded: Callable[[Tensor], Tensor]
    generator: Callable[[Tensor], Tensor]


LOSSES: Mapping[str, _Loss] = {
    "hinge": _Loss(lambda d: F.relu(1 - d), lambda d: F.relu(1 + d), lambda d: -d),
    "non_saturating": _Loss(lambda d: F.softplus(-d), F.softplus, lambda d: F.softplus(-d)),
}
"""Losses of logits: of originals and of decoded pictures for the discriminator, of decoded ones for the decoder."""


class PatchDiscriminator(nn.Module):
    """Classifies each patch of a picture, given the latent behind it and the level: a conditional PatchGAN.

    Four convolutions down to 1/8 of the size. The latent is reduced to a few channels, enlarged, and concatenated at
    1/4; log q scales and shifts the features after it.

    Args:
        latent_channels: M, channels of y; if left out, :meth:`judge_of` sets it.
        width: Channels after the first convolution; the later ones have 2, 4 and 8 times as many.
        latent_width: Channels that the latent is reduced to.
        embedding: Channels of the embedding of q.
        spectral: Divide each convolution by its spectral norm (arXiv 1802.05957): more stable, but far slower
            to learn.

    Example:
        >>> judge = PatchDiscriminator(latent_channels=8, width=4)
        >>> judge(torch.rand(2, 3, 64, 96), torch.randn(2, 8, 4, 6), torch.tensor([1.0, 4.0])).shape
        torch.Size([2, 1, 8, 12])
    """

    def __init__(
        self,
        latent_channels: int | None = None,
        width: int = 32,
        latent_width: int = 16,
        embedding: int = 32,
        spectral: bool = False,
    ) -> None:
        super().__init__()
        if min(1 if latent_channels is None else latent_channels, width, latent_width, embedding) < 1:
            raise ConfigError("latent_channels, width, latent_width and embedding of a discriminator are at least 1")
        self.latent_channels: int | None = None
        self.latent_width = latent_width
        self.spectral = spectral
        self.first = self._convolution(3, width, 4, 2)
        self.second = self._convolution(width, 2 * width, 4, 2)
        self.third = self._convolution(2 * width + latent_width, 4 * width, 4, 2)
        self.fourth = self._convolution(4 * width, 8 * width, 3)
        self.last = self._convolution(8 * width, 1, 3)
        self.embed = LevelEmbedding(embedding)
        self.film = nn.Linear(embedding, 8 * width)
        nn.init.zeros_(self.film.weight)
        nn.init.zeros_(self.film.bias)
        if latent_channels is not None:
            self.judge_of(latent_channels)
        self.to(memory_format=torch.channels_last)

    def _convolution(self, inputs: int, outputs: int, kernel: int, stride: int = 1) -> nn.Module:
        layer = nn.Conv2d(inputs, outputs, kernel, stride, (kernel - 1) // 2)
        nn.init.kaiming_normal_(layer.weight, 0.2)
        nn.init.zeros_(layer.bias)  # type: ignore[arg-type]
        return spectral_norm(layer) if self.spectral else layer

    def judge_of(self, latent_channels: int) -> None:
        """Set the number of latent channels of the codec.

        Raises:
            ConfigError: If the discriminator is made for another number.
        """
        if self.latent_channels is None:
            self.latent_channels = latent_channels
            self.squeeze = self._convolution(latent_channels, self.latent_width, 1)
        elif self.latent_channels != latent_channels:
            raise ConfigError(
                f"the discriminator is made for {self.latent_channels} latent channels, the compressor has "
                f"{latent_channels}: leave latent_channels of the discriminator out"
            )

    def forward(self, x: Tensor, y_hat: Tensor, q: Tensor) -> Tensor:
        """Classify pictures.

        Args:
            x: Pictures (B, 3, H, W), about [0, 1], H and W multiples of 16.
            y_hat: Latents behind them, (B, M, H/16, W/16).
            q: Levels, (B,).

        Returns:
            Logits (B, 1, H/8, W/8), float32; positive means original.
        """
        y = self.squeeze(torch.asinh(y_hat))
        x = F.leaky_relu(self.first(2 * x - 1), 0.2)
        x = F.leaky_relu(self.second(x), 0.2)
        x = torch.cat([x, F.interpolate(y.to(x.dtype), size=x.shape[-2:], mode="nearest")], dim=1)
        scale, shift = self.film(self.embed(torch.log(q)))[:, :, None, None].chunk(2, dim=1)
        x = F.leaky_relu(self.third(x) * (1 + scale) + shift, 0.2)
        x = F.leaky_relu(self.fourth(x), 0.2)
        return self.last(x).float()  # type: ignore[no-any-return]


class Adversarial(nn.Module):
    """The adversarial term of the objective, with its discriminator and the discriminator's optimiser.

    The objective steps the decoder. The discriminator steps by :meth:`learn` on each batch, which only accumulates
    gradients, then :meth:`step` once for each optimiser step of the decoder. Both use only samples with r > 0.

    Args:
        discriminator: Called with pictures, latents and levels; see :class:`PatchDiscriminator`. Its method
            ``judge_of``, if it has one, gets the codec's number of latent channels.
        weight: Size of the term's gradient at the reconstruction, relative to that of the sample's other terms.
        loss: ``hinge`` or ``non_saturating``.
        lr: Learning rate of the discriminator (Adam); it follows the decoder's schedule.
        betas: Adam's.
        warmup_steps: Steps in which the discriminator learns alone.
        ramp_steps: Further steps in which the weight grows to its value.
        r1: Weight of the penalty on the discriminator's gradient at originals (arXiv 1801.04406), in case it
            diverges; 0 leaves it out.
        r1_every: Steps between penalties, each of which is multiplied by this number.

    Attributes:
        steps: Steps that the discriminator has made, saved with its weights.

    Raises:
        ConfigError: If a setting lies outside its range.
    """

    def __init__(
        self,
        discriminator: nn.Module,
        weight: float = 0.5,
        loss: Literal["hinge", "non_saturating"] = "hinge",
        lr: float = 4e-4,
        betas: tuple[float, float] = (0.5, 0.9),
        warmup_steps: int = 100,
        ramp_steps: int = 100,
        r1: float = 0.0,
        r1_every: int = 16,
    ) -> None:
        super().__init__()
        if loss not in LOSSES:
            raise ConfigError(f"the adversarial loss must be one of {', '.join(LOSSES)}, not {loss!r}")
        if not (0 < weight < math.inf and 0 < lr < math.inf and 0 <= r1 < math.inf):
            raise ConfigError(
                f"weight and lr of an adversarial term are positive and r1 is not negative: not {weight}, {lr} and {r1}"
            )
        if warmup_steps < 0 or ramp_steps < 0 or r1_every < 1:
            raise ConfigError("warmup_steps and ramp_steps must not be negative, and r1_every at least 1")
        self.discriminator = discriminator
        self.weight = weight
        self.loss = LOSSES[loss]
        self.lr = lr
        self.warmup_steps, self.ramp_steps = warmup_steps, ramp_steps
        self.r1, self.r1_every = r1, r1_every
        self.steps = 0
        self.betas = betas
        self.optimizer = torch.optim.Adam(discriminator.parameters(), lr, betas)

    def judge_of(self, latent_channels: int) -> None:
        """Set the number of latent channels of the codec, before the first step.

        Raises:
            ConfigError: If the discriminator is made for another number.
        """
        if callable(told := getattr(self.discriminator, "judge_of", None)):
            told(latent_channels)
            self.optimizer = torch.optim.Adam(self.discriminator.parameters(), self.lr, self.betas)

    # --- the decoder's half -------------------------------------------------------------------------------

    @property
    def share(self) -> float:
        """Part of the weight that counts at this step, in [0, 1]: 0 in the warm-up, then growing."""
        return min(1.0, max(0, self.steps - self.warmup_steps) / max(1, self.ramp_steps))

    def forward(self, x_hat: Tensor, y_hat: Tensor, q: Tensor) -> Tensor:
        """Loss of reconstructions, (B,), lower is more like an original; no gradient reaches the discriminator."""
        with self._frozen():
            logits = self.discriminator(x_hat, y_hat.detach(), q)
        return self.loss.generator(logits).flatten(1).mean(1)

    def adapted(self, others: Tensor, own: Tensor) -> Tensor:
        """Weight of each sample, (B,), from gradients at the reconstruction, (B, ...): of other terms, of this one."""
        norms = [gradient.flatten(1).norm(dim=1) for gradient in (others, own)]
        factor: Tensor = self.weight * norms[0] / norms[1].clamp_min(1e-12)
        return factor.clamp_max(WEIGHT_MAX)

    @contextmanager
    def _frozen(self) -> Iterator[None]:
        for weights in self.discriminator.parameters():
            weights.requires_grad_(False)
        try:
            yield
        finally:
            for weights in self.discriminator.parameters():
                weights.requires_grad_(True)

    # --- the discriminator's half -------------------------------------------------------------------------

    def learn(
        self, x: Tensor, x_hat: Tensor, y_hat: Tensor, q: Tensor, batch: int | None = None, accumulate: int = 1
    ) -> dict[str, Tensor]:
        """Accumulate the discriminator's gradient for a batch.

        Args:
            x: Originals (B, 3, H, W) in [0, 1].
            x_hat: Their reconstructions at r > 0.
            y_hat: Latents behind these.
            q: Levels, (B,).
            batch: Samples of the whole batch, including those with r = 0; B if left out. The loss is a mean over them,
                so that ranks that share a batch give the same gradient as one rank.
            accumulate: Batches that make a step.

        Returns:
            ``discriminator``, its loss, ``accuracy_real`` and ``accuracy_decoded``, shares of patches in [0, 1] that
            are classified correctly; without gradient.
        """
        share = len(x) / (batch or len(x))
        x, x_hat, y_hat, q = (each.detach() for each in (x, x_hat, y_hat, q))
        penalised = self.r1 > 0 and self.steps % self.r1_every == 0
        with torch.enable_grad():
            x.requires_grad_(penalised)
            real = self.discriminator(x, y_hat, q)
            decoded = self.discriminator(x_hat, y_hat, q)
            loss = self.loss.real(real).mean() + self.loss.decoded(decoded).mean()
            total = loss
            if penalised:
                (slope,) = torch.autograd.grad(real.flatten(1).mean(1).sum(), x, create_graph=True)
                total = loss + self.r1_every * self.r1 / 2 * slope.square().flatten(1).sum(1).mean()
            (total * share / accumulate).backward()  # type: ignore[no-untyped-call]
        return {
            "discriminator": loss.detach(),
            "accuracy_real": (real > 0).float().mean(),
            "accuracy_decoded": (decoded < 0).float().mean(),
        }

    def step(self, rate: float = 1.0, clip: float | None = None) -> None:
        """Update the discriminator with the accumulated gradients, equally on all ranks.

        Args:
            rate: Learning rate relative to ``lr``.
            clip: Bound on the norm of the gradient.
        """
        weights = list(self.discriminator.parameters())
        shared = torch.distributed.is_available() and torch.distributed.is_initialized()
        for each in weights:
            if each.grad is None:  # no sample of this process had r > 0, but the other ranks wait for its gradient
                each.grad = torch.zeros_like(each)
            if shared:
                torch.distributed.all_reduce(each.grad)
                each.grad /= torch.distributed.get_world_size()
        if clip:
            nn.utils.clip_grad_norm_(weights, clip)
        for group in self.optimizer.param_groups:
            group["lr"] = self.lr * rate
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.steps += 1

    def check(self, loss: float) -> None:
        """Check the discriminator's loss.

        Raises:
            DiscriminatorError: If it has diverged.
        """
        if not loss <= LOSS_MAX:
            raise DiscriminatorError(
                f"the discriminator has diverged after {self.steps} steps: its loss is {loss:.3g}, about 2 at the "
                f"start and {LOSS_MAX:g} at most; lower its lr ({self.lr:g}) or set r1 (1 to 10), and start from an "
                "earlier checkpoint"
            )

    # --- checkpoints --------------------------------------------------------------------------------------

    def to_save(self) -> dict[str, Any]:
        """State that a run needs to resume: tensors and plain values."""
        return {
            "discriminator": self.discriminator.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "steps": self.steps,
        }

    def take_up(self, saved: Mapping[str, Any]) -> None:
        """Restore the state of :meth:`to_save`.

        Raises:
            ConfigError: If it belongs to another discriminator.
        """
        try:
            self.discriminator.load_state_dict(saved["discriminator"])
            self.optimizer.load_state_dict(saved["optimizer"])
            self.steps = int(saved["steps"])
        except (RuntimeError, KeyError, ValueError, TypeError) as error:
            raise ConfigError(
                f"the checkpoint holds another discriminator than the config describes: {error}; describe the same one"
            ) from error
