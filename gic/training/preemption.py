"""Stopping a run between two batches when its scheduler or its user requests it, so that it can be resumed later.

A signal may arrive at any time, on some ranks and not on others, and in the worker processes of the data too. The
handler only notes it, since nothing else is safe there. At the end of a batch the ranks agree on what was noted, save
and exit. A second request ends the process at once, even where it hangs.
"""

from __future__ import annotations

import os
import signal
import socket
import threading
import time
from pathlib import Path
from types import FrameType
from typing import Any

import lightning as L
import torch
from lightning.fabric.plugins.environments import SLURMEnvironment
from lightning.pytorch.callbacks import Checkpoint as CheckpointCallback

from gic.errors import ConfigError, GicError
from gic.training.checkpoint import Checkpoint

REQUEUE_VARIABLE = "GIC_REQUEUE"
"""Environment variable with the file that is created when a run was stopped by SIGUSR1 and is to be started again."""

_SIGNALS = (signal.SIGUSR1, signal.SIGINT, signal.SIGTERM)  # if several arrive, the later in this list counts
_ENDING = {signal.SIGINT: "Ctrl+C", signal.SIGTERM: "SIGTERM"}  # these end the process when they come again
_AGAIN_SECONDS = 2.0  # SLURM's srun passes on a signal that the process has had already


class PreemptedError(GicError):
    """The run was stopped by a signal and saved; the text says how to resume."""

    exit_code = 75  # EX_TEMPFAIL of sysexits.h: try again later


class InterruptedRunError(PreemptedError):
    """The run was stopped by Ctrl+C and saved."""

    exit_code = 130  # as shells have it


class Preemption(CheckpointCallback):
    """Saves and stops the run at the end of a batch after SIGUSR1, SIGTERM or Ctrl+C, on all ranks at the same step.

    SIGUSR1 means that the time limit of the scheduler is near, SIGTERM that the run is ended by hand. In both cases the
    command ends with exit code 75, after Ctrl+C with 130. After SIGUSR1 it also creates the file that the environment
    variable ``GIC_REQUEUE`` names, if it is set, so that the job script starts the run again; see ``slurm/fit.sbatch``.

    SIGTERM or Ctrl+C a second time, two seconds or more after the first, ends the process at once without saving,
    wherever it is: also inside a call of a library that never returns.

    Several ranks compare their noted signals every few seconds, by one all-reduce of two numbers, which also decides
    after how many steps to compare again, at most 100. A validation is not interrupted: send the signal earlier than a
    validation takes.

    Args:
        every_seconds: About how long several ranks train between two comparisons; 0 compares after every step.

    Raises:
        ConfigError: If ``every_seconds`` is negative, or no ``Checkpoint`` callback is there to save.
    """

    # Lightning calls checkpoint callbacks last: after the update of the running average of the weights.

    def __init__(self, every_seconds: float = 5.0) -> None:
        if every_seconds < 0:
            raise ConfigError(f"every_seconds must not be negative, but is {every_seconds}")
        self.every_seconds = every_seconds
        self._noted = 0  # place of the signal in _SIGNALS, from 1
        self._step = -1  # the last one seen
        self._compared: tuple[int, float] = (0, 0.0)  # step and time of the last comparison
        self._next = 0  # step of the next comparison

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Check that there is a ``Checkpoint`` callback, and disable Lightning's own handler of SLURM's signals."""
        if stage != "fit":
            return
        self._saver(trainer)
        self._noted = 0
        environment = trainer._accelerator_connector.cluster_environment  # strategies of one device have none
        if isinstance(environment, SLURMEnvironment):
            environment.auto_requeue = False  # it saves inside the handler, possibly during a collective operation

    def on_sanity_check_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Install the handlers: a validation before the first step may be long."""
        self._take_over()

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Install the handlers again after Lightning's; it restores the earlier ones when the run ends."""
        self._step, self._compared, self._next = trainer.global_step, (trainer.global_step, time.monotonic()), 0
        self._take_over()

    def _take_over(self) -> None:
        if threading.current_thread() is threading.main_thread():
            for each in _SIGNALS:
                signal.signal(each, self._note)
            _watch.begin()

    def _note(self, number: int, frame: FrameType | None) -> None:
        if not self._noted and number in _ENDING:
            # Not by print: the signal may have come in the middle of another.
            text = f"\n{_ENDING[signal.Signals(number)]}: saving after this step; once more ends at once\n"
            os.write(2, text.encode())
        self._noted = max(self._noted, 1 + _SIGNALS.index(signal.Signals(number)))

    def on_train_batch_end(self, trainer: L.Trainer, *arguments: Any) -> None:
        """Save and stop if any rank has had a signal.

        Raises:
            PreemptedError: On rank 0, after saving; the other ranks exit silently.
        """
        step = trainer.global_step
        if step == self._step:
            return  # gradients are still accumulating, and a checkpoint does not hold them
        self._step = step
        noted = self._noted if trainer.world_size == 1 else self._compare(trainer, step)
        if not noted or 0 < trainer.max_steps <= step:
            return
        saver = self._saver(trainer)
        saver.save(trainer)
        if not trainer.is_global_zero:
            raise SystemExit(0)
        number = _SIGNALS[noted - 1]
        name = _ENDING.get(number, number.name)
        stopped = InterruptedRunError if number == signal.SIGINT else PreemptedError
        if saver.newest is None or saver.problem:
            raise stopped(f"stopped by {name} after step {step}, which could not be saved: {saver.problem}")
        request = os.environ.get(REQUEUE_VARIABLE)
        if request and name == "SIGUSR1":
            Path(request).touch()
        raise stopped(
            f"stopped by {name} after step {step}; the same command with --ckpt_path {saver.newest.parent} goes on"
        )

    def _compare(self, trainer: L.Trainer, step: int) -> int:
        """Signal that any rank has noted, at the steps that the ranks have agreed on; 0 at the others."""
        if step < self._next:
            return 0
        now = time.monotonic()
        since, then = self._compared
        speed = (step - since) / max(now - then, 1e-3)  # steps per second
        wait = min(max(1, int(self.every_seconds * speed)), 100)
        both = torch.tensor([self._noted, -wait], device=trainer.strategy.root_device)
        torch.distributed.all_reduce(both, op=torch.distributed.ReduceOp.MAX)
        noted, least = both.tolist()
        self._compared, self._next = (step, now), step - least
        return int(noted)

    @staticmethod
    def _saver(trainer: L.Trainer) -> Checkpoint:
        for callback in trainer.checkpoint_callbacks:
            if isinstance(callback, Checkpoint):
                return callback
        raise ConfigError(
            "gic.training.preemption.Preemption saves with gic.training.checkpoint.Checkpoint: add that callback too"
        )


class _SecondSignal:
    """Ends the process when a signal of :data:`_ENDING` comes a second time.

    A Python handler does not run while the main thread waits inside a library, for example for another rank. But Python
    writes the number of each signal to a file descriptor at once, and here a thread reads it.
    """

    def __init__(self) -> None:
        self._ends: tuple[socket.socket, socket.socket] | None = None
        self._first = 0.0  # time of the first signal of this run

    def begin(self) -> None:
        """Watch the signals of a new run; call it in the main thread."""
        self._first = 0.0
        if self._ends is None:
            self._ends = socket.socketpair()
            self._ends[1].setblocking(False)
            threading.Thread(target=self._read, args=(self._ends[0],), daemon=True).start()
        signal.set_wakeup_fd(self._ends[1].fileno(), warn_on_full_buffer=False)

    def _read(self, wire: socket.socket) -> None:
        while data := wire.recv(64):
            for number in _ENDING.keys() & set(data):
                if getattr(signal.getsignal(number), "__func__", None) is not Preemption._note:
                    continue  # the run is over
                now = time.monotonic()
                self._first = self._first or now
                if now - self._first >= _AGAIN_SECONDS:
                    os.write(2, b"stopped at once: the steps since the last checkpoint are lost\n")
                    os._exit(128 + number)


_watch = _SecondSignal()
