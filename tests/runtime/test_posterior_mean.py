"""The denoiser on arrays is that of the method, in C and by NumPy, at every width and distance."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

import gic
from gic import loops
from gic.method import posterior as method
from gic.runtime import posterior
from gic.runtime.posterior import truncated_normal_mean

pytestmark = pytest.mark.usefixtures("loops")

Floats = NDArray[np.float32]
SIGMA = 0.7


def cells(mu: float | None) -> tuple[Floats, Floats, Floats, Floats]:
    """y_q, q, mu and sigma: sigma/q from 1e-4 to 1e4 and beyond, y_q from mu, and from the cell that ends at mu, on.

    Without a ``mu``, y_q is 0 and mu lies around it: a result is then rounded by far less than the cell's width.
    """
    ratios = np.concatenate([np.geomspace(1e-4, 1e4, 81), np.geomspace(100, 1000, 41), [1e-6, 1e6]])[:, None]
    q = SIGMA / ratios
    h = 0.5 / ratios
    offsets = np.concatenate([[0], np.geomspace(1e-12, 1e6, 73)])
    c = np.concatenate([offsets + 0 * h, h + offsets, np.abs(h - offsets), h * (1 - 1e-6 * offsets)], 1)
    away = SIGMA * np.concatenate([c, -c], 1)
    fields = (0 * away, q + 0 * away, -away, SIGMA + 0 * away)
    if mu is not None:
        fields = (mu + away, q + 0 * away, mu + 0 * away, SIGMA + 0 * away)
    y, q, m, s = (t.astype(np.float32) for t in fields)
    return y, q, m, s


def by_method(y_q: Floats, q: Floats, mu: Floats, sigma: Floats) -> NDArray[np.float64]:
    """In float64, whose result is not rounded."""
    return method.truncated_normal_mean(*(torch.from_numpy(t.astype(np.float64)) for t in (y_q, q, mu, sigma))).numpy()


@pytest.mark.parametrize("mu", [None, 0.0, -1.3])
def test_the_mean_is_that_of_the_method(mu: float | None) -> None:
    fields = cells(mu)
    expected = by_method(*fields)
    error = np.abs(truncated_normal_mean(*fields) - expected)
    rounding = np.abs(expected) * 2.0**-24  # of the result to float32
    assert (error <= 1e-6 * fields[1] + rounding).all()


@pytest.mark.parametrize("mu", [None, 0.0, -1.3])
def test_the_mean_is_in_its_cell_on_the_side_of_mu(mu: float | None) -> None:
    y_q, q, m, s = cells(mu)
    mean = truncated_normal_mean(y_q, q, m, s).astype(np.float64)
    side = np.where(y_q < m, -1.0, 1.0)
    shift = side * (mean - y_q)
    rounding = np.abs(mean) * 2.0**-24
    assert (shift <= rounding).all() and (shift >= -q.astype(np.float64) / 2 - rounding).all()


def test_the_mirror_image_has_the_mirrored_mean() -> None:
    y_q, q, mu, sigma = cells(-1.3)
    mean = truncated_normal_mean(y_q, q, mu, sigma)
    assert (truncated_normal_mean(-y_q, q, -mu, sigma) == -mean).all()


def test_narrow_cells_give_y_q_and_wide_ones_mu() -> None:
    rng = np.random.default_rng(0)
    mu, y_q = rng.normal(size=(2, 1000)).astype(np.float32)
    sigma = np.exp(rng.normal(size=1000)).astype(np.float32)
    assert (truncated_normal_mean(y_q, 1e-9, mu, sigma) == y_q).all()
    assert truncated_normal_mean(y_q, 1e6, mu, sigma) == pytest.approx(mu, rel=2.0**-23, abs=1e-12)
    assert (truncated_normal_mean(mu, 1.0, mu, sigma) == mu).all()  # symbol 0


def test_q_is_broadcast() -> None:
    rng = np.random.default_rng(0)
    y_q, mu = (rng.normal(size=(2, 3, 5, 7)).astype(np.float32) for _ in range(2))
    sigma = np.exp(rng.normal(size=y_q.shape)).astype(np.float32)
    for shape in ((), (1,), (2, 1, 1, 1), (5, 7), (1, 1, 5, 1), y_q.shape):
        q = np.exp(rng.normal(size=shape)).astype(np.float32)
        mean = truncated_normal_mean(y_q, q, mu, sigma)
        assert mean.shape == y_q.shape and mean.dtype == np.float32
        whole = np.ascontiguousarray(np.broadcast_to(q, y_q.shape))
        assert (mean == truncated_normal_mean(y_q, whole, mu, sigma)).all()
    turned = (t.transpose(0, 2, 3, 1) for t in (y_q, whole, mu, sigma))  # not contiguous
    assert (truncated_normal_mean(*turned) == mean.transpose(0, 2, 3, 1)).all()
    assert truncated_normal_mean(y_q[:0], 1.0, mu[:0], sigma[:0]).shape == (0, 3, 5, 7)
    with pytest.raises(ValueError, match="shapes"):
        truncated_normal_mean(y_q, 1.0, mu[:1], sigma)


@pytest.mark.parametrize("size", [1, 1000, 2 * posterior._CHUNK, 5 * posterior._CHUNK + 77])
def test_threads_do_not_change_a_bit(size: int) -> None:
    rng = np.random.default_rng(size)
    y_q, mu = rng.normal(size=(2, size)).astype(np.float32)
    sigma, q = np.exp(2 * rng.normal(size=(2, size))).astype(np.float32)
    expected = truncated_normal_mean(y_q, q, mu, sigma)
    for threads in (2, 3, 8):
        assert (truncated_normal_mean(y_q, q, mu, sigma, threads) == expected).all()


def test_an_element_does_not_depend_on_its_place() -> None:
    y_q, q, mu, sigma = (t.ravel()[:3000] for t in cells(0.0))
    expected = truncated_normal_mean(y_q, q, mu, sigma)
    if loops.library is None:
        return  # NumPy's exp may take the last elements of an array in another way
    for start, stop in ((1, 3000), (129, 131), (77, 2077)):
        part = slice(start, stop)
        assert (truncated_normal_mean(y_q[part], q[part], mu[part], sigma[part]) == expected[part]).all()


def test_c_and_numpy_have_the_same_polynomial() -> None:
    source = (Path(gic.__file__).parent / "_loops.c").read_text()
    (body,) = re.findall(r"INLINE double excess.*?\n}", source, re.DOTALL)
    (first,) = re.findall(r"double value = (\S+);", body)
    rest = re.findall(r"value = value \* t ([+-]) (\S+);", body)
    assert tuple(map(float, [first, *map("".join, rest)])) == posterior._EXCESS
