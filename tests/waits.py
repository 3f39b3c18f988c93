"""What finds the operators that make a GPU's host wait, in a block of code and in a whole run.

Where there is no GPU the operators tell: each that hands values of a tensor to Python, or whose result's size depends
on values, has to wait for a GPU.
"""

from __future__ import annotations

import traceback
from typing import Any

import lightning as L
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from gic.method import posterior
from gic.training.cli import make_cli
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
