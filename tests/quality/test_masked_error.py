"""The term of masked error: what the original's own contrast hides costs less."""

from __future__ import annotations

import pytest
import torch

from gic.errors import ConfigError
from gic.quality.terms import MaskedError


def noise(seed: int, amount: float, *size: int) -> torch.Tensor:
    return amount * torch.randn(1, 3, *(size or (64, 64)), generator=torch.Generator().manual_seed(seed))


def value(x_hat: torch.Tensor, x: torch.Tensor, floor: float = 0.02) -> float:
    (cost,) = MaskedError(floor=floor)(x_hat, x)
    return float(cost)


def test_on_a_plain_surface_it_is_the_squared_error_in_units_of_the_floor():
    x = torch.full((1, 3, 40, 40), 0.7)
    assert value(x, x) == 0
    assert value(x + 0.02, x) == pytest.approx(1, rel=1e-4)
    assert value(x + 0.02, x, floor=0.04) == pytest.approx(1 / 4, rel=1e-4)


def test_texture_hides_errors_the_more_the_stronger_it_is():
    error = noise(1, 0.01)
    costs = [value(x + error, x) for x in (0.5 + noise(0, amount) for amount in (0.0, 0.02, 0.05, 0.2))]
    assert costs == sorted(costs, reverse=True)
    assert costs[-1] < 0.05 * costs[0]


def test_a_texture_of_large_contrast_counts_by_its_variance():
    x, error = 0.5 + noise(0, 1.0), noise(1, 0.01)
    expected = float((error**2).mean())  # variance 1; the calmest window of 9 x 9 has somewhat less
    assert expected < value(x + error, x) < 1.4 * expected


def test_a_plain_surface_is_plain_up_to_its_edge():
    x = torch.zeros(1, 3, 48, 48)
    x[..., 24:] = 1.0
    ringing = torch.zeros_like(x)
    ringing[..., 23] = 0.02  # beside the edge
    far = torch.zeros_like(x)
    far[..., 3] = 0.02
    assert value(x + ringing, x) == pytest.approx(value(x + far, x), rel=1e-4)
    textured = x.clone()
    textured[..., :24] = 0.5 + noise(0, 0.2, 48, 24)
    assert value(textured + ringing, textured) < 0.1 * value(x + ringing, x)


@pytest.mark.parametrize("size", [(1, 1), (5, 3), (33, 71)])
def test_gradients_are_finite_at_any_size_and_lead_to_the_original(size):
    x = 0.5 + 0.1 * torch.randn(2, 3, *size)
    x_hat = (x + 0.1).requires_grad_()
    MaskedError()(x_hat, x).sum().backward()
    assert x_hat.grad is not None
    assert x_hat.grad.isfinite().all()
    assert (x_hat.grad > 0).all()


def test_samples_do_not_mix_and_half_precision_changes_nothing():
    x = 0.5 + torch.cat([noise(0, 0.1), noise(1, 0.01)])
    x_hat = x + torch.cat([noise(2, 0.01), noise(3, 0.02)])
    term = MaskedError()
    both = term(x_hat, x)
    torch.testing.assert_close(both, torch.cat([term(x_hat[:1], x[:1]), term(x_hat[1:], x[1:])]))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        torch.testing.assert_close(term(x_hat, x), both)


@pytest.mark.parametrize("floor", [0.0, -1.0, float("nan"), float("inf")])
def test_a_floor_without_a_meaning_is_refused(floor):
    with pytest.raises(ConfigError, match="floor must be positive"):
        MaskedError(floor=floor)
