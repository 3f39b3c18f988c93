"""The forward diffusion has the distributions it claims; velocity and score are those of the distribution."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from analytic import GAUSSIANS, batch, draw_mixture, generators, mixture_denoiser
from bounds import rounding
from scipy import stats
from torch import Tensor

from gic.method import sde

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
    "integers": lambda rng, n: rng.integers(-3, 4, n).astype(float),
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


def test_forward_says_what_is_wrong() -> None:
    y, q = batch()
    with pytest.raises(ValueError, match="unknown quantizer 'floor': choose one of round, dither, noise"):
        sde.forward(y, q, quantizer="floor")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="2 levels q for a batch of 4"):
        sde.forward(y, q[:2])


# --- a field of levels ------------------------------------------------------------------------------------

OPERATIONS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "quantize": lambda y, q: sde.quantize(y, q, 0.3, 0.1),
    "dequantize": lambda y, q: sde.dequantize(y.round(), q, 0.3, 0.1),
    "round": lambda y, q: sde.forward(y, q, quantizer="round", mu=0.3),
    "dither": lambda y, q: sde.forward(y, q, quantizer="dither", mu=0.3, u=y.sin() / 2),
    "noise": lambda y, q: sde.forward(y, q, quantizer="noise", u=y.cos() / 2),
    "velocity": lambda y, q: sde.velocity(y, q, y / 3),
    "score": lambda y, q: sde.score(y, q, y / 3),
}


def field(y: Tensor, seed: int = 5) -> Tensor:
    """A level for each element, from 0.5 to 8."""
    return 0.5 * 2 ** (4 * torch.rand(y.shape, generator=torch.Generator().manual_seed(seed), dtype=y.dtype))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("operation", [*OPERATIONS, "coarsen"])
def test_a_field_of_equal_levels_is_the_level_bit_for_bit(operation: str, dtype: torch.dtype) -> None:
    y, q = batch(dtype=dtype)

    def run(level: float | Tensor) -> Tensor:
        if operation == "coarsen":
            return sde.coarsen(y, level, torch.Generator().manual_seed(3))
        return OPERATIONS[operation](y, level)  # type: ignore[arg-type]

    assert torch.equal(run(torch.full_like(y, 1.7)), run(1.7))
    assert torch.equal(run(q[:, None, None, None].expand_as(y)), run(q))
    assert torch.equal(run(torch.full((1, *y.shape[1:]), 1.7, dtype=dtype)), run(1.7))


@pytest.mark.parametrize("operation", OPERATIONS)
def test_each_element_follows_its_own_level_wherever_it_stands(operation: str) -> None:
    y, _ = batch()
    q, order = field(y), torch.randperm(y.numel(), generator=torch.Generator().manual_seed(1))
    whole = OPERATIONS[operation](y, q)
    moved = OPERATIONS[operation](*(t.flatten()[order].reshape(y.shape) for t in (y, q)))
    assert torch.equal(moved, whole.flatten()[order].reshape(y.shape))
    for index in range(0, y.numel(), 17):
        alone = OPERATIONS[operation](y.flatten()[index].reshape(1, 1), float(q.flatten()[index]))
        assert torch.allclose(alone, whole.flatten()[index], rtol=1e-6, atol=1e-6)


def test_a_coin_doubles_each_level_of_a_field() -> None:
    y, _ = batch()
    q = field(y)
    assert torch.allclose((sde.coarsen(y, q) - y).abs(), q / 2, atol=rounding(2, float(y.abs().max())))


@pytest.mark.parametrize(
    "shape", [(4, 3, 4, 4), (2, 3, 4, 5), (4, 2, 4, 5), (3, 4, 5), (4, 3), (4, 3, 20), (1, 4, 3, 4, 5)]
)
def test_a_field_of_another_shape_is_refused(shape: tuple[int, ...]) -> None:
    y, _ = batch()
    with pytest.raises(ValueError, match=r"levels q for a batch of 4: give one, one per sample, or a field"):
        sde.forward(y, torch.ones(shape), quantizer="round")


@pytest.mark.parametrize("shape", [(4, 1, 1, 5), (1, 3, 1, 1), (1, 1, 4, 5), (4, 3, 4, 5)])
def test_a_field_may_be_of_length_1_along_some_sides(shape: tuple[int, ...]) -> None:
    y, _ = batch()
    q = field(torch.empty(shape))
    assert torch.equal(sde.velocity(y, q, 0 * y), sde.velocity(y, q.expand_as(y), 0 * y))
