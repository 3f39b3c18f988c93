"""The forward diffusion that quantisation is, and the flow that undoes it (DESIGN 2, 3, 7).

The time of this diffusion is the quantisation step ``q``. With ``eps ~ U(-1/2, 1/2)`` per element,

    y_q = y + q * eps,    0 < q_min <= q <= q_max                              (DESIGN 2)

and, whatever the law of the noise, the flow that carries the law of ``y_q`` to that of ``y`` has velocity

    v(y_q, q) = d y_q / d q = E[eps | y_q] = (y_q - D(y_q, q)) / q             (DESIGN 3 (1))

where ``D(y_q, q) = E[y | y_q]`` is any denoiser: an exact posterior mean, a network, a formula.

Everything here is a pure function of tensors. ``y`` has shape (B, ...); ``q`` is a number or a tensor of
shape (B,), one level per sample. Arithmetic is carried out in float32 or better whatever the dtype of ``y``.
Randomness comes from ``generator``: ``None`` (torch's global one), one generator, or one per sample, in which
case a sample's noise does not depend on its neighbours in the batch.

Source: arXiv 2505.20984; the velocity form (1), the dyadic coin and the restarts go beyond it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor

Denoiser = Callable[[Tensor, Tensor], Tensor]
"""``denoiser(y_q, q) -> E[y | y_q]``; ``y_q`` (B, ...), ``q`` (B, 1, ..., 1), float32 or float64."""
Generator = torch.Generator | Sequence[torch.Generator] | None
Quantizer = Literal["round", "dither", "noise"]
Sampler = Literal["mean", "euler", "heun", "sde", "restart"]
Realism = float | Sequence[float] | Tensor
"""r in [0, 1] (DESIGN 7): a number, or one for each sample. Numbers of Python are known without waiting for a GPU."""

QUANTIZERS: tuple[Quantizer, ...] = ("round", "dither", "noise")
SAMPLERS: tuple[Sampler, ...] = ("mean", "euler", "heun", "sde", "restart")


def level(q: float | Tensor, like: Tensor) -> Tensor:
    """Shape a level for arithmetic with ``like``: one value per sample, broadcast over the rest.

    Args:
        q: Quantisation step > 0; a number, a tensor with one element, or a tensor of shape (B,) or
            (B, 1, ..., 1).
        like: Tensor of shape (B, ...), whose device and (at least float32) dtype the result takes.

    Returns:
        Tensor of shape (B, 1, ..., 1), or (1, ..., 1) for a single value.

    Raises:
        ValueError: If the number of levels is neither 1 nor B.
    """
    dtype = torch.promote_types(like.dtype, torch.float32)
    q = torch.as_tensor(q, dtype=dtype).to(like.device, non_blocking=True).reshape(-1)
    if q.numel() not in (1, like.shape[0]):
        raise ValueError(f"{q.numel()} levels q for a batch of {like.shape[0]}: give one, or one per sample")
    return q.reshape(-1, *[1] * (like.dim() - 1))


def numbers(realism: Realism) -> list[float]:
    """The numbers of r, one for all samples or one for each.

    >>> numbers(0.5), numbers((0.0, 1.0))
    ([0.5], [0.0, 1.0])
    """
    if isinstance(realism, Tensor):
        return realism.reshape(-1).tolist()
    return [float(r) for r in realism] if isinstance(realism, Sequence) else [float(realism)]


def uniform(like: Tensor, generator: Generator = None) -> Tensor:
    """Draw U(-1/2, 1/2) noise of the shape of ``like``, in float32 or better."""
    dtype = torch.promote_types(like.dtype, torch.float32)
    if isinstance(generator, Sequence):
        if len(generator) != like.shape[0]:
            raise ValueError(f"{len(generator)} generators for a batch of {like.shape[0]}")
        rows = [
            torch.rand(like.shape[1:], generator=g, dtype=dtype, device=g.device).to(like.device) for g in generator
        ]
        return torch.stack(rows) - 0.5
    device = like.device if generator is None else generator.device
    return torch.rand(like.shape, generator=generator, dtype=dtype, device=device).to(like.device) - 0.5


# --- forward: quantisation is the diffusion ---------------------------------------------------------------


def quantize(y: Tensor, q: float | Tensor, mu: float | Tensor = 0.0, u: float | Tensor = 0.0) -> Tensor:
    """Symbols ``round((y - mu) / q - u)``, whole numbers in a float tensor (DESIGN 2).

    Args:
        y: Latent, (B, ...).
        q: Quantisation step > 0, a number or (B,).
        mu: Prior mean, like ``y``, around which the grid is laid.
        u: Dither in [-1/2, 1/2], like ``y``; 0 is plain rounding.
    """
    y = y.to(torch.promote_types(y.dtype, torch.float32))
    return torch.round((y - mu) / level(q, y) - u)


def dequantize(symbols: Tensor, q: float | Tensor, mu: float | Tensor = 0.0, u: float | Tensor = 0.0) -> Tensor:
    """Latent at level ``q`` of whole-number ``symbols``: ``mu + q * (symbols + u)`` (DESIGN 2)."""
    return mu + level(q, symbols) * (symbols + u)


def forward(
    y: Tensor,
    q: float | Tensor,
    *,
    quantizer: Quantizer = "dither",
    mu: float | Tensor = 0.0,
    u: Tensor | None = None,
    generator: Generator = None,
) -> Tensor:
    """Carry a latent to level ``q``: draw ``y_q`` given ``y`` (DESIGN 2).

    ``round`` lays the grid around ``mu`` and is a function of ``y``; ``dither`` adds and subtracts ``u``, so
    that ``(y_q - y) / q`` is exactly uniform and independent of ``y``; ``noise`` is ``y + q * u``, the same law
    as dither's without a grid. Gradients pass straight through to ``y`` in each.

    Args:
        y: Latent, (B, ...).
        q: Quantisation step > 0, a number or (B,).
        quantizer: ``round``, ``dither`` or ``noise``.
        mu: Prior mean, like ``y``.
        u: Noise in [-1/2, 1/2], like ``y``; drawn from ``generator`` when left out.
        generator: Where ``u`` is drawn from.

    Returns:
        ``y_q``, like ``y``, within ``q / 2`` of it.

    Raises:
        ValueError: If the quantiser is unknown.

    Example:
        >>> y = torch.tensor([[0.2, 0.9, -1.4]])
        >>> forward(y, 1.0, quantizer="round")
        tensor([[ 0.,  1., -1.]])
    """
    if quantizer not in QUANTIZERS:
        raise ValueError(f"unknown quantizer {quantizer!r}: choose one of {', '.join(QUANTIZERS)}")
    if quantizer == "round":
        u = torch.zeros_like(y)
    elif u is None:
        u = uniform(y, generator)
    if quantizer == "noise":
        return y + level(q, y) * u
    with torch.no_grad():
        y_q = dequantize(quantize(y, q, mu, u), q, mu, u)
    return y_q + (y - y.detach())  # adds an exact 0: y_q is the decoder's bit for bit


def coarsen(y_q: Tensor, q: float | Tensor, generator: Generator = None) -> Tensor:
    """Double the level exactly: a fair coin of +-q/2 turns ``y_q`` into ``y_{2q}`` (DESIGN 2, dyadic ladder).

    A uniform of width q plus that coin *is* the uniform of width 2q, so this is an exact Markov step of the
    forward process.
    """
    half = level(q, y_q) / 2
    return y_q + torch.where(uniform(y_q, generator) < 0, -half, half)


# --- reverse: the gradient of the rate-variable feature distribution --------------------------------------


def velocity(y_q: Tensor, q: float | Tensor, denoised: Tensor) -> Tensor:
    """Velocity of the flow, ``(y_q - D) / q``, which is ``E[eps | y_q]`` (DESIGN 3 (1)).

    Args:
        y_q: Latent at level ``q``, (B, ...).
        q: Quantisation step > 0, a number or (B,).
        denoised: ``D(y_q, q)``, like ``y_q``.

    Returns:
        ``d y_q / d q``, like ``y_q``; in [-1/2, 1/2] when D lies in the cell of ``y_q``.
    """
    return (y_q - denoised) / level(q, y_q)


def score(y_q: Tensor, q: float | Tensor, denoised: Tensor) -> Tensor:
    """The paper's score ``(D - y_q) / (q^2 / 12)``, exact for Gaussian noise of variance q^2/12 (DESIGN 3 (2))."""
    return (denoised - y_q) * 12 / level(q, y_q) ** 2


def schedule(steps: int, rho: float = 1.0) -> list[float]:
    """Levels relative to the first: ``(1 - i / N) ** rho`` for i = 0 ... N, from 1 down to 0 (DESIGN 3).

    Raises:
        ValueError: If ``steps`` < 1 or ``rho`` <= 0.
    """
    if steps < 1 or rho <= 0:
        raise ValueError(f"steps must be at least 1 and rho positive, not {steps} and {rho}")
    return [(1 - i / steps) ** rho for i in range(steps + 1)]


def evaluations(sampler: Sampler, steps: int, restarts: int = 1) -> int:
    """Number of calls of the denoiser that :func:`reverse` makes.

    >>> [evaluations(sampler, 4) for sampler in SAMPLERS]
    [1, 4, 7, 4, 15]
    """
    if sampler == "mean":
        return 1
    if sampler == "heun":
        return 2 * steps - 1
    if sampler == "restart":
        return (1 + restarts) * 2 * _leg(steps) + 2 * steps - 1
    return steps


def _leg(steps: int) -> int:
    """Heun steps between q and q/2 in the restart sampler."""
    return max(1, math.ceil(steps / 2))


def reverse(
    denoiser: Denoiser,
    y_q: Tensor,
    q: float | Tensor,
    *,
    steps: int = 2,
    sampler: Sampler = "heun",
    realism: Realism = 1.0,
    rho: float = 1.0,
    alpha: float | Callable[[float], float] = 0.5,
    restarts: int = 1,
    generator: Generator = None,
) -> Tensor:
    """Undo the diffusion: from the transmitted latent at level ``q`` down to level 0 (DESIGN 3, 7).

    | sampler | step from q_i to q_{i+1} < q_i | evaluations |
    |---|---|---|
    | ``mean`` | ``y = D(y_q, q)``, least distortion | 1 |
    | ``euler`` | ``y <- D + (q_{i+1} / q_i) (y - D)`` | N |
    | ``heun`` | second order of (1), plain Euler for the last step to 0 | 2 N - 1 |
    | ``sde`` | ``y <- D + q_{i+1} (sqrt(1 - a^2) eps_hat + a eps_new)``, the paper's stochastic sampler | N |
    | ``restart`` | Heun to q/2, coin up to q, again; then Heun to 0: exact marginals, stochastic | see code |

    Args:
        denoiser: Estimate of ``E[y | y_q]``, called with ``y_q`` (B, ...) and ``q`` (B, 1, ..., 1).
        y_q: Latent at level ``q``, (B, ...).
        q: Quantisation step > 0, a number or (B,).
        steps: Number N of steps, at least 1.
        sampler: One of :data:`SAMPLERS`.
        realism: r in [0, 1], a number or one for each sample: ``(1 - r) * D(y_q, q) + r * y_0`` with ``y_0`` the end of
            the flow; 0 is the estimate of least distortion (DESIGN 7).
        rho: Exponent of :func:`schedule`.
        alpha: Share of new noise of ``sde``, in [0, 1]; a number or a function of t = q_{i+1} / q.
        restarts: Number of coin flips of ``restart``.
        generator: Noise source of ``sde`` and ``restart``.

    Returns:
        Estimate of y, like ``y_q``, in float32 or better.

    Raises:
        ValueError: If the sampler is unknown or a number lies outside its range.

    Example:
        >>> y_q = torch.tensor([[3.0, -1.0]])
        >>> reverse(lambda y, q: y / (1 + q**2 / 12), y_q, 2.0, steps=8).shape
        torch.Size([1, 2])
    """
    if sampler not in SAMPLERS:
        raise ValueError(f"unknown sampler {sampler!r}: choose one of {', '.join(SAMPLERS)}")
    if restarts < 0:
        raise ValueError(f"restarts must be 0 or more, not {restarts}")
    y = y_q.to(torch.promote_types(y_q.dtype, torch.float32))
    q = level(q, y)
    given = numbers(realism)
    if not all(0 <= value <= 1 for value in given):
        raise ValueError("realism must lie in [0, 1]")
    levels = schedule(steps, rho)

    mean = _denoise(denoiser, y, q)
    if sampler == "mean" or not any(given):
        return mean
    if sampler == "euler":
        end = _euler(denoiser, y, q, levels, mean)
    elif sampler == "heun":
        end = _heun(denoiser, y, q, levels, mean)
    elif sampler == "sde":
        end = _sde(denoiser, y, q, levels, mean, alpha, generator)
    else:
        end = _restart(denoiser, y, q, levels, mean, restarts, generator)
    return mean + level(torch.tensor(given, dtype=y.dtype), y) * (end - mean)


def _denoise(denoiser: Denoiser, y: Tensor, q: Tensor) -> Tensor:
    return denoiser(y, q.expand(y.shape[0], *q.shape[1:])).to(y.dtype)


def _euler(denoiser: Denoiser, y: Tensor, q: Tensor, levels: list[float], denoised: Tensor) -> Tensor:
    for i, (t, t_next) in enumerate(pairwise(levels)):
        if i > 0:
            denoised = _denoise(denoiser, y, q * t)
        y = denoised + (t_next / t) * (y - denoised)
    return y


def _heun(denoiser: Denoiser, y: Tensor, q: Tensor, levels: list[float], denoised: Tensor | None = None) -> Tensor:
    for i, (t, t_next) in enumerate(pairwise(levels)):
        if i > 0 or denoised is None:
            denoised = _denoise(denoiser, y, q * t)
        v = velocity(y, q * t, denoised)
        predicted = y + q * (t_next - t) * v
        if t_next > 0:
            v_next = velocity(predicted, q * t_next, _denoise(denoiser, predicted, q * t_next))
            predicted = y + q * (t_next - t) * (v + v_next) / 2
        y = predicted
    return y


def _sde(
    denoiser: Denoiser,
    y: Tensor,
    q: Tensor,
    levels: list[float],
    denoised: Tensor,
    alpha: float | Callable[[float], float],
    generator: Generator,
) -> Tensor:
    for i, (t, t_next) in enumerate(pairwise(levels)):
        if i > 0:
            denoised = _denoise(denoiser, y, q * t)
        a = alpha(t_next) if callable(alpha) else alpha
        if not 0 <= a <= 1:
            raise ValueError(f"alpha must lie in [0, 1], not {a}")
        eps = velocity(y, q * t, denoised)
        if a > 0 and t_next > 0:
            eps = math.sqrt(1 - a * a) * eps + a * uniform(y, generator)
        y = denoised + q * t_next * eps
    return y


def _restart(
    denoiser: Denoiser,
    y: Tensor,
    q: Tensor,
    levels: list[float],
    denoised: Tensor,
    restarts: int,
    generator: Generator,
) -> Tensor:
    leg = _leg(len(levels) - 1)
    to_half = [1 - i / (2 * leg) for i in range(leg + 1)]
    y = _heun(denoiser, y, q, to_half, denoised)
    for _ in range(restarts):
        y = coarsen(y, q / 2, generator)
        y = _heun(denoiser, y, q, to_half)
    return _heun(denoiser, y, q / 2, levels)
