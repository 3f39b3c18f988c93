"""The denoiser of :mod:`gic.method.posterior` on float32 arrays: in C, or by NumPy where there are no loops in C.

Both compute the same: the cell has centre c >= 0 and half width h in units of sigma and ends a = c - h, b = c + h, with
the hazard ``r(x) = phi(x) / (1 - Phi(x))``, its excess ``e(x) = r(x) - x`` and fall = exp(-2ch) the mean m is

    a > 0:     m - a = (r(b) e(a) - fall r(a) (e(b) + 2h)) / (r(b) - fall r(a))
    a <= 0:    m = (1 - fall) r(a) r(b) / (r(b) - fall r(a)),  r(a) = phi(a) r(-a) / (r(-a) - phi(a))
    h << 1:    m - c = -h L(ch),  L(x) = coth x - 1/x

within 1e-6 of the cell's width. What the forms are good for is in ``_loops.c``.
"""

from __future__ import annotations

import functools
import math
import os
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from numpy.typing import NDArray

from gic import loops

Floats = NDArray[np.float32]
Array = NDArray[np.float64]

NARROW = 1e-3
"""Half widths h below this use the narrow form, as in :mod:`gic.method.posterior`."""
_CHUNK = 1 << 14  # elements whose float64 arrays stay in the cache; threads get whole chunks
_EXCESS = (  # e(x) (x + 4) in powers of (x - 4) / (x + 4) for x >= 0, the highest first; from where: see _loops.c
    2.3853609199882302e-06,
    -2.354821373574006e-06,
    -2.0595301260331333e-05,
    2.5071114849178068e-05,
    9.151093279527219e-05,
    -0.0001484639406699738,
    -0.00027886922048478327,
    0.0006636078765975714,
    0.0005895240328800263,
    -0.0024847504828612575,
    -0.0003718117039490155,
    0.00796106992181125,
    -0.0044889609355427814,
    -0.020800388840493077,
    0.03165657300074091,
    0.03370366084522396,
    -0.1382244943527814,
    0.06751792824469077,
    0.40195670387719584,
    -1.1822045015237386,
    1.8048571559154782,
)
_EXP_LIMIT = 700.0
_SQRT_1_OVER_2PI = 1 / math.sqrt(2 * math.pi)


def _excess(x: Array) -> Array:
    """The hazard less x, for x >= 0, with a relative error below 3e-13."""
    inverse: Array = 1 / (x + 4)
    t = (x - 4) * inverse
    value = np.full_like(x, _EXCESS[0])
    for coefficient in _EXCESS[1:]:
        value *= t
        value += coefficient
    return value * inverse


def _exp_minus(x: Array) -> Array:
    value: Array = np.exp(-np.minimum(x, _EXP_LIMIT))
    return value


def _langevin(x: Array, fall: Array) -> Array:
    """L(x) = coth x - 1/x for x >= 0, given exp(-2x)."""
    s = x * x
    series: Array = x * (1 / 3 + s * (-1 / 45 + s * (2 / 945 + s * (-1 / 4725 + s * (2 / 93555)))))
    return np.where(x < 0.3, series, (1 + fall) / (1 - fall) - 1 / x)


def _with_numpy(y_q: Floats, q: Floats, mu: Floats, sigma: Floats) -> Array:
    centre, width, mean, scale = (t.astype(np.float64) for t in (y_q, q, mu, sigma))
    away = (centre - mean) / scale
    c, h = np.abs(away), width / (2 * scale)
    a, b = c - h, c + h
    tail, near = a > 0, np.abs(a)
    e_near, e_b = _excess(near), _excess(b)
    r_near, r_b = near + e_near, b + e_b
    fall, phi = _exp_minus(2 * c * h), _SQRT_1_OVER_2PI * _exp_minus(a * a / 2)
    with np.errstate(divide="ignore", invalid="ignore"):  # in elements that take another form
        r_a = np.where(tail, r_near, phi * r_near / (r_near - phi))
        top = np.where(tail, r_b * e_near - fall * r_near * (e_b + 2 * h), (1 - fall) * r_a * r_b)
        shift = scale * (top / (r_b - fall * r_a) - np.where(tail, h, c))
        narrow = h < NARROW
        if narrow.any():
            shift = np.where(narrow, -width / 2 * _langevin(c * h, fall), shift)
    shift = np.clip(shift, -width / 2, 0)  # only rounding errors leave the half of the cell that is nearer to mu
    mirrored: Array = centre + np.where(away < 0, -shift, shift)
    return mirrored


@functools.lru_cache(1)
def _pool(process: int) -> ThreadPoolExecutor:
    """The threads of this process; a fork has none of its parent's."""
    return ThreadPoolExecutor(thread_name_prefix="gic-posterior")


def truncated_normal_mean(
    y_q: Floats, q: float | Floats, mu: Floats, sigma: Floats, threads: int = 1
) -> NDArray[np.float32]:
    """Posterior mean of y given its cell, as :func:`gic.method.posterior.truncated_normal_mean` has it.

    Args:
        y_q: Latent at level q, the centre of the cell.
        q: Width of the cell, > 0, broadcast against ``y_q``.
        mu: Mean of the prior, like ``y_q``.
        sigma: Standard deviation of the prior, > 0, like ``y_q``.
        threads: At most so many threads share the work; the result does not depend on it.

    Returns:
        D in [y_q - q/2, y_q + q/2], like ``y_q``.

    Example:
        >>> one = np.ones(1, np.float32)
        >>> truncated_normal_mean(2 * one, 4.0, 0 * one, one)  # N(0, 1) given that it lies in [0, 4]
        array([0.7976...], dtype=float32)
    """
    y_q, mu, sigma = (np.ascontiguousarray(t, np.float32) for t in (y_q, mu, sigma))
    if not y_q.shape == mu.shape == sigma.shape:
        raise ValueError(f"y_q, mu and sigma have shapes {y_q.shape}, {mu.shape} and {sigma.shape}")
    q = np.asarray(q, np.float32)
    q = q.reshape(1) if q.size == 1 else np.ascontiguousarray(np.broadcast_to(q, y_q.shape)).ravel()
    out = np.empty(y_q.shape, np.float32)
    flat = [t.ravel() for t in (y_q, mu, sigma, out)]  # views

    def fill(part: slice) -> None:
        y, m, s, d = (t[part] for t in flat)
        width = q if len(q) == 1 else q[part]
        if loops.library is not None:
            loops.library.gic_truncated_normal_mean(y, width, len(width), m, s, len(y), d)
            return
        for start in range(0, len(y), _CHUNK):
            chunk = slice(start, start + _CHUNK)
            d[chunk] = _with_numpy(y[chunk], width if len(width) == 1 else width[chunk], m[chunk], s[chunk])

    chunks = -(-y_q.size // _CHUNK)
    step = -(-chunks // max(1, min(threads, chunks))) * _CHUNK
    parts = [slice(start, start + step) for start in range(0, y_q.size, step)] if chunks else []
    if len(parts) > 1:
        list(_pool(os.getpid()).map(fill, parts))
    elif parts:
        fill(parts[0])
    return out
