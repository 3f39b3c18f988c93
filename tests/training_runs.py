"""Callbacks and command lines for runs that are interrupted on purpose, in processes of their own."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import lightning as L
import torch
from places import CONFIGS, REPOSITORY, TESTS

PATIENCE = 600  # seconds after which something is taken to hang; many times what it takes on a busy machine


class Losses(L.Callback):
    """Appends the global step and the exact loss of every batch to a file per rank, before the step is over."""

    def __init__(self, folder: str = "losses") -> None:
        self.folder = Path(folder)

    def on_train_batch_end(self, trainer: L.Trainer, module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.folder.mkdir(exist_ok=True)
        with (self.folder / f"rank{trainer.global_rank}").open("a") as file:
            file.write(f"{trainer.global_step} {outputs['loss'].item().hex()}\n")


class SignalAt(L.Callback):
    """Sends a signal to its own process in the middle of a step, on one rank."""

    def __init__(self, step: int, number: int, rank: int = 0) -> None:
        self.step, self.number, self.rank = step, number, rank

    def on_before_optimizer_step(self, trainer: L.Trainer, *_: Any) -> None:
        if trainer.global_step + 1 == self.step and trainer.global_rank == self.rank:
            os.kill(os.getpid(), self.number)


def losses(folder: Path, rank: int = 0) -> list[tuple[int, str]]:
    """What :class:`Losses` wrote: step and loss, in order."""
    rows = [line.split() for line in (folder / "losses" / f"rank{rank}").read_text().splitlines()]
    return [(int(step), loss) for step, loss in rows]


def callback_words(*extra: str, every: int = 2, keep: int = 20) -> list[str]:
    """Options for a tiny run that saves in ``ckpt``, keeps an average, can be stopped and writes its losses."""
    settings = f"{{dirpath: ckpt, every_n_steps: {every}, keep: {keep}}}"
    listed = [
        f"{{class_path: gic.training.checkpoint.Checkpoint, init_args: {settings}}}",
        "{class_path: gic.training.preemption.Preemption}",
        "{class_path: gic.training.ema.EMA, init_args: {decay: 0.5}}",
        "{class_path: training_runs.Losses}",
        *extra,
    ]
    return ["--trainer.callbacks", f"[{', '.join(listed)}]"]


def tiny(pictures: Path, *more: str, command: str = "fit") -> list[str]:
    """Command line of a tiny run on the CPU."""
    return [
        *[command, "--config", str(CONFIGS / "base.yaml"), "--config", str(TESTS / "tiny.yaml")],
        *["--data.train", str(pictures / "train-*.tar"), "--data.val", str(pictures / "val-000000.tar")],
        *["--trainer.limit_val_batches", "0", *more],
    ]


DDP = ("--trainer.devices", "2", "--trainer.strategy", "ddp")


def start(words: Sequence[str], folder: Path, **environment: str) -> subprocess.Popen[str]:
    """Start ``gic`` in a process of its own, with its output in the file ``out`` of the folder."""
    folder.mkdir(exist_ok=True)
    paths = os.pathsep.join([str(REPOSITORY), str(TESTS), os.environ.get("PYTHONPATH", "")])
    variables = {**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo", "PYTHONPATH": paths, **environment}
    with (folder / "out").open("a") as out:
        return subprocess.Popen(
            [sys.executable, "-m", "gic", *words], cwd=folder, env=variables, stdout=out, stderr=out, text=True
        )


def finish(process: subprocess.Popen[str]) -> int:
    """Wait for the end of a process, which must come; returns its exit code."""
    try:
        return process.wait(PATIENCE)
    except subprocess.TimeoutExpired:
        process.kill()
        raise AssertionError(f"the process hangs: {process.args}") from None


def wait_for(what: Callable[[], Any], process: subprocess.Popen[str] | None = None) -> Any:
    """Wait until something is true, as long as the process is alive; returns it."""
    end = time.monotonic() + PATIENCE
    while time.monotonic() < end:
        if found := what():
            return found
        assert process is None or process.poll() is None, "the process ended too early"
        time.sleep(0.1)
    raise AssertionError("waited in vain")


def children(process: int) -> list[int]:
    """Ids of the processes that a process has started."""
    text = Path(f"/proc/{process}/task/{process}/children").read_text()
    return [int(word) for word in text.split()]


KILL, TERM, USR1, INT = (int(x) for x in (signal.SIGKILL, signal.SIGTERM, signal.SIGUSR1, signal.SIGINT))


class HangsAt(L.Callback):
    """Waits for ever inside a library at a step, where no Python handler of a signal runs."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_train_batch_start(self, trainer: L.Trainer, *_: Any) -> None:
        if trainer.global_step + 1 == self.step:
            print("hangs now", flush=True)
            torch.futures.Future().wait()


class FailsAt(L.Callback):
    """Raises an error at a step: before it is made, or after its batch."""

    def __init__(self, step: int, validation: bool = False) -> None:
        self.step = step
        self.validation = validation

    def on_train_batch_start(self, trainer: L.Trainer, *_: Any) -> None:
        if not self.validation and trainer.global_step + 1 == self.step:
            raise ValueError("a reason of its own")

    def on_validation_batch_start(self, trainer: L.Trainer, *_: Any) -> None:
        if self.validation and trainer.global_step + 1 == self.step:
            raise ValueError("a reason of its own")


class StopsAt(L.Callback):
    """Asks for the end of the run, as EarlyStopping does, in one of the hooks."""

    def __init__(self, step: int, hook: str) -> None:
        setattr(self, hook, lambda trainer, *_: setattr(trainer, "should_stop", trainer.global_step >= step))
