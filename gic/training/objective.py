"""The objective: rate, distortion, perception and the reverse loss (DESIGN 5, 6).

    L = bits(q) / pixels + lambda(q) * MSE(x, x_hat) + sum of perceptual terms + adversarial term + w_rev * reverse loss

The configuration of a stage sets what is trained, and with which terms.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from gic.errors import ConfigError
from gic.method.samplers import Sampler, sampler_of
from gic.models.codec import Codec, CodecOutput
from gic.quality.discriminator import Adversarial
from gic.quality.terms import PerceptualTerm


def rate_distortion_lambda(q: Tensor, lambda_0: float) -> Tensor:
    """Weight of the distortion at level q, ``lambda_0 / q^2`` (DESIGN 5).

    At high rate the distortion grows as q^2, so that with this weight step q is the optimum.

    Args:
        q: Quantisation step > 0.
        lambda_0: Weight at q = 1, in bits per pixel for an MSE of 1 on images in [0, 1].
    """
    return lambda_0 / q**2


def mean_squared_error(x_hat: Tensor, x: Tensor) -> Tensor:
    """Mean squared error of each sample, (B, ...) to (B,), in squared units of the input."""
    return ((x_hat - x) ** 2).flatten(1).mean(1)


def psnr(x_hat: Tensor, x: Tensor) -> Tensor:
    """Peak signal-to-noise ratio of each image in [0, 1] after rounding to 8 bit, (B,), in dB (DESIGN 10).

    >>> psnr(torch.full((1, 3, 8, 8), 0.5), torch.full((1, 3, 8, 8), 0.6))
    tensor([20.1720])
    """
    rounded = torch.round(x_hat.clamp(0, 1) * 255) / 255
    return -10 * torch.log10(mean_squared_error(rounded, x))


class Judged(NamedTuple):
    """What the discriminator learns from: the samples of a batch with r > 0, without gradient.

    Attributes:
        x: Originals (b, 3, H, W) in [0, 1].
        x_hat: Reconstructions, like ``x``.
        y_hat: Latents behind them, (b, M, H/16, W/16).
        q: Levels, (b,).
        batch: Samples of the whole batch.
    """

    x: Tensor
    x_hat: Tensor
    y_hat: Tensor
    q: Tensor
    batch: int


class Objective(nn.Module):
    """The training loss of one stage.

    Args:
        lambda_0: lambda(q) at q = 1, see :func:`rate_distortion_lambda`; 0 leaves distortion out.
        rate_weight: Weight of the rate; 0 where the encoder is frozen.
        level_balance: Samples weigh ``(q / sqrt(q_min q_max)) ** level_balance``. A trained model's loss falls about
            as 1 / q, so that with 0 the finest levels dominate and with 1 all levels count equally.
        reverse_weight: w_rev, weight of the reverse loss.
        reverse_loss: ``nll`` or ``mse``, see :meth:`gic.models.codec.Codec.reverse_loss`.
        realism: Values of r that the samples of a batch share, in turn from a random one on; the perceptual terms of a
            sample count r-fold, so that r = 0 stays the estimate of least distortion.
        realism_from: Share of the run, in [0, 1), before which all samples have r = 0: the last part of a short run
            then teaches r = 1.
        sampler: Sampler in training, the codec's default if left out.
        steps: Number of steps in training, the codec's default if left out.
        terms: Perceptual terms by name.
        adversarial: The adversarial term, trained together; it uses the samples with r > 0 and counts r-fold too.

    Attributes:
        progress: Share of the run that is over, in [0, 1], which whoever trains keeps up to date.

    Raises:
        ConfigError: If a value lies outside its range, or there are no samples for the adversarial term.
    """

    def __init__(
        self,
        lambda_0: float = 1950.0,
        rate_weight: float = 1.0,
        level_balance: float = 1.0,
        reverse_weight: float = 0.0,
        reverse_loss: Literal["nll", "mse"] = "nll",
        realism: Sequence[float] = (0.0,),
        realism_from: float = 0.0,
        sampler: str | Sampler | None = None,
        steps: int | None = None,
        terms: Mapping[str, PerceptualTerm] | None = None,
        adversarial: Adversarial | None = None,
    ) -> None:
        super().__init__()
        if not realism or not all(0 <= r <= 1 for r in realism):
            raise ConfigError(f"realism must name values in [0, 1], not {list(realism)}")
        if not 0 <= realism_from < 1:
            raise ConfigError(f"realism_from is a share of the run, in [0, 1), not {realism_from}")
        if not all(0 <= weight < math.inf for weight in (lambda_0, rate_weight, reverse_weight)):
            raise ConfigError("lambda_0, rate_weight and reverse_weight must be finite and not negative")
        if reverse_loss not in ("nll", "mse"):
            raise ConfigError(f"reverse_loss must be nll or mse, not {reverse_loss!r}")
        if steps is not None and steps < 1:
            raise ConfigError(f"steps must be at least 1, not {steps}")
        if adversarial is not None and not any(realism):
            raise ConfigError("an adversarial term judges samples with r > 0, and realism names none: add 1.0 to it")
        if adversarial is not None and not (lambda_0 or terms):
            raise ConfigError(
                "the adversarial term is weighed against distortion and perceptual terms: name one of them"
            )
        self.lambda_0 = lambda_0
        self.rate_weight = rate_weight
        self.level_balance = level_balance
        self.reverse_weight = reverse_weight
        self.reverse_loss = reverse_loss
        self.realism = tuple(realism)
        self.realism_from = realism_from
        self.progress = 1.0
        self.sampler = None if sampler is None else sampler_of(sampler)
        self.steps = steps
        self.terms: Any = nn.ModuleDict(dict(terms or {}))
        self.adversarial = adversarial

    @property
    def decodes(self) -> bool:
        """Whether any part of the loss uses the reconstruction."""
        return self.lambda_0 > 0 or bool(self.terms)

    def forward(self, codec: Codec, x: Tensor, q: Tensor | None = None) -> dict[str, Tensor]:
        """Evaluate the loss on a batch; see :meth:`evaluate`."""
        return self.evaluate(codec, x, q)[0]

    def evaluate(self, codec: Codec, x: Tensor, q: Tensor | None = None) -> tuple[dict[str, Tensor], Judged | None]:
        """Evaluate the loss on a batch.

        Args:
            codec: The model, in training mode.
            x: Images (B, 3, H, W) in [0, 1], sides multiples of ``codec.compressor.multiple``.
            q: Level of each image, (B,); drawn log-uniformly if left out.

        Returns:
            ``loss`` to minimise, and its parts before weighting as means over the batch: ``bits_per_pixel``,
            ``mse`` and ``psnr`` (dB, of the unrounded reconstruction), ``reverse``, each perceptual term and, with an
            adversarial one, ``adversarial`` and ``adversarial_weight`` (over the samples with r > 0; NaN if there are
            none). Then what the discriminator learns from; None without one, or without such samples.
        """
        q = codec.sample_levels(len(x), x.device) if q is None else q
        # Python numbers in ascending order: grouping the samples must not wait for a GPU.
        first = int(torch.randint(len(self.realism), ()))
        realism = self.realism if self.progress >= self.realism_from else (0.0,) * len(self.realism)
        r = sorted(realism[(first + i) % len(realism)] for i in range(len(x)))
        if self.decodes:
            out = codec(x, q, realism=r, sampler=self.sampler, steps=self.steps)
        else:
            out = self._without_decoding(codec, x, q)
        unjudged = r.count(0.0)  # the samples before have no perceptual term
        adversarial = self.adversarial if unjudged < len(x) else None
        # With an adversarial term the gradient is computed explicitly at the reconstruction, to compare the terms.
        x_hat = out.x_hat.detach().requires_grad_() if adversarial and out.x_hat.requires_grad else out.x_hat
        balance = (q / math.sqrt(codec.q_min * codec.q_max)) ** self.level_balance
        bits_per_pixel = out.bits / (x.shape[-2] * x.shape[-1])
        loss = self.rate_weight * balance * bits_per_pixel
        parts = {"bits_per_pixel": bits_per_pixel}
        seen = torch.zeros_like(loss)  # terms that depend on the reconstruction
        if self.lambda_0 > 0:
            mse = mean_squared_error(x_hat, x)
            seen = seen + balance * rate_distortion_lambda(q, self.lambda_0) * mse
            parts |= {"mse": mse, "psnr": -10 * torch.log10(mse.clamp_min(1e-10))}
        if self.reverse_weight > 0:
            parts["reverse"] = codec.reverse_loss(out.latents, out.y_q, q, self.reverse_loss)
            loss = loss + self.reverse_weight * parts["reverse"]
        share = torch.tensor(r[unjudged:]).to(x.device, non_blocking=True)
        for name, term in self.terms.items():
            if unjudged < len(x):
                parts[name] = term(x_hat[unjudged:], x[unjudged:])
                seen = torch.cat([seen[:unjudged], seen[unjudged:] + term.weight * share * parts[name]])
            else:
                parts[name] = loss.new_full((1,), math.nan)
        judged = None
        if adversarial is not None:
            judged = Judged(
                x[unjudged:], x_hat[unjudged:].detach(), out.y_hat[unjudged:].detach(), q[unjudged:], len(x)
            )
            own = adversarial(x_hat[unjudged:], judged.y_hat, judged.q)
            weight = torch.zeros_like(own)
            if x_hat.requires_grad:
                slopes = torch.autograd.grad(seen.sum(), x_hat, retain_graph=True)[0]
                (slope,) = torch.autograd.grad(own.sum(), x_hat)
                weight = adversarial.share * adversarial.adapted(slopes[unjudged:], slope[unjudged:])
                factor = torch.cat([weight.new_zeros(unjudged), share * weight])
                slopes = slopes + factor[:, None, None, None] * slope
                # Adds zero to the value, and the whole gradient at the reconstruction to the gradient.
                loss = loss + ((out.x_hat - x_hat.detach()) * slopes).flatten(1).sum(1)
            seen = torch.cat([seen[:unjudged], seen[unjudged:] + share * weight * own]).detach()
            parts |= {"adversarial": own, "adversarial_weight": weight}
        elif self.adversarial is not None:
            parts |= dict.fromkeys(("adversarial", "adversarial_weight"), loss.new_full((1,), math.nan))
        loss = loss + seen
        return {"loss": loss.mean(), **{name: part.detach().mean() for name, part in parts.items()}}, judged

    @staticmethod
    def _without_decoding(codec: Codec, x: Tensor, q: Tensor) -> CodecOutput:
        latents = codec.compressor.analyse(x)
        y_q = codec.to_level(latents, q)
        return CodecOutput(x, y_q, y_q, latents, codec.bits(latents, q, y_q))
