"""Elementary functions with the same bits on every machine, for tables that encoder and decoder must share.

The exponential of one C library differs from another's in the last bit, and NumPy's own depends on the processor. So
the functions behind the entropy coder's tables are written here with operations that IEEE 754 defines to the bit:
``+ - * /`` of float64 arrays, comparison, rounding, and scaling by powers of two. Each is a NumPy call of its own, so
nothing can be fused, and every sum is an explicit loop, so its order is fixed. Relative errors stay below 1e-14.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

# ln 2 in two parts, the first with 21 trailing zero bits: k * _LN2_HI is exact for |k| < 2^21.
_LN2_HI = float.fromhex("0x1.62e42feep-1")
_LN2_LO = float.fromhex("0x1.a39ef35793c76p-33")
_LOG2_E = float.fromhex("0x1.71547652b82fep+0")
_SQRT_HALF = float.fromhex("0x1.6a09e667f3bcdp-1")
_TWO_OVER_SQRT_PI = float.fromhex("0x1.20dd750429b6dp+0")
_ONE_OVER_PI = float.fromhex("0x1.45f306dc9c883p-2")
_FOUR_PI = float.fromhex("0x1.921fb54442d18p+3")

_EXP_LIMIT = 700.0
_EXP_TERMS = tuple(1.0 / math.factorial(n) for n in range(15))
_EXPM1_TERMS = tuple(1.0 / math.factorial(n) for n in range(1, 20))
_ATANH_TERMS = tuple(1.0 / (2 * n + 1) for n in range(19))
_ERF_TERMS = tuple((-1.0) ** n / (math.factorial(n) * (2 * n + 1)) for n in range(14))


def _polynomial(x: Array, coefficients: Sequence[float]) -> Array:
    """``sum_n c_n x^n`` by Horner's rule."""
    value = np.full_like(x, coefficients[-1])
    for coefficient in reversed(coefficients[:-1]):
        value = value * x + coefficient
    return value


def _float64(x: Array | float) -> Array:
    return np.asarray(x, dtype=np.float64)


def exp(x: Array | float) -> Array:
    """``e^x``; beyond |x| = 700 the value at 700 is kept."""
    x = np.clip(_float64(x), -_EXP_LIMIT, _EXP_LIMIT)
    k = np.floor(x * _LOG2_E + 0.5)
    r = (x - k * _LN2_HI) - k * _LN2_LO
    return np.ldexp(_polynomial(r, _EXP_TERMS), k.astype(np.int32))


def exp2(x: Array | float) -> Array:
    """``2^x`` for |x| <= 1000; exact at integers."""
    x = _float64(x)
    k = np.floor(x + 0.5)
    return np.ldexp(_polynomial((x - k) * (_LN2_HI + _LN2_LO), _EXP_TERMS), k.astype(np.int32))


def log(x: Array | float) -> Array:
    """Natural logarithm of x > 0."""
    m, k = np.frexp(_float64(x))
    low = m < _SQRT_HALF
    m = np.where(low, m * 2.0, m)
    k = np.where(low, k - 1, k).astype(np.float64)
    s: Array = (m - 1.0) / (m + 1.0)
    value: Array = k * _LN2_HI + (2.0 * s * _polynomial(s * s, _ATANH_TERMS[:13]) + k * _LN2_LO)
    return value


def softplus(x: Array | float) -> Array:
    """``log(1 + e^x)``."""
    x = _float64(x)
    t = exp(-np.abs(x))  # log(1 + t) = 2 artanh(t / (2 + t)), whose argument is at most 1/3
    s: Array = t / (2.0 + t)
    value: Array = np.maximum(x, 0.0) + 2.0 * s * _polynomial(s * s, _ATANH_TERMS)
    return value


def tanh(x: Array | float) -> Array:
    """Hyperbolic tangent."""
    x = _float64(x)
    a = np.abs(x)
    small = np.minimum(a, 0.35) * 2.0
    expm1 = small * _polynomial(small, _EXPM1_TERMS)
    value = np.where(a < 0.35, expm1 / (expm1 + 2.0), 1.0 - 2.0 / (exp(2.0 * a) + 1.0))
    return np.where(x < 0, -value, value)


def sigmoid(x: Array | float) -> Array:
    """``1 / (1 + e^-x)``."""
    x = _float64(x)
    t = exp(-np.abs(x))
    value: Array = np.where(x < 0, t, 1.0) / (1.0 + t)
    return value


def erfc(x: Array | float) -> Array:
    """Complementary error function, accurate in the tail down to the smallest normal numbers (x < 26)."""
    x = _float64(x)
    a = np.minimum(np.abs(x), 26.0)
    near = np.minimum(a, 0.5)
    erf = _TWO_OVER_SQRT_PI * near * _polynomial(near * near, _ERF_TERMS)
    # Trapezoidal rule with step h = 1/2 for erfc(a) = 2 a / pi e^(-a^2) int_0^inf e^(-t^2) / (t^2 + a^2) dt; its error
    # is e^(-(pi / h)^2), below 1e-17, and the pole's residue 2 / (e^(2 pi a / h) - 1) where a < pi / h.
    far = np.maximum(a, 0.5)
    square = far * far
    terms = [exp(-0.25 * n * n) / (0.25 * n * n + square) for n in range(13, 0, -1)]
    total = np.zeros_like(far)
    for term in terms:  # the smallest first
        total = total + term
    total = total + 0.5 / square
    high = np.floor(far * 65536.0) / 65536.0  # its square is exact
    gauss = exp(-(high * high)) * exp((high - far) * (high + far))
    residue = np.where(far < 6.0, 2.0 / (exp(_FOUR_PI * far) - 1.0), 0.0)
    tail = _ONE_OVER_PI * far * gauss * total - residue
    value = np.where(a < 0.5, 1.0 - erf, tail)
    return np.where(x < 0, 2.0 - value, value)


def normal_cdf(x: Array | float) -> Array:
    """Distribution function of the standard normal distribution."""
    return 0.5 * erfc(_float64(x) * -_SQRT_HALF)
