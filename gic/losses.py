"""The objective: rate, distortion, perception and the reverse loss (DESIGN 5, 6).

    L = bits(q) / pixels + lambda(q) * MSE(x, x_hat) + sum of perceptual terms + w_rev * reverse loss

What is trained in a stage, and with which terms, is configuration.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor

from gic import sde
from gic.errors import ConfigError
from gic.model import Codec, CodecOutput


def rate_distortion_lambda(q: Tensor, lambda_0: float) -> Tensor:
    """Weight of the distortion at level q, ``lambda_0 / q^2`` (DESIGN 5).

    At high rate the distortion grows as q^2, so that this is the trade-off at which step q is the best one.

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


class PerceptualTerm(ABC):
    """A term of the loss that judges the reconstruction with a fixed metric.

    A term is no ``nn.Module``: a network inside it is neither trained nor saved with the codec.

    Args:
        weight: Factor of the term in the loss.
    """

    def __init__(self, weight: float = 1.0) -> None:
        self.weight = weight

    @abstractmethod
    def __call__(self, x_hat: Tensor, x: Tensor) -> Tensor:
        """Judge ``x_hat`` (B, 3, H, W), about [0, 1], against ``x``: (B,), lower is better, differentiable."""


class Objective:
    """The training loss of one stage.

    Args:
        lambda_0: lambda(q) at q = 1, see :func:`rate_distortion_lambda`; 0 leaves distortion out.
        rate_weight: Weight of the rate; 0 where the encoder is frozen.
        level_balance: Samples weigh ``(q / sqrt(q_min q_max)) ** level_balance``. A trained model's loss falls about
            as 1 / q, so that 0 lets the finest levels dominate and 1 lets all levels count alike.
        reverse_weight: w_rev, weight of the reverse loss.
        reverse_loss: ``nll`` or ``mse``, see :meth:`gic.model.Codec.reverse_loss`.
        realism: Values of r that the samples of a batch share, in turn from a random one on; the perceptual terms of a
            sample count r-fold, so that r = 0 stays the estimate of least distortion.
        sampler: Sampler in training, the codec's default if left out.
        steps: Number of steps in training, the codec's default if left out.
        terms: Perceptual terms by name.

    Raises:
        ConfigError: If a value lies outside its range.
    """

    def __init__(
        self,
        lambda_0: float = 1950.0,
        rate_weight: float = 1.0,
        level_balance: float = 1.0,
        reverse_weight: float = 0.0,
        reverse_loss: Literal["nll", "mse"] = "nll",
        realism: Sequence[float] = (0.0,),
        sampler: sde.Sampler | None = None,
        steps: int | None = None,
        terms: Mapping[str, PerceptualTerm] | None = None,
    ) -> None:
        if not realism or not all(0 <= r <= 1 for r in realism):
            raise ConfigError(f"realism must name values in [0, 1], not {list(realism)}")
        if not all(0 <= weight < math.inf for weight in (lambda_0, rate_weight, reverse_weight)):
            raise ConfigError("lambda_0, rate_weight and reverse_weight must be finite and not negative")
        if reverse_loss not in ("nll", "mse"):
            raise ConfigError(f"reverse_loss must be nll or mse, not {reverse_loss!r}")
        if sampler is not None and sampler not in sde.SAMPLERS:
            raise ConfigError(f"sampler must be one of {', '.join(sde.SAMPLERS)}, not {sampler!r}")
        if steps is not None and steps < 1:
            raise ConfigError(f"steps must be at least 1, not {steps}")
        self.lambda_0 = lambda_0
        self.rate_weight = rate_weight
        self.level_balance = level_balance
        self.reverse_weight = reverse_weight
        self.reverse_loss = reverse_loss
        self.realism = tuple(realism)
        self.sampler = sampler
        self.steps = steps
        self.terms = dict(terms or {})

    @property
    def decodes(self) -> bool:
        """Whether any part of the loss looks at the reconstruction."""
        return self.lambda_0 > 0 or bool(self.terms)

    def __call__(self, codec: Codec, x: Tensor, q: Tensor | None = None) -> dict[str, Tensor]:
        """Evaluate the loss on a batch.

        Args:
            codec: The model, in training mode.
            x: Images (B, 3, H, W) in [0, 1], sides multiples of ``codec.compressor.multiple``.
            q: Level of each image, (B,); drawn log-uniformly if left out.

        Returns:
            ``loss`` to minimise, and its parts before weighting as means over the batch: ``bits_per_pixel``,
            ``mse`` and ``psnr`` (dB, of the unrounded reconstruction), ``reverse`` and each perceptual term (over the
            samples with r > 0; NaN if there are none).
        """
        q = codec.sample_levels(len(x), x.device) if q is None else q
        # Numbers of Python in ascending order: which samples go together must not wait for a GPU.
        first = int(torch.randint(len(self.realism), ()))
        r = sorted(self.realism[(first + i) % len(self.realism)] for i in range(len(x)))
        if self.decodes:
            out = codec(x, q, realism=r, sampler=self.sampler, steps=self.steps)
        else:
            out = self._without_decoding(codec, x, q)
        bits_per_pixel = out.bits / (x.shape[-2] * x.shape[-1])
        loss = self.rate_weight * bits_per_pixel
        parts = {"bits_per_pixel": bits_per_pixel}
        if self.lambda_0 > 0:
            mse = mean_squared_error(out.x_hat, x)
            loss = loss + rate_distortion_lambda(q, self.lambda_0) * mse
            parts |= {"mse": mse, "psnr": -10 * torch.log10(mse.clamp_min(1e-10))}
        loss = loss * (q / math.sqrt(codec.q_min * codec.q_max)) ** self.level_balance
        if self.reverse_weight > 0:
            parts["reverse"] = codec.reverse_loss(out.latents, out.y_q, q, self.reverse_loss)
            loss = loss + self.reverse_weight * parts["reverse"]
        unjudged = r.count(0.0)  # the samples before have no perceptual term
        share = torch.tensor(r[unjudged:]).to(x.device, non_blocking=True)
        for name, term in self.terms.items():
            if unjudged < len(x):
                parts[name] = term(out.x_hat[unjudged:], x[unjudged:])
                loss = torch.cat([loss[:unjudged], loss[unjudged:] + term.weight * share * parts[name]])
            else:
                parts[name] = loss.new_full((1,), math.nan)
        return {"loss": loss.mean(), **{name: part.detach().mean() for name, part in parts.items()}}

    @staticmethod
    def _without_decoding(codec: Codec, x: Tensor, q: Tensor) -> CodecOutput:
        latents = codec.compressor.analyse(x)
        y_q = codec.to_level(latents, q)
        return CodecOutput(x, y_q, y_q, latents, codec.bits(latents, q, y_q))
