"""The exact posterior of a Gaussian latent given its quantisation cell (DESIGN 4): numerics only.

Under the prior ``y ~ N(mu, sigma^2)`` and uniform noise of width q, the posterior of y given ``y_q`` is that
normal truncated to the cell ``[y_q - q/2, y_q + q/2]``. Its mean is the denoiser

    D = mean of N(mu, sigma^2) truncated to the cell                           (DESIGN 4 (3))

In units of sigma the cell has centre c and half width h, and ends a = c - h, b = c + h. By symmetry c >= 0.
With Z = Phi(b) - Phi(a) the mean is m = (phi(a) - phi(b)) / Z, and, since (b^2 - a^2) / 2 = 2 c h,

    a > 0:     m = sqrt(2/pi) (1 - exp(-2ch)) / (erfcx(a/sqrt2) - exp(-2ch) erfcx(b/sqrt2))
    a <= 0:    m = phi(a) (1 - exp(-2ch)) / Z,  Z = (erf(b/sqrt2) - erf(a/sqrt2)) / 2
    h << 1:    m = c - h L(ch),  L(x) = coth x - 1/x    (the density is exp(-c t) there, up to h^2)

No form subtracts nearly equal numbers where it is used. All is computed in float64: in float32 the second form
errs by 0.05 q.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

NARROW = 1e-3
"""Half widths h below this use the narrow form, whose error is of order h^2 relative to the cell."""
_SQRT2 = math.sqrt(2)
_SQRT_2_OVER_PI = math.sqrt(2 / math.pi)
_HALF_LOG_2PI = 0.5 * math.log(2 * math.pi)


def _units(y_q: Tensor, q: Tensor, mu: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Mirrored centre c >= 0 and half width h of the cell in units of sigma, and the sign taken out of c."""
    y_q, q, mu, sigma = (t.to(torch.float64) for t in (y_q, q, mu, sigma))
    c = (y_q - mu) / sigma
    # A constant sign and not abs(), whose derivative is 0 at c = 0, where every symbol 0 lies.
    sign = torch.where(c < 0, -1.0, 1.0).to(c.dtype)
    return c * sign, (q / (2 * sigma)).expand_as(c), sign


def _safe(t: Tensor, mask: Tensor, neutral: float) -> Tensor:
    """``t`` where ``mask`` holds, a harmless number elsewhere: branches not taken must not yield NaN gradients."""
    return torch.where(mask, t, torch.full_like(t, neutral))


class _Form(NamedTuple):
    """A formula for one branch, and harmless arguments for it."""

    formula: Callable[..., Tensor]
    neutral: tuple[float, ...]


def _counts_elements(value: Tensor) -> bool:
    """Whether to compute each form only for the elements of its branch; on a GPU counting them would synchronise."""
    return value.device.type == "cpu"


def _by_branch(forms: Sequence[_Form], *arguments: Tensor) -> Tensor:
    """Compute each element by the form of its branch: narrow, tail or centre, as the arguments c and h decide."""
    branches = _branches(arguments[0], arguments[1])
    value = torch.zeros_like(arguments[0])
    for (formula, neutral), mask in zip(forms, branches, strict=True):
        if _counts_elements(value):
            index = mask.flatten().nonzero()[:, 0]
            chosen = [t.flatten()[index] for t in arguments]
            value = value.flatten().index_copy(0, index, formula(*chosen)).reshape(value.shape)
        else:
            safe = [_safe(t, mask, n) for t, n in zip(arguments, neutral, strict=True)]
            value = torch.where(mask, formula(*safe), value)
    return value


def _langevin(x: Tensor) -> Tensor:
    """L(x) = coth x - 1/x for x >= 0."""
    small = x < 0.3
    s = _safe(x, small, 0.0)
    big = _safe(x, ~small, 1.0)
    s2 = s * s
    series = s * (1 / 3 + s2 * (-1 / 45 + s2 * (2 / 945 + s2 * (-1 / 4725 + s2 * (2 / 93555)))))
    return torch.where(small, series, 1 / torch.tanh(big) - 1 / big)


def _log_sinhc(x: Tensor) -> Tensor:
    """log(sinh(x) / x) for x >= 0."""
    small = x < 0.3
    s2 = _safe(x, small, 0.0) ** 2
    big = _safe(x, ~small, 1.0)
    series = s2 * (1 / 6 + s2 * (-1 / 180 + s2 * (1 / 2835 + s2 * (-1 / 37800 + s2 / 467775))))
    return torch.where(small, series, big + torch.log1p(-torch.exp(-2 * big)) - torch.log(2 * big))


def _branches(c: Tensor, h: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    narrow = h < NARROW
    tail = ~narrow & (c - h > 0)
    return narrow, tail, ~narrow & ~tail


def _tail(c: Tensor, h: Tensor) -> Tensor:
    """Z sqrt(2/pi) / phi(a), for a > 0."""
    fall = torch.exp(-2 * c * h)
    z: Tensor = torch.special.erfcx((c - h) / _SQRT2) - fall * torch.special.erfcx((c + h) / _SQRT2)
    return z


def _centre(c: Tensor, h: Tensor) -> Tensor:
    """Z, for a <= 0."""
    return (torch.erf((c + h) / _SQRT2) - torch.erf((c - h) / _SQRT2)) / 2


# m - c in units of the cell's width 2h, so that each form is of order one.


def _shift_narrow(c: Tensor, h: Tensor) -> Tensor:
    return -_langevin(c * h) / 2


def _shift_tail(c: Tensor, h: Tensor) -> Tensor:
    return (_SQRT_2_OVER_PI * -torch.expm1(-2 * c * h) / _tail(c, h) - c) / (2 * h)


def _shift_centre(c: Tensor, h: Tensor) -> Tensor:
    phi = torch.exp(-((c - h) ** 2) / 2 - _HALF_LOG_2PI)
    return (phi * -torch.expm1(-2 * c * h) / _centre(c, h) - c) / (2 * h)


_SHIFT = (_Form(_shift_narrow, (1.0, NARROW)), _Form(_shift_tail, (2.0, 1.0)), _Form(_shift_centre, (0.0, 1.0)))


# -log(density * q) = t^2/2 + log Z + log(2 pi)/2 - log(2h).


def _nll_narrow(c: Tensor, h: Tensor, t: Tensor) -> Tensor:
    return (t * t - c * c) / 2 + _log_sinhc(c * h)


def _nll_tail(c: Tensor, h: Tensor, t: Tensor) -> Tensor:
    log_z = torch.log(_tail(c, h) / 2) - (c - h) ** 2 / 2
    return t * t / 2 + log_z + _HALF_LOG_2PI - torch.log(2 * h)


def _nll_centre(c: Tensor, h: Tensor, t: Tensor) -> Tensor:
    return t * t / 2 + torch.log(_centre(c, h)) + _HALF_LOG_2PI - torch.log(2 * h)


_NLL = (_Form(_nll_narrow, (1.0, NARROW, 1.0)), _Form(_nll_tail, (2.0, 1.0, 2.0)), _Form(_nll_centre, (0.0, 1.0, 0.0)))


def truncated_normal_mean(y_q: Tensor, q: Tensor, mu: Tensor, sigma: Tensor) -> Tensor:
    """Posterior mean of y given its cell: the denoiser D of DESIGN 4 (3).

    Finite with finite gradients for sigma/q from 1e-4 to 1e4 and for ``y_q`` any distance from ``mu``.

    Args:
        y_q: Latent at level q, the centre of the cell.
        q: Width of the cell, > 0, broadcast against ``y_q``.
        mu: Mean of the prior, like ``y_q``.
        sigma: Standard deviation of the prior, > 0, like ``y_q``.

    Returns:
        D in [y_q - q/2, y_q + q/2], like ``y_q``, in its dtype but at least float32. q -> 0 gives ``y_q``, q ->
        infinity gives ``mu``.

    Example:
        >>> one = torch.ones(1)
        >>> truncated_normal_mean(2 * one, 4 * one, 0 * one, one)  # N(0, 1) given that it lies in [0, 4]
        tensor([0.7977])
    """
    dtype = torch.promote_types(y_q.dtype, torch.float32)
    c, h, sign = _units(y_q, q, mu, sigma)
    shift = _by_branch(_SHIFT, c, h)
    # The mirrored mean lies between the near end of the cell and its centre; only rounding errors leave it. clamp has
    # no gradient at its ends, and every symbol 0 (c = 0) lies on an end, so the gradient bypasses it.
    shift = sign * (shift + (shift.clamp(-0.5, 0.0) - shift).detach())
    return (y_q.to(torch.float64) + q.to(torch.float64) * shift).to(dtype)


def truncated_normal_nll(y: Tensor, y_q: Tensor, q: Tensor, mu: Tensor, sigma: Tensor) -> Tensor:
    """Negative log-likelihood of y under the truncated normal, relative to the uniform distribution on the cell.

    The density is that of ``y / q``, so that the number has no unit: 0 is the value of the uniform distribution, and a
    good posterior is below it (DESIGN 4, the loss that calibrates sigma).

    Args:
        y: True latent, in the cell of ``y_q``.
        y_q: Centre of the cell.
        q: Width of the cell, > 0, broadcast against ``y_q``.
        mu: Mean of the prior, like ``y``.
        sigma: Standard deviation of the prior, > 0, like ``y``.

    Returns:
        Nats per element, like ``y``, in its dtype but at least float32.
    """
    dtype = torch.promote_types(y.dtype, torch.float32)
    c, h, _ = _units(y_q, q, mu, sigma)
    t = (y.to(torch.float64) - mu.to(torch.float64)) / sigma.to(torch.float64)
    return _by_branch(_NLL, c, h, t).to(dtype)
