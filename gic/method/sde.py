"""The forward diffusion that quantisation is, and the flow that undoes it (DESIGN 2, 3, 7).

The time of this diffusion is the quantisation step ``q``. With ``eps ~ U(-1/2, 1/2)`` per element,

    y_q = y + q * eps,    0 < q_min <= q <= q_max                              (DESIGN 2)

For any distribution of the noise, the flow that carries the distribution of ``y_q`` to that of ``y`` has
velocity

    v(y_q, q) = d y_q / d q = E[eps | y_q] = (y_q - D(y_q, q)) / q             (DESIGN 3 (1))

where ``D(y_q, q) = E[y | y_q]`` is any denoiser: an exact posterior mean, a network, a formula.

Everything here is a pure function of tensors, or of NumPy's arrays (:mod:`gic.method.arrays`), and holds element by
element (DESIGN 11). ``y`` has shape (B, ...); ``q``
is a number, a tensor of shape (B,), one level per sample, or a field: a tensor of as many dimensions as ``y``, which it
broadcasts to, one level per element. Arithmetic is in float32 or better for every dtype of ``y``.
Randomness comes from ``generator``: ``None`` (the global one), one of torch's, or one per sample, in which case a
sample's noise does not depend on its neighbours in the batch; or one of NumPy's bit generators, whose noise is the same
for tensors and arrays on every machine.

Source: arXiv 2505.20984; the velocity form (1), the dyadic coin and the restarts go beyond it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal, Union

import numpy as np
from numpy.typing import NDArray

from gic.method.arrays import AnyArray, Array, at_least_float32, cast, namespace

if TYPE_CHECKING:
    import torch

Generator = Union["torch.Generator", Sequence["torch.Generator"], np.random.BitGenerator, None]
Level = Any
"""A level q: a number, a tensor or array (B,), or a field."""
Quantizer = Literal["round", "dither", "noise"]

QUANTIZERS: tuple[Quantizer, ...] = ("round", "dither", "noise")


def level(q: Level, like: Array) -> Array:
    """Shape a level for arithmetic with ``like``: one value, one per sample, or a field of one per element.

    Args:
        q: Quantisation step > 0; a number, a tensor with one element, a tensor of shape (B,), or a field: as many
            dimensions as ``like``, each of its length or 1.
        like: Tensor of shape (B, ...), whose device and (at least float32) dtype the result takes.

    Returns:
        Tensor of shape (1, ..., 1) for a single value, (B, 1, ..., 1) for one per sample, the field as it is.

    Raises:
        ValueError: If the levels do not fit to ``like``.
    """
    dtype = at_least_float32(like)
    levels: Any
    if isinstance(like, np.ndarray):
        levels = np.asarray(q, dtype)
    else:
        levels = namespace(like).as_tensor(q, dtype=dtype).to(like.device, non_blocking=True)
    if levels.ndim == like.ndim > 1 and all(n in (1, m) for n, m in zip(levels.shape, like.shape, strict=True)):
        return levels  # type: ignore[no-any-return]
    levels = levels.reshape(-1)
    if len(levels) not in (1, like.shape[0]):
        raise ValueError(
            f"{len(levels)} levels q for a batch of {like.shape[0]}: give one, one per sample, or a field like the "
            "latent"
        )
    return levels.reshape(-1, *[1] * (like.ndim - 1))  # type: ignore[no-any-return]


def uniform(like: Array, generator: Generator = None) -> Array:
    """Draw U(-1/2, 1/2) noise of the shape of ``like``, in float32 or better."""
    dtype = at_least_float32(like)
    if isinstance(like, np.ndarray):
        bits = generator if isinstance(generator, np.random.BitGenerator) else np.random.Philox()
        return _from_bits(like.shape, bits).astype(dtype)
    return _drawn(like, dtype, generator)  # type: ignore[no-any-return]


def _from_bits(shape: Sequence[int], bits: np.random.BitGenerator) -> NDArray[np.float32]:
    """Noise from the raw output of a generator, which never changes, unlike NumPy's distributions."""
    raw = np.asarray(bits.random_raw(math.prod(shape)))
    return (raw >> np.uint64(40)).astype(np.float32).reshape(shape) * np.float32(2**-24) - np.float32(0.5)


def _drawn(like: Any, dtype: Any, generator: Any) -> Any:
    """:func:`uniform` of a tensor."""
    torch = namespace(like)
    if isinstance(generator, np.random.BitGenerator):
        return torch.from_numpy(_from_bits(like.shape, generator)).to(like.device, dtype)
    if isinstance(generator, Sequence):
        if len(generator) != like.shape[0]:
            raise ValueError(f"{len(generator)} generators for a batch of {like.shape[0]}")
        rows = [
            torch.rand(like.shape[1:], generator=g, dtype=dtype, device=g.device).to(like.device) for g in generator
        ]
        return torch.stack(rows) - 0.5
    device = like.device if generator is None else generator.device
    return torch.rand(like.shape, generator=generator, dtype=dtype, device=device).to(like.device) - 0.5


def quantize(y: Array, q: Level, mu: AnyArray = 0.0, u: AnyArray = 0.0) -> Array:
    """Symbols ``round((y - mu) / q - u)``, integers in a float tensor (DESIGN 2).

    Args:
        y: Latent, (B, ...).
        q: Quantisation step > 0, a number, (B,) or a field.
        mu: Prior mean, like ``y``, around which the grid is laid.
        u: Dither in [-1/2, 1/2], like ``y``; 0 is plain rounding.
    """
    y = cast(y, at_least_float32(y))
    symbols: Array = namespace(y).round((y - mu) / level(q, y) - u)
    return symbols


def dequantize(symbols: Array, q: Level, mu: AnyArray = 0.0, u: AnyArray = 0.0) -> Array:
    """Latent at level ``q`` of integer ``symbols``: ``mu + q * (symbols + u)`` (DESIGN 2)."""
    y_q: Array = mu + level(q, symbols) * (symbols + u)
    return y_q


def forward(
    y: torch.Tensor,
    q: Level,
    *,
    quantizer: Quantizer = "dither",
    mu: AnyArray = 0.0,
    u: torch.Tensor | None = None,
    generator: Generator = None,
) -> torch.Tensor:
    """Carry a latent to level ``q``: draw ``y_q`` given ``y`` (DESIGN 2).

    ``round`` lays the grid around ``mu`` and is a function of ``y``; ``dither`` adds and subtracts ``u``, so
    that ``(y_q - y) / q`` is exactly uniform and independent of ``y``; ``noise`` is ``y + q * u``, the same
    distribution as dither's without a grid. Gradients pass straight through to ``y`` in each.

    Args:
        y: Latent, (B, ...).
        q: Quantisation step > 0, a number, (B,) or a field.
        quantizer: ``round``, ``dither`` or ``noise``.
        mu: Prior mean, like ``y``.
        u: Noise in [-1/2, 1/2], like ``y``; drawn from ``generator`` when left out.
        generator: Where ``u`` is drawn from.

    Returns:
        ``y_q``, like ``y``, within ``q / 2`` of it.

    Raises:
        ValueError: If the quantiser is unknown.

    Example:
        >>> import torch
        >>> y = torch.tensor([[0.2, 0.9, -1.4]])
        >>> forward(y, 1.0, quantizer="round")
        tensor([[ 0.,  1., -1.]])
    """
    if quantizer not in QUANTIZERS:
        raise ValueError(f"unknown quantizer {quantizer!r}: choose one of {', '.join(QUANTIZERS)}")
    offset: AnyArray = 0.0 if quantizer == "round" else uniform(y, generator) if u is None else u
    if quantizer == "noise":
        noisy: torch.Tensor = y + level(q, y) * offset
        return noisy
    fixed = y.detach()
    y_q = dequantize(quantize(fixed, q, mu, offset), q, mu, offset)
    return y_q.detach() + (y - fixed)  # adds an exact 0: y_q is the decoder's bit for bit


def coarsen(y_q: Array, q: Level, generator: Generator = None) -> Array:
    """Double the level exactly: a fair coin of +-q/2 turns ``y_q`` into ``y_{2q}`` (DESIGN 2, dyadic ladder).

    A uniform of width q plus that coin *is* the uniform of width 2q, so this is an exact Markov step of the
    forward process.
    """
    half = level(q, y_q) / 2
    coarser: Array = y_q + namespace(y_q).where(uniform(y_q, generator) < 0, -half, half)
    return coarser


def velocity(y_q: Array, q: Level, denoised: Array) -> Array:
    """Velocity of the flow, ``(y_q - D) / q``, which is ``E[eps | y_q]`` (DESIGN 3 (1)).

    Args:
        y_q: Latent at level ``q``, (B, ...).
        q: Quantisation step > 0, a number, (B,) or a field.
        denoised: ``D(y_q, q)``, like ``y_q``.

    Returns:
        ``d y_q / d q``, like ``y_q``; in [-1/2, 1/2] when D lies in the cell of ``y_q``.
    """
    v: Array = (y_q - denoised) / level(q, y_q)
    return v


def score(y_q: Array, q: Level, denoised: Array) -> Array:
    """The paper's score ``(D - y_q) / (q^2 / 12)``, exact for Gaussian noise of variance q^2/12 (DESIGN 3 (2))."""
    gradient: Array = (denoised - y_q) * 12 / level(q, y_q) ** 2
    return gradient
