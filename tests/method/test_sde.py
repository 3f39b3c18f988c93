"""The forward diffusion has the laws it claims, and the reverse flow carries p_q back to p_0 at its stated order."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import pytest
import torch
from bounds import rounding
from scipy import integrate, stats
from torch import Tensor

from gic.method import samplers, sde
from gic.method.posterior import truncated_normal_mean

# --- an analytic case: a Laplacian and two Gaussians, with the exact denoiser -----------------------------

LAPLACE_WEIGHT, LAPLACE_SCALE = 0.5, 0.3
GAUSSIANS = ((0.3, 1.5, 0.25), (0.2, -1.2, 0.15))  # weight, mean, standard deviation
SAMPLES = 100_000
Q = 2.0


def draw_mixture(count: int, seed: int) -> Tensor:
    rng = np.random.default_rng(seed)
    component = rng.choice(3, count, p=[LAPLACE_WEIGHT, *(w for w, _, _ in GAUSSIANS)])
    y = rng.laplace(0.0, LAPLACE_SCALE, count)
    for i, (_, mean, deviation) in enumerate(GAUSSIANS, start=1):
        y = np.where(component == i, rng.normal(mean, deviation, count), y)
    return torch.from_numpy(y)


def mixture_density(y: float) -> float:
    p = LAPLACE_WEIGHT * stats.laplace.pdf(y, scale=LAPLACE_SCALE)
    return float(p + sum(w * stats.norm.pdf(y, m, s) for w, m, s in GAUSSIANS))


def mixture_denoiser(y_q: Tensor, q: Tensor) -> Tensor:
    """E[y | y_q] under uniform noise: the mixture's mean within the cell, in closed form."""
    low, high = y_q - q / 2, y_q + q / 2
    scale = LAPLACE_SCALE
    mass, moment = torch.zeros_like(y_q), torch.zeros_like(y_q)
    for sign in (-1.0, 1.0):  # the Laplacian's two sides, each mirrored to [0, inf)
        a, b = (sign * low, sign * high) if sign > 0 else (-high, -low)
        a, b = a.clamp_min(0), b.clamp_min(0)
        fall_a, fall_b = torch.exp(-a / scale), torch.exp(-b / scale)
        mass += LAPLACE_WEIGHT / 2 * (fall_a - fall_b)
        moment += sign * LAPLACE_WEIGHT / 2 * ((a + scale) * fall_a - (b + scale) * fall_b)
    for weight, mean, deviation in GAUSSIANS:
        a, b = (low - mean) / deviation, (high - mean) / deviation
        p = (torch.erf(b / math.sqrt(2)) - torch.erf(a / math.sqrt(2))) / 2
        density = (torch.exp(-a * a / 2) - torch.exp(-b * b / 2)) / math.sqrt(2 * math.pi)
        mass += weight * p
        moment += weight * (mean * p + deviation * density)
    return torch.clamp(moment / mass, low, high)


def wasserstein(a: Tensor, b: Tensor) -> float:
    return float((a.sort().values - b.sort().values).abs().mean())


def ancestral(steps: int) -> Callable[[float], float]:
    """Share of new noise that keeps the variance of the surrogate SDE, ``a^2 = 1 - (q_{i+1} / q_i)^2``."""
    return lambda t: math.sqrt(1 - (t / (t + 1 / steps)) ** 2)


class Quality(NamedTuple):
    distance: float  # W1 to p_0
    mse: float  # to the true y


Measured = dict[tuple[str, int], Quality]


@pytest.fixture(scope="module")
def measured() -> Measured:
    """W1 and MSE by sampler and number of steps (of restarts, at 16 steps); ("floor", 0) is that of y itself."""
    y, reference = draw_mixture(SAMPLES, 1), draw_mixture(SAMPLES, 2)
    y_q = sde.forward(y[None], Q, generator=torch.Generator().manual_seed(3))
    result = {("floor", 0): Quality(wasserstein(y, reference), 0.0)}

    def measure(key: tuple[str, int], y_hat: Tensor) -> None:
        result[key] = Quality(wasserstein(y_hat[0], reference), float(((y_hat[0] - y) ** 2).mean()))

    measure(("mean", 1), samplers.reverse(mixture_denoiser, y_q, Q, sampler="mean"))
    for steps in (2, 4, 8, 32):
        for sampler in ("euler", "heun", "sde"):
            options = {"steps": steps, "alpha": ancestral(steps), "generator": torch.Generator().manual_seed(4)}
            measure((sampler, steps), samplers.reverse(mixture_denoiser, y_q, Q, sampler=sampler, **options))
    for restarts in (1, 2, 4):
        generator = torch.Generator().manual_seed(5)
        options = {"steps": 16, "restarts": restarts, "generator": generator}
        measure(("restart", restarts), samplers.reverse(mixture_denoiser, y_q, Q, sampler="restart", **options))
    return result


@pytest.mark.parametrize("q", [0.05, 0.5, 2.0, 5.0])
def test_the_analytic_denoiser_agrees_with_numerical_integration(q: float) -> None:
    kinks = [0.0, 1.5, -1.2, 1.25, 1.75, -1.35, -1.05]
    for y_q in np.linspace(-4, 4, 17):
        low, high = y_q - q / 2, y_q + q / 2
        inside = [k for k in kinks if low < k < high] or None
        mass = integrate.quad(mixture_density, low, high, points=inside, limit=200)[0]
        shift = integrate.quad(lambda y, c=y_q: (y - c) * mixture_density(y), low, high, points=inside, limit=200)[0]
        d = mixture_denoiser(torch.tensor([[y_q]], dtype=torch.float64), torch.tensor([[q]], dtype=torch.float64))
        assert float(d) == pytest.approx(y_q + shift / mass, abs=1e-7)


def test_heun_reaches_p_0_and_the_conditional_mean_does_not(measured: Measured) -> None:
    floor = measured["floor", 0].distance
    assert measured["heun", 8].distance < 4 * floor
    assert measured["heun", 32].distance < 2 * floor
    assert measured["mean", 1].distance > 20 * floor


def test_more_steps_bring_every_sampler_closer_to_p_0(measured: Measured) -> None:
    for sampler in ("euler", "heun", "sde"):
        distances = [measured[sampler, steps].distance for steps in (2, 4, 8, 32)]
        assert distances == sorted(distances, reverse=True), sampler


def test_heun_is_closer_to_p_0_than_euler_from_four_steps_on(measured: Measured) -> None:
    for steps in (4, 8, 32):
        assert measured["heun", steps].distance < measured["euler", steps].distance


def test_the_flow_is_closer_to_p_0_than_the_surrogate_sde_at_half_its_distortion(measured: Measured) -> None:
    assert measured["heun", 32].distance < measured["sde", 32].distance
    assert measured["heun", 32].mse < 0.75 * measured["sde", 32].mse


def test_the_conditional_mean_has_the_least_distortion(measured: Measured) -> None:
    least = measured["mean", 1].mse
    assert all(quality.mse > least for key, quality in measured.items() if key[0] not in ("mean", "floor"))


def test_restarts_stay_on_p_0_while_their_distortion_grows(measured: Measured) -> None:
    chain = [measured["heun", 32], *(measured["restart", n] for n in (1, 2, 4))]
    assert all(quality.distance < 2.5 * measured["floor", 0].distance for quality in chain)
    assert all(a.mse < b.mse for a, b in itertools.pairwise(chain))


# --- order of convergence ---------------------------------------------------------------------------------

# The last step of heun, from q/N to 0, is plain Euler. Its local error is of order (q/N)^2, because v vanishes with
# q, and it is made once: order 2 survives, measured here on the end points of single trajectories.


def gaussian_denoiser(y_q: Tensor, q: Tensor) -> Tensor:
    """E[y | y_q] for y ~ N(0, 1) and uniform noise."""
    one = torch.ones_like(y_q)
    return truncated_normal_mean(y_q, q, 0 * one, one)


@pytest.fixture(scope="module")
def trajectories() -> tuple[Tensor, Tensor]:
    """Starting points at level Q and where the flow takes them, by an adaptive solver."""
    start = np.linspace(-2.5, 2.5, 21)

    def flow(q: float, y: np.ndarray) -> np.ndarray:
        t, level = torch.from_numpy(y)[None], torch.tensor([[q]], dtype=torch.float64)
        return sde.velocity(t, level, gaussian_denoiser(t, level))[0].numpy()

    solution = integrate.solve_ivp(flow, (Q, 1e-7), start, rtol=1e-9, atol=1e-11)
    return torch.from_numpy(start)[None], torch.from_numpy(solution.y[:, -1])[None]


def order_of_convergence(sampler: samplers.Sampler, rho: float, trajectories: tuple[Tensor, Tensor]) -> float:
    """Slope of the mean error of single trajectories over the number of steps, both logarithmic."""
    y_q, exact = trajectories
    steps = [8, 16, 32, 64]
    errors = [
        float((samplers.reverse(gaussian_denoiser, y_q, Q, steps=n, sampler=sampler, rho=rho) - exact).abs().mean())
        for n in steps
    ]
    return -float(np.polyfit(np.log(steps), np.log(errors), 1)[0])


@pytest.mark.parametrize("rho", [1.0, 2.0])
def test_euler_converges_with_order_one(rho: float, trajectories: tuple[Tensor, Tensor]) -> None:
    assert 0.8 < order_of_convergence("euler", rho, trajectories) < 1.3


@pytest.mark.parametrize("rho", [1.0, 2.0])
def test_heun_converges_with_order_two(rho: float, trajectories: tuple[Tensor, Tensor]) -> None:
    assert 1.7 < order_of_convergence("heun", rho, trajectories) < 2.4


def test_the_flow_carries_a_gaussian_with_gaussian_noise_exactly() -> None:
    """With y ~ N(0, 1) and Gaussian noise the flow only scales: y_0 = y_q / sqrt(1 + q^2 / 12)."""
    y_q = torch.linspace(-5, 5, 11, dtype=torch.float64)[None]
    y_hat = samplers.reverse(lambda y, q: y / (1 + q**2 / 12), y_q, 4.0, steps=2000)
    assert torch.allclose(y_hat, y_q / math.sqrt(1 + 16 / 12), atol=1e-6)


# --- samplers ---------------------------------------------------------------------------------------------


def smooth_denoiser(y_q: Tensor, q: Tensor) -> Tensor:
    """Sums, products and quotients alone, which are the same to the last bit wherever in a tensor they are taken."""
    return y_q / (1 + y_q.abs()) / (1 + q * q / 12) + 0.1 * y_q


def batch(seed: int = 0, count: int = 4, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    y = 3 * torch.randn(count, 3, 4, 5, generator=generator, dtype=dtype)
    q = 0.5 * 2 ** (4 * torch.rand(count, generator=generator, dtype=dtype))
    return y, q


def generators(count: int, seed: int = 10) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(seed + i) for i in range(count)]


@pytest.mark.parametrize("steps", [1, 2, 5])
def test_sde_without_new_noise_is_euler(steps: int) -> None:
    y_q, q = batch(dtype=torch.float64)
    a = samplers.reverse(smooth_denoiser, y_q, q, steps=steps, sampler="sde", alpha=0.0)
    b = samplers.reverse(smooth_denoiser, y_q, q, steps=steps, sampler="euler")
    assert torch.allclose(a, b, rtol=1e-14, atol=1e-14)


def test_alpha_may_be_a_function_of_the_relative_level() -> None:
    y_q, q = batch()
    seen: list[float] = []

    def alpha(t: float) -> float:
        seen.append(t)
        return 0.5

    a = samplers.reverse(smooth_denoiser, y_q, q, steps=4, sampler="sde", alpha=alpha, generator=generators(4))
    b = samplers.reverse(smooth_denoiser, y_q, q, steps=4, sampler="sde", alpha=0.5, generator=generators(4))
    assert torch.equal(a, b)
    assert seen == samplers.schedule(4)[1:]


def test_new_noise_changes_sde_and_its_seed_decides_how() -> None:
    y_q, q = batch()
    options = {"steps": 4, "sampler": "sde", "alpha": 1.0}
    a, b, c = (
        samplers.reverse(smooth_denoiser, y_q, q, generator=torch.Generator().manual_seed(s), **options)
        for s in (1, 1, 2)
    )
    assert torch.equal(a, b)
    assert not torch.allclose(a, c)


@pytest.mark.parametrize("sampler", samplers.SAMPLERS)
@pytest.mark.parametrize("steps", [1, 2, 3, 8])
@pytest.mark.parametrize("restarts", [0, 1, 3])
def test_evaluations_counts_the_calls_of_the_denoiser(sampler: samplers.Sampler, steps: int, restarts: int) -> None:
    calls: list[float] = []

    def counting(y_q: Tensor, q: Tensor) -> Tensor:
        assert q.shape == (4, 1, 1, 1)
        calls.append(float(q[0]))
        return smooth_denoiser(y_q, q)

    y_q, q = batch()
    samplers.reverse(counting, y_q, q, steps=steps, sampler=sampler, restarts=restarts)
    assert len(calls) == samplers.evaluations(sampler, steps, restarts)
    assert min(calls) > 0 and max(calls) <= float(q[0]) * (1 + 1e-6)


@pytest.mark.parametrize("rho", [0.5, 1.0, 3.0])
def test_the_schedule_falls_strictly_from_one_to_zero(rho: float) -> None:
    levels = samplers.schedule(7, rho)
    assert levels[0] == 1 and levels[-1] == 0 and len(levels) == 8
    assert all(a > b for a, b in itertools.pairwise(levels))


def test_restart_without_coin_flips_is_the_flow() -> None:
    y_q = torch.linspace(-3, 3, 31, dtype=torch.float64)[None]
    a = samplers.reverse(gaussian_denoiser, y_q, Q, steps=64, sampler="restart", restarts=0)
    b = samplers.reverse(gaussian_denoiser, y_q, Q, steps=64, sampler="heun")
    assert torch.allclose(a, b, atol=1e-4)


@pytest.mark.parametrize("sampler", samplers.SAMPLERS)
def test_realism_zero_is_the_mean_bit_for_bit(sampler: samplers.Sampler) -> None:
    y_q, q = batch()
    mean = samplers.reverse(smooth_denoiser, y_q, q, sampler="mean")
    assert torch.equal(samplers.reverse(smooth_denoiser, y_q, q, sampler=sampler, realism=0.0), mean)
    mixed = samplers.reverse(smooth_denoiser, y_q, q, sampler=sampler, realism=torch.tensor([0.0, 1.0, 0.0, 0.5]))
    assert torch.equal(mixed[[0, 2]], mean[[0, 2]])
    assert torch.equal(mean, smooth_denoiser(y_q, sde.level(q, y_q)))


@pytest.mark.parametrize("sampler", samplers.SAMPLERS)
def test_realism_interpolates_linearly_between_the_mean_and_the_end_of_the_flow(sampler: samplers.Sampler) -> None:
    y_q, q = batch(dtype=torch.float64)
    r = torch.tensor([0.1, 0.25, 0.5, 0.9], dtype=torch.float64)
    options = {"steps": 3, "sampler": sampler}
    mean, end = (
        samplers.reverse(smooth_denoiser, y_q, q, realism=k, generator=generators(4), **options) for k in (0.0, 1.0)
    )
    mixed = samplers.reverse(smooth_denoiser, y_q, q, realism=r, generator=generators(4), **options)
    expected = (1 - r[:, None, None, None]) * mean + r[:, None, None, None] * end
    assert torch.allclose(mixed, expected, rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("sampler", samplers.SAMPLERS)
def test_a_sample_does_not_depend_on_its_batch(sampler: samplers.Sampler) -> None:
    y, q = batch(count=5)

    def run(rows: list[int]) -> Tensor:
        noise = generators(5)
        options = {"sampler": sampler, "steps": 3, "alpha": 0.7, "generator": [noise[i] for i in rows]}
        y_q = sde.forward(y[rows], q[rows], generator=options["generator"])
        realism = torch.linspace(0.2, 1, 5)[rows]
        return samplers.reverse(smooth_denoiser, y_q, q[rows], realism=realism, **options)

    together = run([0, 1, 2, 3, 4])
    assert torch.equal(run([4, 2, 0, 1, 3]), together[[4, 2, 0, 1, 3]])
    for i in range(5):
        assert torch.equal(run([i]), together[i : i + 1])


@pytest.mark.parametrize("sampler", samplers.SAMPLERS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_the_state_is_float32_or_better_whatever_goes_in(sampler: samplers.Sampler, dtype: torch.dtype) -> None:
    expected = torch.promote_types(dtype, torch.float32)
    states: set[torch.dtype] = set()

    def half_network(y_q: Tensor, q: Tensor) -> Tensor:
        states.update((y_q.dtype, q.dtype))
        return smooth_denoiser(y_q, q).to(dtype)

    y_q, q = batch(dtype=torch.float64)
    assert samplers.reverse(half_network, y_q.to(dtype), q, steps=3, sampler=sampler).dtype == expected
    assert states == {expected}
    for quantizer in sde.QUANTIZERS:
        assert sde.forward(y_q.to(dtype), q, quantizer=quantizer).dtype == expected
    assert sde.uniform(y_q.to(dtype)).dtype == expected


def test_gradients_flow_through_every_sampler() -> None:
    for sampler in samplers.SAMPLERS:
        y_q, q = batch()
        y_q.requires_grad_()
        samplers.reverse(smooth_denoiser, y_q, q, steps=2, sampler=sampler).sum().backward()
        assert y_q.grad is not None and bool(torch.isfinite(y_q.grad).all()) and bool((y_q.grad != 0).all())


# --- velocity and score -----------------------------------------------------------------------------------


@pytest.mark.parametrize("q", [0.3, 2.0])
def test_the_velocity_of_the_exact_denoiser_is_the_expected_noise(q: float) -> None:
    y = draw_mixture(400_000, 6)[None]
    eps = sde.uniform(y, torch.Generator().manual_seed(7))
    y_q = sde.forward(y, q, quantizer="noise", u=eps)
    v = sde.velocity(y_q, q, mixture_denoiser(y_q, sde.level(q, y_q)))
    edges = torch.quantile(y_q[0, ::4], torch.linspace(0, 1, 41, dtype=torch.float64))
    for low, high in itertools.pairwise(edges):
        difference = (eps - v)[(y_q >= low) & (y_q < high)]
        assert abs(float(difference.mean())) < 4.5 * float(difference.std()) / math.sqrt(len(difference))


@pytest.mark.parametrize("q", [0.1, 1.0, 10.0])
def test_the_score_is_exact_for_gaussian_noise(q: float) -> None:
    """Tweedie's formula: for a mixture of Gaussians with noise N(0, q^2/12) both sides have a closed form."""
    y_q = torch.linspace(-6, 6, 101, dtype=torch.float64)[None].requires_grad_()
    weights, means, deviations = (torch.tensor(v, dtype=torch.float64) for v in zip(*GAUSSIANS, strict=True))
    noisy = deviations**2 + q**2 / 12
    log_p = torch.log(weights) - (y_q[..., None] - means) ** 2 / (2 * noisy) - torch.log(noisy) / 2
    (expected,) = torch.autograd.grad(torch.logsumexp(log_p, -1).sum(), y_q)
    component = means + deviations**2 / noisy * (y_q[..., None] - means)
    denoised = (torch.softmax(log_p, -1) * component).sum(-1)
    assert torch.allclose(sde.score(y_q, q, denoised), expected, rtol=1e-9, atol=1e-9)


# --- forward ----------------------------------------------------------------------------------------------

LAWS: dict[str, Callable[[np.random.Generator, int], np.ndarray]] = {
    "constant": lambda rng, n: np.full(n, 0.37),
    "whole numbers": lambda rng, n: rng.integers(-3, 4, n).astype(float),
    "narrow": lambda rng, n: rng.normal(0.2, 0.01, n),
    "Laplacian": lambda rng, n: rng.laplace(0.0, 1.0, n),
    "wide": lambda rng, n: rng.normal(0.0, 30.0, n),
}


def is_standard_uniform(eps: Tensor) -> bool:
    return bool(stats.kstest(eps.numpy(), stats.uniform(-0.5, 1.0).cdf).pvalue > 1e-3)


@pytest.mark.parametrize("quantizer", ["dither", "noise"])
@pytest.mark.parametrize("law", LAWS)
@pytest.mark.parametrize("mu", [0.0, 0.123])
def test_the_residual_is_uniform_and_independent_of_y(quantizer: sde.Quantizer, law: str, mu: float) -> None:
    count = 20_000
    y = torch.from_numpy(LAWS[law](np.random.default_rng(0), 3 * count).reshape(3, count))
    q = torch.tensor([0.25, 1.0, 6.5], dtype=torch.float64)
    y_q = sde.forward(y, q, quantizer=quantizer, mu=mu, generator=torch.Generator().manual_seed(1))
    eps = (y_q - y) / q[:, None]
    assert float(eps.abs().max()) <= 0.5 + 1e-9
    for row, noise in zip(y, eps, strict=True):
        assert is_standard_uniform(noise)
        if law == "constant":
            continue
        assert abs(float(torch.corrcoef(torch.stack([row, noise]))[0, 1])) < 4.5 / math.sqrt(count)
        assert abs(float(torch.corrcoef(torch.stack([row.abs(), noise.abs()]))[0, 1])) < 4.5 / math.sqrt(count)
        edges = torch.quantile(row, torch.linspace(0, 1, 6, dtype=row.dtype)).unique()
        for low, high in itertools.pairwise(edges):
            assert is_standard_uniform(noise[(row >= low) & (row < high)])


def test_the_residual_of_rounding_is_not_uniform_at_low_rate() -> None:
    y = torch.randn(1, 20_000, generator=torch.Generator().manual_seed(0))
    assert not is_standard_uniform(((sde.forward(y, 8.0, quantizer="round") - y) / 8.0)[0])


def test_a_coin_turns_the_uniform_of_width_q_into_that_of_width_2q() -> None:
    generator = torch.Generator().manual_seed(0)
    q = torch.tensor([0.5, 3.0])
    y = torch.tensor([[1.7], [-4.0]]).expand(2, 50_000)
    doubled = sde.coarsen(sde.forward(y, q, quantizer="noise", generator=generator), q, generator)
    for eps in (doubled - y) / (2 * q[:, None]):
        assert is_standard_uniform(eps)


@pytest.mark.parametrize("quantizer", ["round", "dither"])
def test_quantisation_is_idempotent_and_stays_within_half_a_step(quantizer: sde.Quantizer) -> None:
    y, q = batch(count=6)
    mu = batch(seed=1, count=6)[0]
    u = sde.uniform(y, torch.Generator().manual_seed(2)) if quantizer == "dither" else torch.zeros_like(y)
    once = sde.forward(y, q, quantizer=quantizer, mu=mu, u=u)
    twice = sde.forward(once, q, quantizer=quantizer, mu=mu, u=u)
    step = sde.level(q, y)
    bound = rounding(6, float(y.abs().max() + mu.abs().max()))  # three steps to the symbol and three back
    assert bool(((once - y).abs() <= step / 2 + bound).all())
    assert torch.equal(sde.quantize(once, q, mu, u), sde.quantize(y, q, mu, u))
    assert float((twice - once).abs().max()) <= bound


@pytest.mark.parametrize("quantizer", ["round", "dither"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
def test_the_latent_of_training_is_the_decoders_bit_for_bit(quantizer: sde.Quantizer, dtype: torch.dtype) -> None:
    y, q = batch(count=64)
    y = y.to(dtype)
    mu = batch(seed=1, count=64)[0]
    u = sde.uniform(y, torch.Generator().manual_seed(2)) if quantizer == "dither" else torch.zeros_like(y)
    symbols = sde.quantize(y, q, mu, u)
    assert torch.equal(symbols, symbols.round())
    assert torch.equal(sde.forward(y, q, quantizer=quantizer, mu=mu, u=u), sde.dequantize(symbols, q, mu, u))


@pytest.mark.parametrize("quantizer", sde.QUANTIZERS)
def test_gradients_pass_straight_through_the_quantiser(quantizer: sde.Quantizer) -> None:
    y, q = batch()
    y.requires_grad_()
    mu = torch.zeros_like(y, requires_grad=True)
    sde.forward(y, q, quantizer=quantizer, mu=mu).sum().backward()
    assert y.grad is not None and torch.equal(y.grad, torch.ones_like(y))
    assert mu.grad is None


@pytest.mark.parametrize("quantizer", sde.QUANTIZERS)
def test_levels_per_sample_are_the_levels_of_single_samples(quantizer: sde.Quantizer) -> None:
    y, q = batch()
    together = sde.forward(y, q, quantizer=quantizer, generator=generators(4))
    for i, generator in enumerate(generators(4)):
        alone = sde.forward(y[i : i + 1], float(q[i]), quantizer=quantizer, generator=generator)
        assert torch.equal(alone, together[i : i + 1])


@pytest.mark.parametrize("shape", [(), (1,), (4,), (4, 1, 1, 1)])
def test_a_level_may_be_one_number_or_one_per_sample(shape: tuple[int, ...]) -> None:
    y, _ = batch()
    assert torch.equal(sde.forward(y, torch.full(shape, 2.0), quantizer="round"), 2 * torch.round(y / 2))
    assert sde.level(torch.full(shape, 2.0), y).dim() == y.dim()


# --- errors -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sampler": "ddpm"}, "unknown sampler 'ddpm': choose one of mean, euler"),
        ({"steps": 0}, "steps must be at least 1"),
        ({"rho": 0.0}, "rho positive"),
        ({"realism": 1.1}, r"realism must lie in \[0, 1\]"),
        ({"realism": float("nan")}, r"realism must lie in \[0, 1\]"),
        ({"realism": torch.tensor([0.0, 0.5, -0.1, 1.0])}, r"realism must lie in \[0, 1\]"),
        ({"sampler": "sde", "alpha": 1.5}, r"alpha must lie in \[0, 1\], not 1.5"),
        ({"sampler": "sde", "alpha": lambda t: -t}, r"alpha must lie in \[0, 1\]"),
        ({"restarts": -1}, "restarts must be 0 or more"),
        ({"q": torch.ones(3)}, "3 levels q for a batch of 4"),
        ({"sampler": "sde", "generator": generators(3)}, "3 generators for a batch of 4"),
    ],
)
def test_reverse_says_what_is_wrong(options: dict[str, object], message: str) -> None:
    y_q, q = batch()
    with pytest.raises(ValueError, match=message):
        samplers.reverse(smooth_denoiser, y_q, **{"q": q, **options})  # type: ignore[arg-type]


def test_forward_says_what_is_wrong() -> None:
    y, q = batch()
    with pytest.raises(ValueError, match="unknown quantizer 'floor': choose one of round, dither, noise"):
        sde.forward(y, q, quantizer="floor")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="2 levels q for a batch of 4"):
        sde.forward(y, q[:2])
