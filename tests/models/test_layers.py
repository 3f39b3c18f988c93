"""The compressor's blocks and priors are CompressAI's: the same names, parameters, results and gradients."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from gic.models import layers
from gic.models.entropy_model import FactorizedPrior, LevelGaussian

pytest.importorskip("compressai", reason="CompressAI is not installed: pip install -e '.[baselines]'")
import compressai.layers
from compressai.entropy_models import EntropyBottleneck, GaussianConditional
from compressai.models.sensetime import ResidualBottleneckBlock
from compressai.ops import LowerBound

PAIRS = {
    "residual": (lambda: layers.ResidualBlock(6), lambda: compressai.layers.ResidualBlock(6, 6)),
    "bottleneck": (lambda: layers.ResidualBottleneckBlock(6), lambda: ResidualBottleneckBlock(6, 6)),
    "attention": (lambda: layers.AttentionBlock(6), lambda: compressai.layers.AttentionBlock(6)),
    "conv3x3": (lambda: layers.conv3x3(6, 4, stride=2), lambda: compressai.layers.conv3x3(6, 4, stride=2)),
    "subpel": (lambda: layers.subpel_conv3x3(6, 4, 2), lambda: compressai.layers.subpel_conv3x3(6, 4, 2)),
}


def seeded(make: Any) -> Any:
    torch.manual_seed(0)
    return make()


def with_gradients(network: nn.Module, *inputs: Tensor) -> list[Tensor]:
    """Output, and the gradients of its sum of squares by the inputs and parameters."""
    inputs = tuple(x.clone().requires_grad_() for x in inputs)
    out = network(*inputs)
    out = out[1] if isinstance(out, tuple) else out
    return [out, *torch.autograd.grad(out.square().sum(), [*inputs, *network.parameters()])]


@pytest.mark.parametrize("name", PAIRS)
def test_a_block_is_compressais(name: str) -> None:
    ours, theirs = (seeded(make) for make in PAIRS[name])
    a, b = ours.state_dict(), theirs.state_dict()
    assert list(a) == list(b) and all(torch.equal(a[key], b[key]) for key in a)
    x = torch.randn(2, 6, 8, 10)
    assert all(map(torch.equal, with_gradients(ours, x), with_gradients(theirs, x)))


def test_a_bound_is_compressais_and_is_no_weight() -> None:
    ours, theirs, x = layers.LowerBound(0.1), LowerBound(0.1), torch.randn(2, 6, 8, 10)
    assert all(map(torch.equal, with_gradients(ours, x), with_gradients(theirs, x)))
    assert not ours.state_dict() and not list(ours.buffers())
    ours.load_state_dict(theirs.half().state_dict())  # files of earlier versions hold it, rounded
    assert ours.bound == 0.1 and ours.on_file == float(torch.tensor(0.1).half())


@pytest.mark.parametrize("training", [True, False])
def test_the_prior_of_z_is_compressais_around_0(training: bool) -> None:
    ours = seeded(lambda: FactorizedPrior(5)).train(training)
    theirs = seeded(lambda: EntropyBottleneck(5, init_scale=2)).train(training)
    a, b = dict(ours.named_parameters()), dict(theirs.named_parameters())
    del b["quantiles"]
    assert list(a) == list(b) and all(torch.equal(a[key], b[key]) for key in a)
    with torch.no_grad():
        for mine, other in zip(a.values(), b.values(), strict=True):
            mine += 0.3 * torch.randn_like(mine)
            other.copy_(mine)
    theirs.quantiles.data.zero_().requires_grad_(False)
    z = 3 * torch.randn(2, 5, 3, 4)
    mine = seeded(lambda: with_gradients(ours, z))
    other = seeded(lambda: [theirs(z)[1]])
    assert torch.equal(mine[0], other[0])
    assert torch.equal(seeded(lambda: ours(z)[0]), seeded(lambda: theirs(z)[0]))


def test_the_prior_of_y_is_compressais_at_level_1() -> None:
    y, mu = torch.randn(2, 4, 3, 3), torch.randn(2, 4, 3, 3)
    sigma = torch.rand(2, 4, 3, 3) * 2 + 0.01
    p = LevelGaussian()(y, torch.ones(()), mu, sigma)
    expected = GaussianConditional(None)._likelihood(y, sigma, mu).clamp_min(1e-9)
    assert (p - expected).abs().max() < 1e-6
