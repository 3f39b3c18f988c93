"""LPIPS and no-reference terms: values, direction, gradients, and that nothing of them is trained or saved."""

from __future__ import annotations

import pytest
import torch

from gic.errors import ConfigError
from gic.losses import Objective
from gic.perceptual import LPIPS, NoReference, _random_crop, lpips_network


@pytest.fixture
def pair():
    torch.manual_seed(0)
    x = torch.nn.functional.interpolate(torch.rand(2, 3, 16, 16), size=96, mode="bicubic").clamp(0, 1)
    return x, (x + 0.1 * torch.randn_like(x)).clamp(0, 1)


def test_lpips_from_a_local_backbone_is_zero_for_equals_and_grows_with_noise(shared, pair):
    x, noisy = pair
    term = LPIPS(backbone=str(shared / "weights" / "alexnet_features.pth"))
    same, near, far = term(x, x), term((x + noisy) / 2, x), term(noisy, x)
    assert torch.allclose(same, torch.zeros(2), atol=1e-6)
    assert (near < far).all()
    assert near.shape == (2,)


def test_lpips_passes_gradients_to_the_image_and_to_nothing_else(shared, pair):
    x, noisy = pair
    term = LPIPS(backbone=str(shared / "weights" / "alexnet_features.pth"))
    noisy.requires_grad_()
    term(noisy, x).sum().backward()
    assert noisy.grad is not None
    assert noisy.grad.abs().sum() > 0
    assert all(not p.requires_grad and p.grad is None for p in term.network.parameters())


def test_the_wrong_backbone_is_refused(shared):
    with pytest.raises(ConfigError, match="does not hold this backbone"):
        lpips_network("alex", str(shared / "weights" / "squeezenet1_1_features.pth"))


def test_a_missing_backbone_is_named():
    with pytest.raises(ConfigError, match=r"nowhere\.pth"):
        lpips_network("alex", "nowhere.pth")


def test_an_unknown_metric_gets_near_names():
    with pytest.raises(ConfigError, match="clipiqa"):
        NoReference("clipiqaa")


def test_a_metric_with_a_reference_is_refused():
    with pytest.raises(ConfigError, match="needs a reference"):
        NoReference("psnr")


def test_crops_have_the_size_asked_for_even_of_smaller_images():
    assert _random_crop(torch.rand(2, 3, 300, 260), 224).shape == (2, 3, 224, 224)
    assert _random_crop(torch.rand(2, 3, 100, 50), 224).shape == (2, 3, 224, 224)


def test_an_objective_with_terms_has_no_parameters_of_its_own(shared):
    objective = Objective(terms={"lpips": LPIPS(backbone=str(shared / "weights" / "alexnet_features.pth"))})
    assert not isinstance(objective, torch.nn.Module)
    assert not isinstance(objective.terms["lpips"], torch.nn.Module)
