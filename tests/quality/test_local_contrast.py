"""The term of local contrast: texture that is missing or too much costs, whatever its details."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from gic.errors import ConfigError
from gic.quality.terms import LocalContrast


def noise(seed: int, amount: float = 0.1) -> torch.Tensor:
    return 0.5 + amount * torch.randn(1, 3, 96, 64, generator=torch.Generator().manual_seed(seed))


def blurred(x: torch.Tensor) -> torch.Tensor:
    return F.avg_pool2d(F.pad(x, (2, 2, 2, 2), mode="reflect"), 5, 1)


def value(x_hat: torch.Tensor, x: torch.Tensor, **settings: float) -> float:
    (distance,) = LocalContrast(**settings)(x_hat, x)
    return float(distance)


def test_equal_pictures_cost_nothing_and_both_kinds_of_difference_cost():
    x = noise(0)
    assert value(x, x) == 0
    amounts = [0.25, 0.5, 0.8, 1.0, 1.25, 2.0, 4.0]
    costs = [value(0.5 + amount * (x - 0.5), x) for amount in amounts]
    assert costs[:4] == sorted(costs[:4], reverse=True)
    assert costs[3:] == sorted(costs[3:])


def test_twice_the_contrast_costs_log_2_where_there_is_much():
    x = noise(0)
    assert value(0.5 + 2 * (x - 0.5), x, floor=1e-6) == pytest.approx(torch.log(torch.tensor(2.0)).item(), rel=1e-3)


def test_another_texture_of_the_same_strength_costs_less_than_the_blur_of_least_error():
    x = noise(0)
    other, blur = noise(1), blurred(x)
    assert ((other - x) ** 2).mean() > ((blur - x) ** 2).mean()
    assert value(other, x) < 0.25 * value(blur, x)


def test_contrast_below_the_floor_is_not_noticed():
    flat, faint = torch.full((1, 3, 64, 64), 0.5), 0.5 + 0.002 * (noise(2)[..., :64, :] - 0.5) / 0.1
    assert value(faint, flat, floor=0.1) < 0.02 < value(faint, flat, floor=0.001)


@pytest.mark.parametrize("size", [(32, 32), (33, 71), (128, 40)])
def test_gradients_are_finite_at_any_size_and_lead_towards_the_texture(size):
    x = 0.5 + 0.1 * torch.randn(2, 3, *size)
    x_hat = torch.full_like(x, 0.5).requires_grad_()
    term = LocalContrast()
    term(x_hat, x).sum().backward()
    assert x_hat.grad is not None
    assert x_hat.grad.isfinite().all()
    x_hat = (0.5 + 0.2 * (x - 0.5)).requires_grad_()
    before = term(x_hat, x)
    (slope,) = torch.autograd.grad(before.sum(), x_hat)
    assert (term(x_hat - 1e-2 * slope / slope.norm(), x) < before).all()


def test_samples_do_not_mix_and_half_precision_changes_nothing():
    x, x_hat = torch.cat([noise(0), noise(1)]), torch.cat([blurred(noise(0)), noise(3)])
    term = LocalContrast()
    both = term(x_hat, x)
    torch.testing.assert_close(both, torch.cat([term(x_hat[:1], x[:1]), term(x_hat[1:], x[1:])]))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        torch.testing.assert_close(term(x_hat, x), both)


@pytest.mark.parametrize("settings", [{"octaves": 0}, {"floor": 0.0}, {"floor": float("nan")}])
def test_settings_without_a_meaning_are_refused(settings):
    with pytest.raises(ConfigError, match="octaves must be at least 1 and floor positive"):
        LocalContrast(**settings)
