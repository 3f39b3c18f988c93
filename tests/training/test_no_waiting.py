"""Nothing in a training step makes a GPU's host wait, and nothing breaks ``torch.compile`` into pieces.

Where there is no GPU the operators tell: each that hands values of a tensor to Python, or whose result's size depends
on values, has to wait for a GPU.
"""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from small import lapped_model
from terms import Roughness
from tiny_models import adversarial, images, started, tiny
from training_runs import tiny as tiny_run
from waits import Waits, run_quietly

from gic.method import posterior
from gic.training.objective import Objective


@pytest.fixture
def as_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """The posterior without its way of CPUs, which sorts elements by branches."""
    monkeypatch.setattr(posterior, "_counts_elements", lambda value: False)


@pytest.mark.parametrize("realism", [(0.0,), (1.0,), (0.0, 1.0, 1.0)])
@pytest.mark.parametrize("loss", ["nll", "mse"])
def test_a_step_of_training_waits_for_nothing(realism: Any, loss: Any, as_on_a_gpu: None) -> None:
    codec = tiny().train()
    optimizer = torch.optim.Adam(codec.parameters(), fused=True)
    terms = {"roughness": Roughness()}
    objective = Objective(realism=realism, reverse_weight=1.0, reverse_loss=loss, steps=2, terms=terms)
    x = images()
    with Waits() as waits:
        for _ in range(2):
            objective(codec, x)["loss"].backward()
            torch.nn.utils.clip_grad_norm_(codec.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
    assert not waits.found


def test_a_step_with_a_discriminator_waits_for_nothing(as_on_a_gpu: None) -> None:
    codec = tiny().train()
    term = started(adversarial(r1=1.0, r1_every=1))
    # Else Adam reads its count of steps, which lies on the host also where the weights do not.
    term.optimizer = torch.optim.Adam(term.discriminator.parameters(), fused=True)
    objective = Objective(realism=(0.0, 1.0, 1.0), steps=2, adversarial=term)
    with Waits() as waits:
        for _ in range(2):
            parts, seen = objective.evaluate(codec, images())
            parts["loss"].backward()
            assert seen is not None
            term.learn(*seen)
            term.step(clip=1.0)
    assert not waits.found


def test_the_two_ways_through_the_branches_of_the_posterior_agree(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = torch.Generator().manual_seed(0)
    y_q = 20 * torch.randn(4096, generator=generator)
    sigma = torch.exp(4 * torch.randn(4096, generator=generator))
    values = []
    for counts in (True, False):
        monkeypatch.setattr(posterior, "_counts_elements", lambda value, counts=counts: counts)
        y = y_q.clone().requires_grad_()
        mean = posterior.truncated_normal_mean(y, torch.ones(1), torch.zeros(4096), sigma)
        values.append((mean.detach(), torch.autograd.grad(mean.sum(), y)[0]))
    for one, other in zip(*values, strict=True):
        assert torch.allclose(one, other, rtol=1e-6, atol=1e-6)
    assert all(value.isfinite().all() for value in values[0])


@pytest.mark.parametrize("realism", [0.0, 1.0, [0.0, 0.0, 1.0]])
def test_each_network_is_one_piece_for_torch_compile(realism: Any) -> None:
    codec = lapped_model(trained=True).train()
    parts = codec.compressor
    x, q = torch.rand(3, 3, 64, 64), torch.ones(3)
    latents = parts.analyse(x)
    torch._dynamo.reset()

    def whole(network: torch.nn.Module) -> Any:
        return torch.compile(network, fullgraph=True, backend="eager")  # a break into pieces is an error

    y = latents.y.detach()
    assert torch.allclose(whole(parts.g_s)(y, realism), parts.g_s(y, realism), atol=1e-5)
    for network, inputs in ((parts.g_a, (x,)), (parts.h_a, (y,)), (parts.h_s, (latents.z_hat.detach(),))):
        assert torch.allclose(whole(network)(*inputs), network(*inputs), rtol=1e-4, atol=1e-4)
    for one, other in zip(whole(codec.reverse)(y, y, y, q), codec.reverse(y, y, y, q), strict=True):
        assert torch.allclose(one, other, atol=1e-4)
    realistic = lapped_model(trained=True).train().reverse
    realistic.realistic = copy.deepcopy(realistic)
    r = [0.0, 0.0, 1.0]
    for one, other in zip(whole(realistic)(y, y, y, q, r), realistic(y, y, y, q, r), strict=True):
        assert torch.allclose(one, other, rtol=1e-4, atol=1e-4)
    torch._dynamo.reset()


def test_a_run_waits_for_nothing_between_two_logs(
    pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    run_quietly([*tiny_run(pictures), "--model.objective.init_args.realism", "[0.0, 1.0]"], monkeypatch)
