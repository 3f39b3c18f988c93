"""The reverse flow carries p_q back to p_0 at its stated order, by each sampler, and a sampler is named as promised."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch
from analytic import (
    batch,
    draw_mixture,
    gaussian_denoiser,
    generators,
    mixture_denoiser,
    mixture_density,
    smooth_denoiser,
)
from scipy import integrate
from torch import Tensor

from gic.errors import ConfigError
from gic.method import samplers, sde
from gic.method.samplers import SDE, Flow, Restart, Sampler, sampler_of

SAMPLES = 100_000
Q = 2.0


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
        for name, sampler in (("euler", "euler"), ("heun", "heun"), ("sde", SDE(ancestral(steps)))):
            options = {"steps": steps, "sampler": sampler, "generator": torch.Generator().manual_seed(4)}
            measure((name, steps), samplers.reverse(mixture_denoiser, y_q, Q, **options))
    for restarts in (1, 2, 4):
        options = {"steps": 16, "sampler": Restart(restarts), "generator": torch.Generator().manual_seed(5)}
        measure(("restart", restarts), samplers.reverse(mixture_denoiser, y_q, Q, **options))
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


@pytest.fixture(scope="module")
def trajectories() -> tuple[Tensor, Tensor]:
    """Starting points at level Q and where the flow takes them, by an adaptive solver."""
    start = np.linspace(-2.5, 2.5, 21)

    def flow(q: float, y: np.ndarray) -> np.ndarray:
        t, level = torch.from_numpy(y)[None], torch.tensor([[q]], dtype=torch.float64)
        return sde.velocity(t, level, gaussian_denoiser(t, level))[0].numpy()

    solution = integrate.solve_ivp(flow, (Q, 1e-7), start, rtol=1e-9, atol=1e-11)
    return torch.from_numpy(start)[None], torch.from_numpy(solution.y[:, -1])[None]


def order_of_convergence(sampler: str, rho: float, trajectories: tuple[Tensor, Tensor]) -> float:
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


@pytest.mark.parametrize(("sampler", "least", "most"), [("euler", 0.8, 1.3), ("heun", 1.7, 2.4)])
def test_the_order_is_the_same_where_each_element_has_its_own_level(sampler: str, least: float, most: float) -> None:
    start, levels = np.linspace(-2.5, 2.5, 21), Q * 3.0 ** np.linspace(-1, 1, 21)

    def flow(t: float, y: np.ndarray) -> np.ndarray:
        """dy/dt = q v along the levels q t."""
        y_q, q = torch.from_numpy(y)[None], torch.from_numpy(levels * t)[None]
        return levels * sde.velocity(y_q, q, gaussian_denoiser(y_q, q))[0].numpy()

    solution = integrate.solve_ivp(flow, (1, 1e-7), start, rtol=1e-9, atol=1e-11)
    y_q, q, exact = (torch.from_numpy(v)[None] for v in (start, levels, solution.y[:, -1]))
    steps = [8, 16, 32, 64]
    ends = [samplers.reverse(gaussian_denoiser, y_q, q, steps=n, sampler=sampler) for n in steps]
    errors = [float((end - exact).abs().mean()) for end in ends]
    assert least < -float(np.polyfit(np.log(steps), np.log(errors), 1)[0]) < most


def test_the_flow_carries_a_gaussian_with_gaussian_noise_exactly() -> None:
    """With y ~ N(0, 1) and Gaussian noise the flow only scales: y_0 = y_q / sqrt(1 + q^2 / 12)."""
    y_q = torch.linspace(-5, 5, 11, dtype=torch.float64)[None]
    y_hat = samplers.reverse(lambda y, q: y / (1 + q**2 / 12), y_q, 4.0, steps=2000)
    assert torch.allclose(y_hat, y_q / math.sqrt(1 + 16 / 12), atol=1e-6)


# --- each sampler, and what all have in common ------------------------------------------------------------


@pytest.mark.parametrize("steps", [1, 2, 5])
def test_sde_without_new_noise_is_euler(steps: int) -> None:
    y_q, q = batch(dtype=torch.float64)
    a = samplers.reverse(smooth_denoiser, y_q, q, steps=steps, sampler="sde(alpha=0.0)")
    b = samplers.reverse(smooth_denoiser, y_q, q, steps=steps, sampler="euler")
    assert torch.allclose(a, b, rtol=1e-14, atol=1e-14)


def test_alpha_may_be_a_function_of_the_relative_level() -> None:
    y_q, q = batch()
    seen: list[float] = []

    def alpha(t: float) -> float:
        seen.append(t)
        return 0.5

    a = samplers.reverse(smooth_denoiser, y_q, q, steps=4, sampler=SDE(alpha), generator=generators(4))
    b = samplers.reverse(smooth_denoiser, y_q, q, steps=4, sampler=SDE(0.5), generator=generators(4))
    assert torch.equal(a, b)
    assert seen == samplers.schedule(4)[1:]


def test_new_noise_changes_sde_and_its_seed_decides_how() -> None:
    y_q, q = batch()
    options = {"steps": 4, "sampler": "sde(alpha=1.0)"}
    a, b, c = (
        samplers.reverse(smooth_denoiser, y_q, q, generator=torch.Generator().manual_seed(s), **options)
        for s in (1, 1, 2)
    )
    assert torch.equal(a, b)
    assert not torch.allclose(a, c)


@pytest.mark.parametrize("alpha", [0.0, 0.3, 0.8, 1.0])
def test_sde_keeps_the_variance_of_each_level_and_the_share_of_old_noise(alpha: float) -> None:
    """With a denoiser that knows y the residual is all noise: of variance q^2 / 12, sqrt(1 - a^2) of it the old."""
    count, q = 200_000, 3.0
    y = torch.full((1, count), 0.7, dtype=torch.float64)
    eps = [sde.uniform(y, torch.Generator().manual_seed(1))]
    levels = [q]

    def denoiser(y_q: Tensor, level: Tensor) -> Tensor:
        eps.append((y_q - y) / level)
        levels.append(float(level))
        return y

    options = {"steps": 4, "sampler": SDE(alpha), "generator": torch.Generator().manual_seed(2)}
    samplers.reverse(denoiser, y + q * eps[0], q, **options)
    assert levels[1:] == pytest.approx([q, 0.75 * q, 0.5 * q, 0.25 * q])
    assert torch.allclose(eps[1], eps[0], atol=1e-12)
    for old, new in itertools.pairwise(eps[1:]):
        # The variance of a square of such noise is at most that of a Gaussian's, 2 / 12^2; so is that of a product.
        assert float((new**2).mean()) == pytest.approx(1 / 12, abs=4.5 * math.sqrt(2 / count) / 12)
        assert float((old * new).mean()) == pytest.approx(math.sqrt(1 - alpha**2) / 12, abs=9 / math.sqrt(count) / 12)


@pytest.mark.parametrize("sampler", [*samplers.SAMPLERS, "restart(restarts=0)", "restart(restarts=3)"])
@pytest.mark.parametrize("steps", [1, 2, 3, 8])
def test_evaluations_counts_the_calls_of_the_denoiser(sampler: str, steps: int) -> None:
    calls: list[float] = []

    def counting(y_q: Tensor, q: Tensor) -> Tensor:
        assert q.shape == (4, 1, 1, 1)
        calls.append(float(q[0]))
        return smooth_denoiser(y_q, q)

    y_q, q = batch()
    samplers.reverse(counting, y_q, q, steps=steps, sampler=sampler)
    assert len(calls) == sampler_of(sampler).evaluations(steps)
    assert min(calls) > 0 and max(calls) <= float(q[0]) * (1 + 1e-6)


@pytest.mark.parametrize("sampler", samplers.SAMPLERS)
@pytest.mark.parametrize("realism", [0.0, [0.0] * 4, torch.zeros(4)])
def test_realism_zero_takes_one_evaluation(sampler: str, realism: samplers.Realism) -> None:
    calls: list[float] = []

    def counting(y_q: Tensor, q: Tensor) -> Tensor:
        calls.append(float(q[0]))
        return smooth_denoiser(y_q, q)

    y_q, q = batch()
    samplers.reverse(counting, y_q, q, steps=3, sampler=sampler, realism=realism)
    assert calls == [float(q[0])]


@pytest.mark.parametrize("rho", [0.5, 1.0, 3.0])
def test_the_schedule_falls_strictly_from_one_to_zero(rho: float) -> None:
    levels = samplers.schedule(7, rho)
    assert levels[0] == 1 and levels[-1] == 0 and len(levels) == 8
    assert all(a > b for a, b in itertools.pairwise(levels))


def test_restart_without_coin_flips_is_the_flow() -> None:
    y_q = torch.linspace(-3, 3, 31, dtype=torch.float64)[None]
    a = samplers.reverse(gaussian_denoiser, y_q, Q, steps=64, sampler="restart(restarts=0)")
    b = samplers.reverse(gaussian_denoiser, y_q, Q, steps=64, sampler="heun")
    assert torch.allclose(a, b, atol=1e-4)


@pytest.mark.parametrize("sampler", samplers.SAMPLERS)
def test_realism_zero_is_the_mean_bit_for_bit(sampler: str) -> None:
    y_q, q = batch()
    mean = samplers.reverse(smooth_denoiser, y_q, q, sampler="mean")
    assert torch.equal(samplers.reverse(smooth_denoiser, y_q, q, sampler=sampler, realism=0.0), mean)
    mixed = samplers.reverse(smooth_denoiser, y_q, q, sampler=sampler, realism=torch.tensor([0.0, 1.0, 0.0, 0.5]))
    assert torch.equal(mixed[[0, 2]], mean[[0, 2]])
    assert torch.equal(mean, smooth_denoiser(y_q, sde.level(q, y_q)))


@pytest.mark.parametrize("sampler", samplers.SAMPLERS)
def test_realism_interpolates_linearly_between_the_mean_and_the_end_of_the_flow(sampler: str) -> None:
    y_q, q = batch(dtype=torch.float64)
    r = torch.tensor([0.1, 0.25, 0.5, 0.9], dtype=torch.float64)
    options = {"steps": 3, "sampler": sampler}
    mean, end = (
        samplers.reverse(smooth_denoiser, y_q, q, realism=k, generator=generators(4), **options) for k in (0.0, 1.0)
    )
    mixed = samplers.reverse(smooth_denoiser, y_q, q, realism=r, generator=generators(4), **options)
    expected = (1 - r[:, None, None, None]) * mean + r[:, None, None, None] * end
    assert torch.allclose(mixed, expected, rtol=1e-13, atol=1e-13)


def field(y: Tensor) -> Tensor:
    """A level for each element, from 0.5 to 8."""
    return 0.5 * 2 ** (4 * torch.rand(y.shape, generator=torch.Generator().manual_seed(5), dtype=y.dtype))


@pytest.mark.parametrize("realism", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("sampler", samplers.SAMPLERS)
def test_a_field_of_equal_levels_is_the_level_bit_for_bit(sampler: str, realism: float) -> None:
    y_q, q = batch()

    def run(level: float | Tensor) -> Tensor:
        options = {"steps": 3, "sampler": sampler, "realism": realism, "generator": generators(4)}
        return samplers.reverse(smooth_denoiser, y_q, level, **options)

    assert torch.equal(run(torch.full_like(y_q, 1.7)), run(1.7))
    assert torch.equal(run(q[:, None, None, None].expand_as(y_q)), run(q))


@pytest.mark.parametrize("sampler", ["mean", "euler", "heun", "sde(alpha=0.0)", "restart(restarts=0)"])
def test_elements_with_levels_of_their_own_may_change_places(sampler: str) -> None:
    y_q, _ = batch()
    q, order = field(y_q), torch.randperm(y_q.numel(), generator=torch.Generator().manual_seed(1))

    def run(*tensors: Tensor) -> Tensor:
        return samplers.reverse(smooth_denoiser, *tensors, steps=3, sampler=sampler)

    whole = run(y_q, q)
    moved = run(*(t.flatten()[order].reshape(y_q.shape) for t in (y_q, q)))
    assert torch.equal(moved, whole.flatten()[order].reshape(y_q.shape))
    for index in range(0, y_q.numel(), 17):
        alone = samplers.reverse(
            smooth_denoiser, y_q.flatten()[index].reshape(1, 1), float(q.flatten()[index]), steps=3, sampler=sampler
        )
        assert torch.allclose(alone, whole.flatten()[index], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("sampler", samplers.SAMPLERS)
def test_a_field_of_another_shape_is_refused(sampler: str) -> None:
    y_q, _ = batch()
    with pytest.raises(ValueError, match="or a field like the latent"):
        samplers.reverse(smooth_denoiser, y_q, torch.ones(4, 3, 4, 4), sampler=sampler)


@pytest.mark.parametrize("sampler", [*samplers.SAMPLERS, "sde(alpha=0.7)"])
def test_a_sample_does_not_depend_on_its_batch(sampler: str) -> None:
    y, q = batch(count=5)

    def run(rows: list[int]) -> Tensor:
        noise = generators(5)
        options = {"sampler": sampler, "steps": 3, "generator": [noise[i] for i in rows]}
        y_q = sde.forward(y[rows], q[rows], generator=options["generator"])
        realism = torch.linspace(0.2, 1, 5)[rows]
        return samplers.reverse(smooth_denoiser, y_q, q[rows], realism=realism, **options)

    together = run([0, 1, 2, 3, 4])
    assert torch.equal(run([4, 2, 0, 1, 3]), together[[4, 2, 0, 1, 3]])
    for i in range(5):
        assert torch.equal(run([i]), together[i : i + 1])


@pytest.mark.parametrize("sampler", samplers.SAMPLERS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_the_state_is_float32_or_better_whatever_goes_in(sampler: str, dtype: torch.dtype) -> None:
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


# --- naming one -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", samplers.SAMPLERS)
def test_each_name_is_what_its_sampler_is_called(name: str) -> None:
    sampler = sampler_of(name)
    assert type(sampler) is samplers.SAMPLERS[name]
    assert str(sampler) == name
    assert sampler_of(str(sampler)) == sampler
    assert sampler_of(sampler) is sampler


@pytest.mark.parametrize(
    ("text", "sampler"),
    [
        ("sde(alpha=0.3)", SDE(0.3)),
        ("sde(0.3)", SDE(0.3)),
        (" sde( alpha = 1 ) ", SDE(1)),
        ("sde()", SDE()),
        ("restart(restarts=0)", Restart(0)),
        ("restart(restarts=4)", Restart(4)),
    ],
)
def test_parameters_are_read_and_written(text: str, sampler: Sampler) -> None:
    assert sampler_of(text) == sampler
    assert sampler_of(str(sampler)) == sampler


def test_parameters_are_part_of_the_name_only_where_they_are_not_the_default() -> None:
    assert str(SDE(0.3)) == "sde(alpha=0.3)"
    assert str(SDE(0.5)) == "sde"
    assert str(Restart(3)) == "restart(restarts=3)"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("ddpm", "there is no sampler 'ddpm': choose one of mean, euler, heun, sde, restart"),
        ("", "a sampler is a name"),
        ("Heun", "there is no sampler 'Heun'"),
        ("gic.method.samplers.Heun", "there is no sampler 'gic.method.samplers.Heun'"),
        ("sde(alpha=2)", r"alpha must lie in \[0, 1\], not 2"),
        ("sde(alpha=-0.1)", r"alpha must lie in \[0, 1\]"),
        ("sde(alpha=1e999)", r"alpha must lie in \[0, 1\], not inf"),
        ("sde(alpha=nan)", "a sampler is a name"),
        ("sde(alpha='0.3')", "the sampler SDE does not take these parameters"),
        ("sde(alpha=None)", "the sampler SDE does not take these parameters"),
        ("sde(beta=0.3)", "the sampler SDE does not take these parameters"),
        ("sde(0.3, alpha=0.3)", "the sampler SDE does not take these parameters"),
        ("sde(0.3, 0.4)", "the sampler SDE does not take these parameters"),
        ("heun(3)", "the sampler Heun does not take these parameters"),
        ("restart(restarts=-1)", "restarts must be 0 or more"),
        ("restart(restarts=1.5)", "restarts must be 0 or more"),
        ("restart(restarts='1')", "restarts must be 0 or more"),
        ("sde(", "a sampler is a name"),
        ("sde)", "a sampler is a name"),
        ("sde(alpha=)", "a sampler is a name"),
        ("sde(alpha=0.3, alpha=0.3)", "a sampler is a name"),
        ("sde(alpha=0.3); heun", "a sampler is a name"),
        ("sde(**{'alpha': 0.3})", "a sampler is a name"),
        ("sde(*[0.3])", "a sampler is a name"),
        ("sde\0", "a sampler is a name"),
        ("sde(" + "-" * 90_000 + "1)", "a sampler is a name"),
        ("3", "a sampler is a name"),
    ],
)
def test_malformed_texts_and_parameters_out_of_range_are_refused(text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=f"^{message}"):
        sampler_of(text)
    y_q, q = batch()
    with pytest.raises(ConfigError, match=f"^{message}"):
        samplers.reverse(smooth_denoiser, y_q, q, sampler=text)


@pytest.mark.parametrize("text", ["sde(alpha={})", "sde({})", "{}", "{}.heun", "({}).heun(3)", "sde()({})"])
def test_no_text_runs_code(text: str, tmp_path: Path) -> None:
    trap = tmp_path / "sprung"
    with pytest.raises(ConfigError):
        sampler_of(text.format(f"__import__('os').mkdir({str(trap)!r})"))
    assert not trap.exists()
    with pytest.raises(ConfigError):
        sampler_of("sde(alpha=__import__('os'))")


@dataclass(frozen=True)
class Halfway(Sampler):
    """A user's own: some way from the mean to where the latent was."""

    share: float = 0.5

    def run(self, flow: Flow) -> Tensor:
        assert (flow.times[0], flow.times[-1], len(flow.times)) == (1, 0, 4)
        assert torch.equal(flow.denoise(flow.y_q, 1.0), flow.mean)
        return flow.mean + self.share * (flow.y_q - flow.mean)

    def evaluations(self, steps: int) -> int:
        return 2


def test_a_sampler_of_the_users_own_runs_as_the_others_do() -> None:
    y_q, q = batch(dtype=torch.float64)
    sampler = Halfway(0.25)
    mean = smooth_denoiser(y_q, sde.level(q, y_q))
    end = samplers.reverse(smooth_denoiser, y_q, q, steps=3, sampler=sampler)
    assert torch.equal(end, mean + (mean + 0.25 * (y_q - mean) - mean))
    assert torch.equal(samplers.reverse(smooth_denoiser, y_q, q, steps=3, sampler=sampler, realism=0.0), mean)
    half = samplers.reverse(smooth_denoiser, y_q, q, steps=3, sampler=sampler, realism=0.5)
    assert torch.allclose(half, (mean + end) / 2, rtol=1e-14, atol=1e-14)
    assert sampler_of(sampler) is sampler
    assert (str(sampler), str(Halfway())) == ("Halfway(share=0.25)", "Halfway")


def test_a_sampler_need_not_be_a_dataclass() -> None:
    class End(Sampler):
        def run(self, flow: Flow) -> Tensor:
            return flow.mean

        def evaluations(self, steps: int) -> int:
            return 1

    y_q, q = batch()
    assert str(End()) == "End"
    end = samplers.reverse(smooth_denoiser, y_q, q, sampler=End())
    assert torch.equal(end, samplers.reverse(smooth_denoiser, y_q, q, sampler="mean"))


def test_a_sampler_with_a_name_can_be_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(samplers.SAMPLERS, "halfway", Halfway)
    assert sampler_of("halfway(share=0.75)") == Halfway(0.75)
    assert str(Halfway(0.75)) == "halfway(share=0.75)"
    y_q, q = batch()
    named = samplers.reverse(smooth_denoiser, y_q, q, steps=3, sampler="halfway(0.75)")
    assert torch.equal(named, samplers.reverse(smooth_denoiser, y_q, q, steps=3, sampler=Halfway(0.75)))


# --- errors -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sampler": "ddpm"}, "there is no sampler 'ddpm': choose one of mean, euler"),
        ({"steps": 0}, "steps must be at least 1"),
        ({"rho": 0.0}, "rho positive"),
        ({"realism": 1.1}, r"realism must lie in \[0, 1\]"),
        ({"realism": float("nan")}, r"realism must lie in \[0, 1\]"),
        ({"realism": torch.tensor([0.0, 0.5, -0.1, 1.0])}, r"realism must lie in \[0, 1\]"),
        ({"sampler": "sde(alpha=1.5)"}, r"alpha must lie in \[0, 1\], not 1.5"),
        ({"sampler": SDE(lambda t: -t)}, r"alpha must lie in \[0, 1\]"),
        ({"sampler": "restart(restarts=-1)"}, "restarts must be 0 or more"),
        ({"q": torch.ones(3)}, "3 levels q for a batch of 4"),
        ({"sampler": "sde", "generator": generators(3)}, "3 generators for a batch of 4"),
    ],
)
def test_reverse_says_what_is_wrong(options: dict[str, object], message: str) -> None:
    y_q, q = batch()
    with pytest.raises(ValueError, match=message):
        samplers.reverse(smooth_denoiser, y_q, **{"q": q, **options})  # type: ignore[arg-type]
