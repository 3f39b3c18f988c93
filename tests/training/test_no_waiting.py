"""Nothing in a training step makes a GPU's host wait, and nothing breaks ``torch.compile`` into pieces.

Where there is no GPU the operators tell: each that hands values of a tensor to Python, or whose result's size depends
on values, has to wait for a GPU.
"""

from __future__ import annotations

import copy
import traceback
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from test_adversarial import adversarial, started
from test_lapped import lapped_model
from test_losses import Roughness
from test_model import images, tiny
from torch.utils._python_dispatch import TorchDispatchMode
from training_runs import tiny as tiny_run

from gic.method import posterior
from gic.training.cli import make_cli
from gic.training.objective import Objective
from gic.training.watch import LossWatch

WAITING = ("_local_scalar_dense", "nonzero", "_unique2", "unique_dim", "unique_consecutive", "masked_select", "equal")


class Waits(TorchDispatchMode):
    """Collects the operators that a GPU must be waited for; integers are drawn on the host."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket._qualified_op_name.split("::")[1]
        host = name == "_local_scalar_dense" and args[0].dtype == torch.int64
        if name in WAITING and not host:
            callers = [f"{frame.filename}:{frame.lineno}" for frame in traceback.extract_stack()[-12:-1]]
            self.found.append(f"{name} asked for by {' '.join(callers)}")
        return func(*args, **(kwargs or {}))


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


class Quiet(L.Callback):
    """Lets nothing wait for a GPU from the end of one step to the end of another; without a GPU finds what would."""

    def __init__(self, first: int = 3, last: int = 12) -> None:
        self.first, self.last = first, last
        self.waits = Waits()

    def on_train_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
        if trainer.global_step == self.first:
            if torch.cuda.is_available():
                torch.cuda.set_sync_debug_mode("error")
            self.waits.__enter__()
        if trainer.global_step == self.last:
            self.waits.__exit__(None, None, None)
            if torch.cuda.is_available():
                torch.cuda.set_sync_debug_mode("default")


def run_quietly(words: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Run a command line with logging, an average and a progress bar, and see that nothing waits between two logs."""
    monkeypatch.setattr(posterior, "_counts_elements", lambda value: False)
    logger = "[{class_path: lightning.pytorch.loggers.CSVLogger, init_args: {save_dir: runs}}]"
    callbacks = "[{class_path: gic.training.ema.EMA}, {class_path: gic.training.progress.ProgressBar}]"
    words = [*words, "--trainer.logger", logger, "--trainer.callbacks", callbacks, "--trainer.log_every_n_steps", "15"]
    words += ["--trainer.enable_progress_bar", "true", "--data.batches_per_epoch", "100", "--trainer.max_steps", "16"]
    cli = make_cli(words, run=False)
    quiet = Quiet()
    cli.trainer.callbacks.append(quiet)  # the last: what the others do is seen
    if cli.trainer.strategy.root_device.type == "cpu":  # where every loss is looked at
        monkeypatch.setattr(LossWatch, "look", lambda self: None)
    try:
        cli.trainer.fit(cli.model, cli.datamodule)
    finally:
        if torch.cuda.is_available():
            torch.cuda.set_sync_debug_mode("default")
    assert cli.trainer.global_step == 16
    assert not quiet.waits.found


def test_a_run_waits_for_nothing_between_two_logs(
    pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    run_quietly([*tiny_run(pictures), "--model.objective.init_args.realism", "[0.0, 1.0]"], monkeypatch)
