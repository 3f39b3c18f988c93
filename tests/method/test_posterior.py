"""The truncated normal's mean and likelihood are exact, with exact gradients, from far narrower to far wider cells."""

from __future__ import annotations

import itertools
import math
from typing import NamedTuple

import numpy as np
import pytest
import torch
from bounds import rounding
from scipy import integrate, stats
from torch import Tensor

from gic.method.posterior import NARROW, truncated_normal_mean, truncated_normal_nll

RATIOS = np.geomspace(1e-4, 1e4, 33)  # sigma / q
SIGMA, MU = 0.7, -1.3


class Moments(NamedTuple):
    """Of N(mu, sigma^2) truncated to [y_q - q/2, y_q + q/2]."""

    mean: np.ndarray
    variance: np.ndarray  # in units of sigma^2
    skew: np.ndarray  # covariance of t and t^2, t = (y - mu) / sigma
    nll_at_centre: np.ndarray  # of the density of y / q


def integrate_cell(y_q: np.ndarray, q: np.ndarray, mu: float, sigma: float) -> Moments:
    """Moments by Gauss-Legendre quadrature of the density relative to its maximum, where it is not negligible."""
    c, h = (y_q - mu) / sigma, q / (2 * sigma)
    sign = np.where(c < 0, -1.0, 1.0)
    c = c * sign
    near = np.maximum(c - h, 0.0)  # where the density is largest
    low = np.maximum(c - h, near - 12.0)
    # exp(-((near + s)^2 - near^2) / 2) is below exp(-72) from here on
    high = np.minimum(c + h, near + (np.sqrt(near**2 + 144) - near))
    nodes, weights = np.polynomial.legendre.leggauss(40)
    panels = 24
    position = ((np.arange(panels)[:, None] + (nodes + 1) / 2) / panels).ravel()
    width = np.tile(weights / (2 * panels), panels)
    shape = (-1, *[1] * c.ndim)
    s = position.reshape(shape) * (high - low)  # from low on
    from_near = s + (low - near)
    density = np.exp(-from_near * (from_near + 2 * near) / 2) * width.reshape(shape)
    mass = density.sum(0)
    d = s + (low - c)  # from the centre
    shift = (d * density).sum(0) / mass
    t = d - shift
    mean = c + shift
    variance = (t**2 * density).sum(0) / mass
    skew = (t * (t * (t + 2 * mean)) * density).sum(0) / mass
    log_mass = np.log(mass * (high - low)) - near**2 / 2
    return Moments(y_q + sigma * sign * shift, variance, sign * skew, c**2 / 2 + log_mass - np.log(2 * h))


def cells() -> tuple[np.ndarray, np.ndarray]:
    """Cells of every width, with y_q up to 30 sigma from mu and with mu up to 30 sigma outside the cell."""
    q = SIGMA / RATIOS[:, None]
    h = q / (2 * SIGMA)
    offsets = np.array([0, 1e-12, 1e-6, 1e-3, 0.01, 0.1, 0.5, 1, 2, 3, 5, 8, 13, 20, 30])
    from_mu = offsets[None].repeat(len(q), 0)
    outside = h + offsets
    inside = h * np.array([0.1, 0.5, 0.9, 0.999, 1 - 1e-9, 1, 1 + 1e-9, 1.001])
    c = np.concatenate([from_mu, outside, inside, np.maximum(h - offsets, 0)], 1)
    c = np.concatenate([c, -c], 1)
    return MU + SIGMA * c, np.broadcast_to(q, c.shape)


def tensors(y_q: np.ndarray, q: np.ndarray) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    y = torch.from_numpy(np.ascontiguousarray(y_q))
    return y, torch.from_numpy(np.ascontiguousarray(q)), torch.full_like(y, MU), torch.full_like(y, SIGMA)


# --- the reference itself ---------------------------------------------------------------------------------


@pytest.mark.parametrize(("c", "h"), [(0.3, 0.01), (2.0, 1.0), (1.0, 2.0), (6.0, 3.0), (9.0, 1.0), (0.0, 20.0)])
def test_the_quadrature_agrees_with_scipy(c: float, h: float) -> None:
    moments = integrate_cell(np.array([c]), np.array([2 * h]), 0.0, 1.0)
    law = stats.truncnorm(c - h, c + h)
    assert moments.mean[0] == pytest.approx(law.mean(), abs=1e-9)
    assert moments.variance[0] == pytest.approx(law.var(), abs=1e-7)
    assert moments.nll_at_centre[0] == pytest.approx(-law.logpdf(c) - math.log(2 * h), abs=1e-9)
    covariance = integrate.quad(lambda t: (t - law.mean()) * t**2 * law.pdf(t), c - h, c + h, epsabs=1e-12)[0]
    assert moments.skew[0] == pytest.approx(covariance, abs=1e-7)


# --- the mean ---------------------------------------------------------------------------------------------


def test_the_mean_agrees_with_numerical_integration_at_every_width_and_distance() -> None:
    y_q, q = cells()
    error = truncated_normal_mean(*tensors(y_q, q)).numpy() - integrate_cell(y_q, q, MU, SIGMA).mean
    assert np.abs(error / q).max() < 2e-6


def test_the_mean_of_float32_latents_errs_by_their_rounding_only() -> None:
    y_q, q = cells()
    arguments = [t.float() for t in tensors(y_q, q)]
    y32, q32, mu32, sigma32 = (t.double().numpy() for t in arguments)
    d = truncated_normal_mean(*arguments)
    assert d.dtype == torch.float32
    exact = integrate_cell(y32, q32, float(mu32[0, 0]), float(sigma32[0, 0])).mean
    assert np.all(np.abs(d.numpy() - exact) < 2e-6 * q32 + 1e-7 * np.abs(y32))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_mean_never_leaves_the_cell(dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    n = 100_000
    mu = 10 * torch.randn(n, generator=generator, dtype=dtype)
    sigma = torch.exp(4 * torch.randn(n, generator=generator, dtype=dtype))
    q = torch.exp(4 * torch.randn(n, generator=generator, dtype=dtype))
    y_q = mu + 100 * (sigma + q) * torch.randn(n, generator=generator, dtype=dtype)
    d = truncated_normal_mean(y_q, q, mu, sigma)
    assert bool(((y_q - q / 2 <= d) & (d <= y_q + q / 2)).all())
    # and never between y_q and the far side: the prior can only pull towards mu
    assert bool(((d - y_q) * (mu - y_q) >= 0).all())


def test_the_law_in_a_narrow_cell_is_the_exponential_one_of_its_slope() -> None:
    """Far out the density is exp(-c t) over the cell; with y_q = 0 the shift comes out at full precision."""
    h = 1e-8
    x = torch.linspace(0.02, 30, 1500, dtype=torch.float64)  # c h
    zero, q, one = torch.zeros_like(x), torch.full_like(x, 2 * h), torch.ones_like(x)
    shift = truncated_normal_mean(zero, q, -x / h, one) / q
    # Below x = 0.3 a series stands in: what it leaves out begins with this, of coth x - 1 / x.
    left_out = 1382 / 638512875 * 0.3**11
    bound = left_out / 2 + rounding(1, 1 / float(x[0]), torch.float64)
    assert torch.allclose(shift, -(1 / torch.tanh(x) - 1 / x) / 2, rtol=0, atol=bound)
    nll = truncated_normal_nll(zero, zero, q, -x / h, one)
    assert torch.allclose(nll, torch.log(torch.sinh(x) / x), rtol=1e-9, atol=1e-9)


def test_a_narrow_cell_gives_y_q_and_a_wide_one_gives_mu() -> None:
    y_q = torch.linspace(-3, 3, 13, dtype=torch.float64)
    mu, sigma = torch.full_like(y_q, 0.4), torch.full_like(y_q, 0.2)
    for q in (1e-3, 1e-6, 1e-12):
        assert torch.allclose(truncated_normal_mean(y_q, torch.full_like(y_q, q), mu, sigma), y_q, rtol=0, atol=q / 2)
    for q in (1e2, 1e4, 1e8):
        assert torch.allclose(truncated_normal_mean(y_q, torch.full_like(y_q, q), mu, sigma), mu, rtol=0, atol=1e-12)


def test_the_mean_is_odd_about_mu() -> None:
    y_q, q, mu, sigma = tensors(*cells())
    mirrored = truncated_normal_mean(2 * mu - y_q, q, mu, sigma)
    assert bool(((mirrored - mu + truncated_normal_mean(y_q, q, mu, sigma) - mu).abs() < 1e-9 * (q + sigma)).all())


def test_the_mean_follows_translation_and_scale() -> None:
    y_q, q, mu, sigma = tensors(*cells())
    d = truncated_normal_mean(y_q, q, mu, sigma)
    moved = truncated_normal_mean(y_q + 5, q, mu + 5, sigma) - 5
    assert bool(((moved - d).abs() < 1e-9 * (q + sigma)).all())
    for factor in (1e-3, 1 / 3, 7.0):
        scaled = truncated_normal_mean(y_q * factor, q * factor, mu * factor, sigma * factor) / factor
        assert bool(((scaled - d).abs() < 1e-9 * (q + sigma)).all())


def test_the_mean_does_not_fall_as_y_q_or_mu_grows() -> None:
    for ratio in RATIOS:
        q = 1 / ratio
        c = torch.linspace(-30 - q / 2, 30 + q / 2, 20_001, dtype=torch.float64)
        one = torch.ones_like(c)
        assert bool((truncated_normal_mean(c, q * one, 0 * one, one).diff() > -1e-9 * q).all())
        assert bool((truncated_normal_mean(0 * one, q * one, c, one).diff() > -1e-9 * q).all())


def test_the_mean_does_not_jump_between_its_numerical_forms() -> None:
    step = 1e-12
    one = torch.ones(1, dtype=torch.float64)
    for c in (0.0, 0.5, 3.0, 30.0):  # from narrow to wide cells
        q = 2 * NARROW * one
        below, above = (truncated_normal_mean(c * one, q * f, 0 * one, one) for f in (1 - step, 1 + step))
        assert abs(float(above - below)) < 2e-6 * 2 * NARROW
    for h in (NARROW, 0.1, 1.0, 30.0, 5000.0):  # from the tail to the centre
        below, above = (truncated_normal_mean(h * one * f, 2 * h * one, 0 * one, one) for f in (1 - step, 1 + step))
        assert abs(float(above - below)) < 1e-9 * 2 * h


# --- its gradients ----------------------------------------------------------------------------------------


def gradients(function: str, *arguments: Tensor) -> list[np.ndarray]:
    leaves = [t.clone().requires_grad_() for t in arguments]
    out = {"mean": truncated_normal_mean, "nll": truncated_normal_nll}[function](*leaves)
    return [g.numpy() for g in torch.autograd.grad(out.sum(), leaves)]


def test_gradients_of_the_mean_agree_with_numerical_integration() -> None:
    """At a fixed cell dD/dmu = Var[t] and dD/dsigma = Cov[t, t^2]; translation and scale give the other two."""
    y_q, q = cells()
    moments = integrate_cell(y_q, q, MU, SIGMA)
    by_y_q, by_q, by_mu, by_sigma = gradients("mean", *tensors(y_q, q))
    assert np.abs(by_mu - moments.variance).max() < 2e-6
    assert np.abs(by_y_q - (1 - moments.variance)).max() < 2e-6
    assert np.all(np.abs(by_sigma - moments.skew) < 2e-6 * (1 + np.abs(moments.skew)))
    # Euler's relation of a function of degree one, with lengths from y_q: the shift D - y_q in units of q
    shift = moments.mean - y_q
    residual = q * by_q + (MU - y_q) * by_mu + SIGMA * by_sigma - shift
    assert np.all(np.abs(residual) < 2e-6 * (q + SIGMA * np.abs(moments.skew)))
    assert all(np.isfinite(g).all() for g in (by_y_q, by_q, by_mu, by_sigma))


def test_gradients_of_the_mean_do_not_vanish_where_y_q_is_mu() -> None:
    """Symbol 0 lies at y_q = mu exactly, where the mirroring changes sign."""
    for ratio in RATIOS:
        y_q, q = np.array([MU]), np.array([SIGMA / ratio])
        _, _, by_mu, by_sigma = gradients("mean", *tensors(y_q, q))
        assert by_mu[0] == pytest.approx(integrate_cell(y_q, q, MU, SIGMA).variance[0], rel=1e-5)
        assert by_sigma[0] == 0


@pytest.mark.parametrize("function", ["mean", "nll"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_gradients_are_finite_everywhere(function: str, dtype: torch.dtype) -> None:
    y_q, q, mu, sigma = (t.to(dtype) for t in tensors(*cells()))
    far = mu + (y_q - mu) * 1e4  # far beyond what the design asks for
    for centre in (y_q, far, mu):
        arguments = (centre, q, mu, sigma) if function == "mean" else (centre + 0.4 * q, centre, q, mu, sigma)
        assert all(np.isfinite(g).all() for g in gradients(function, *arguments))


@pytest.mark.parametrize("function", ["mean", "nll"])
def test_gradients_pass_gradcheck(function: str) -> None:
    generator = torch.Generator().manual_seed(0)
    n = 60
    mu = torch.randn(n, generator=generator, dtype=torch.float64)
    sigma = torch.exp(torch.randn(n, generator=generator, dtype=torch.float64))
    q = sigma * torch.exp(1.5 * torch.randn(n, generator=generator, dtype=torch.float64))
    y_q = mu + 3 * sigma * torch.randn(n, generator=generator, dtype=torch.float64)
    y = y_q + q * (torch.rand(n, generator=generator, dtype=torch.float64) - 0.5) * 0.9
    narrow = torch.full_like(q, 1e-3) * sigma  # the third form
    for width in (q, narrow):
        point = y_q + (y - y_q) / q * width
        arguments = (y_q, width, mu, sigma) if function == "mean" else (point, y_q, width, mu, sigma)
        leaves = tuple(t.clone().requires_grad_() for t in arguments)
        run = truncated_normal_mean if function == "mean" else truncated_normal_nll
        assert torch.autograd.gradcheck(run, leaves, eps=1e-7, atol=1e-5, rtol=1e-3)


# --- the likelihood ---------------------------------------------------------------------------------------


def test_the_nll_agrees_with_scipy() -> None:
    for ratio, c, position in itertools.product([0.02, 0.1, 0.5, 2, 30], [-6, -2, 0, 0.3, 1, 4, 9], [-0.49, 0, 0.3]):
        q = SIGMA / ratio
        y_q = MU + SIGMA * c
        y = y_q + position * q
        low, high = (y_q - q / 2 - MU) / SIGMA, (y_q + q / 2 - MU) / SIGMA
        expected = -stats.truncnorm.logpdf(y, low, high, loc=MU, scale=SIGMA) - math.log(q)
        arguments = (torch.tensor(v, dtype=torch.float64)[None] for v in (y, y_q, q, MU, SIGMA))
        assert float(truncated_normal_nll(*arguments)) == pytest.approx(expected, rel=1e-7, abs=2e-6)


def test_the_nll_agrees_with_numerical_integration_at_every_width_and_distance() -> None:
    y_q, q = cells()
    y, *rest = tensors(y_q, q)
    expected = integrate_cell(y_q, q, MU, SIGMA).nll_at_centre
    error = np.abs(truncated_normal_nll(y, y, *rest).numpy() - expected)
    assert np.all(error < 2e-6 * (1 + np.abs(expected)))


def test_the_density_integrates_to_one() -> None:
    y_q, q = cells()
    nodes, weights = np.polynomial.legendre.leggauss(100)
    mild = (np.abs(y_q - MU) + q / 2) / SIGMA * (q / SIGMA) < 200  # where 100 nodes resolve the density
    y_q, q = y_q[mild], q[mild]
    assert len(q) > 500
    total = np.zeros_like(q)
    for node, weight in zip(nodes, weights, strict=True):
        centre, *rest = tensors(y_q, q)
        y = centre + node / 2 * rest[0]
        total += weight / 2 * np.exp(-truncated_normal_nll(y, centre, *rest).numpy())
    assert np.abs(total - 1).max() < 2e-6


def test_the_nll_of_a_narrow_cell_is_that_of_the_uniform_law() -> None:
    y_q = torch.linspace(-3, 3, 7, dtype=torch.float64)
    for ratio in (1e4, 1e6, 1e9):
        q = torch.full_like(y_q, 1 / ratio)
        for position in (-0.5, 0.0, 0.5):
            nll = truncated_normal_nll(y_q + position * q, y_q, q, 0 * y_q, torch.ones_like(y_q))
            assert bool((nll.abs() < 3 / ratio).all())


def test_the_nll_does_not_jump_between_its_numerical_forms() -> None:
    one = torch.ones(1, dtype=torch.float64)
    step = 1e-12
    for c, position in itertools.product((0.0, 0.5, 3.0, 30.0), (-0.4, 0.1)):
        q = 2 * NARROW
        pair = [
            truncated_normal_nll(c * one + position * q, c * one, q * f * one, 0 * one, one)
            for f in (1 - step, 1 + step)
        ]
        assert abs(float(pair[1] - pair[0])) < 2e-6
    for h, position in itertools.product((NARROW, 0.1, 1.0, 30.0), (-0.4, 0.1)):
        pair = [
            truncated_normal_nll(h * f * one + position * 2 * h, h * f * one, 2 * h * one, 0 * one, one)
            for f in (1 - step, 1 + step)
        ]
        assert abs(float(pair[1] - pair[0])) < 1e-7


@pytest.mark.parametrize("q", [0.5, 2.0, 8.0])
def test_the_expected_nll_is_least_at_the_true_prior(q: float) -> None:
    generator = torch.Generator().manual_seed(0)
    n = 100_000
    mu, sigma = 0.3, 1.4
    y = mu + sigma * torch.randn(n, generator=generator, dtype=torch.float64)
    y_q = y + q * (torch.rand(n, generator=generator, dtype=torch.float64) - 0.5)

    def expected_nll(mu: float, sigma: float) -> Tensor:
        return truncated_normal_nll(y, y_q, *(torch.full_like(y, v) for v in (q, mu, sigma)))

    best = expected_nll(mu, sigma)
    assert float(best.mean()) < 0
    for other in ((mu, sigma * 1.3), (mu, sigma / 1.3), (mu + 0.5, sigma), (mu - 0.5, sigma)):
        gain = expected_nll(*other) - best
        assert float(gain.mean()) > 4 * float(gain.std()) / math.sqrt(n)
