"""A signal stops a run between two batches, on all ranks alike, and the run goes on as if nothing had been."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.data import IterableDataset
from training_runs import DDP, TERM, USR1, callback_words, finish, losses, start, tiny

from gic.commands.dispatch import run
from gic.data.module import Workers
from gic.errors import ConfigError
from gic.training.cli import make_cli
from gic.training.preemption import PreemptedError, Preemption


def signal_at(step: int, number: int, rank: int = 0) -> str:
    return f"{{class_path: training_runs.SignalAt, init_args: {{step: {step}, number: {number}, rank: {rank}}}}}"


def weights(cli: Any) -> dict[str, torch.Tensor]:
    return dict(cli.model.codec.state_dict())


@pytest.mark.parametrize("number", [TERM, USR1])
def test_a_stopped_run_goes_on_exactly_where_it_was(pictures, tmp_path, monkeypatch, capfd, number):
    monkeypatch.chdir(tmp_path)
    before = signal.getsignal(number)
    words = tiny(pictures, "--trainer.max_steps", "7")
    whole = make_cli([*words, *callback_words()])
    expected = losses(tmp_path)
    for folder in ("ckpt", "losses"):
        Path(folder).rename(f"whole-{folder}")

    request = tmp_path / "again"
    monkeypatch.setenv("GIC_REQUEUE", str(request))
    assert run([*words, *callback_words(signal_at(3, number))]) == 75
    said = capfd.readouterr().err
    assert f"stopped by {signal.Signals(number).name} after step 3" in said
    assert f"--ckpt_path {tmp_path / 'ckpt'}" in said or "--ckpt_path ckpt" in said
    assert request.exists() == (number == USR1)
    assert signal.getsignal(number) is before
    assert len(losses(tmp_path)) == 3

    resumed = make_cli([*words, *callback_words(), "--ckpt_path", "auto"])
    assert losses(tmp_path) == expected
    for name, tensor in weights(whole).items():
        assert torch.equal(tensor, weights(resumed)[name]), name


def test_gathered_gradients_are_not_lost(pictures, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    # The signal comes in the first of two batches of a step: the step is finished first.
    words = tiny(pictures, "--trainer.max_steps", "3", "--trainer.accumulate_grad_batches", "2")
    cli = make_cli([*words, *callback_words()], run=False)

    def training_step(batch: Any, batch_idx: int, step: Any = cli.model.training_step) -> Any:
        if batch_idx == 2:
            os.kill(os.getpid(), TERM)
        return step(batch, batch_idx)

    monkeypatch.setattr(cli.model, "training_step", training_step)
    with pytest.raises(PreemptedError, match="after step 2"):
        cli.trainer.fit(cli.model, cli.datamodule)
    assert (tmp_path / "ckpt" / "step-000002.ckpt").exists()
    assert len(losses(tmp_path)) == 4


def test_a_signal_in_the_last_step_lets_the_run_end(pictures, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert run([*tiny(pictures, "--trainer.max_steps", "2"), *callback_words(signal_at(2, TERM))]) == 0
    assert (tmp_path / "ckpt" / "step-000002.ckpt").exists()


def test_a_signal_before_the_first_step_is_not_lost(pictures, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    words = tiny(pictures, "--trainer.max_steps", "3", "--trainer.num_sanity_val_steps", "1", *callback_words())
    words[words.index("--trainer.limit_val_batches") + 1] = "1"
    cli = make_cli(words, run=False)

    def validation_step(batch: Any, batch_idx: int, step: Any = cli.model.validation_step) -> None:
        os.kill(os.getpid(), USR1)
        step(batch, batch_idx)

    monkeypatch.setattr(cli.model, "validation_step", validation_step)
    with pytest.raises(PreemptedError, match="stopped by SIGUSR1 after step 1"):
        cli.trainer.fit(cli.model, cli.datamodule)


def test_what_preemption_needs_is_named(pictures, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=r"gic\.training\.checkpoint\.Checkpoint"):
        make_cli(tiny(pictures, "--trainer.callbacks", "[{class_path: gic.training.preemption.Preemption}]"))
    with pytest.raises(ConfigError, match="every_seconds"):
        Preemption(every_seconds=-1)


class Slow(IterableDataset[int]):
    """Ten numbers, a tenth of a second each."""

    def __iter__(self):
        for number in range(10):
            time.sleep(0.1)
            yield number


@pytest.mark.filterwarnings("ignore:This DataLoader will create")
@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_workers_outlast_the_signals_to_a_run_and_end_by_themselves(method):
    others = set(torch.multiprocessing.active_children())
    loader = iter(Workers(Slow(), num_workers=1, multiprocessing_context=method))
    assert next(loader) == 0
    (worker,) = set(torch.multiprocessing.active_children()) - others
    for number in (USR1, TERM):
        os.kill(worker.pid, number)
    assert list(loader) == list(range(1, 10))
    worker.join(120)
    assert not worker.is_alive()


@pytest.mark.slow
@pytest.mark.parametrize(("every", "seconds"), [(1, 0), (20, 5)])
def test_two_ranks_stop_at_the_same_step_when_one_has_a_signal(pictures, tmp_path, every, seconds):
    options = callback_words(signal_at(5, USR1, rank=1), every=every)
    options[1] = options[1].replace("Preemption}", f"Preemption, init_args: {{every_seconds: {seconds}}}}}")
    words = tiny(pictures, *DDP, "--trainer.max_steps", "400", *options)
    assert finish(start(words, tmp_path, GIC_REQUEUE=str(tmp_path / "again"))) == 75, (tmp_path / "out").read_text()
    assert (tmp_path / "again").exists()
    ends = {losses(tmp_path, rank)[-1][0] for rank in (0, 1)}
    saved = torch.load(tmp_path / "ckpt" / "last.ckpt", weights_only=True)
    assert ends == {saved["global_step"]}
    assert 5 <= saved["global_step"] < 400
    if seconds == 0:
        assert saved["global_step"] == 5
