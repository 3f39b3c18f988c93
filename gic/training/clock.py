"""Time limit of a run, including its validation and its last checkpoint."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Mapping
from datetime import timedelta
from typing import Any

import lightning as L
import torch
from lightning.pytorch.utilities import rank_zero_info

from gic.errors import ConfigError

JOB = "job"
"""As a duration: until the end of the SLURM job."""
JOB_END_VARIABLE = "SLURM_JOB_END_TIME"
_COMPARE_SECONDS = 2.0  # approximate time between two comparisons with the clock of rank 0
_COMPARE_STEPS = 50  # at most so many steps
_SLACK = 0.015  # share of the time kept as a margin ...
_SLACK_SECONDS = 1.5  # ... and for the end of the process


def seconds_of(duration: str | timedelta | Mapping[str, float]) -> float:
    """Length of a duration in seconds: ``DD:HH:MM:SS``, ``HH:MM:SS``, or what ``timedelta`` takes.

    Raises:
        ConfigError: If it is none of these, or not positive.

    Example:
        >>> seconds_of("00:00:10:00"), seconds_of("1:00:00"), seconds_of({"minutes": 2})
        (600.0, 3600.0, 120.0)
    """
    if isinstance(duration, str):
        match = re.fullmatch(r"(?:(\d+):)?(\d+):(\d\d):(\d\d)", duration.strip())
        if match is None:
            raise ConfigError(f"max_time is {duration!r} and must be DD:HH:MM:SS, for example 00:00:10:00, or {JOB!r}")
        days, hours, minutes, seconds = (int(part or 0) for part in match.groups())
        duration = timedelta(days=days, hours=hours, minutes=minutes, seconds=seconds)
    elif isinstance(duration, Mapping):
        try:
            duration = timedelta(**duration)
        except TypeError as error:
            raise ConfigError(f"max_time cannot be read: {error}") from error
    if duration.total_seconds() <= 0:
        raise ConfigError(f"max_time is {duration} and must be positive")
    return duration.total_seconds()


def seconds_to_job_end(now: float | None = None) -> float:
    """Seconds until the SLURM job around this process ends.

    Raises:
        ConfigError: If there is none, or this version of SLURM does not report when it ends.
    """
    end = os.environ.get(JOB_END_VARIABLE, "")
    if not end.isdecimal():
        raise ConfigError(f"max_time is {JOB!r}, but {JOB_END_VARIABLE} holds no end of a job: give DD:HH:MM:SS")
    return max(1.0, int(end) - (time.time() if now is None else now))


class TimeBudget(L.Callback):
    """Ends a run after the time of ``--trainer.max_time``.

    The budget is the time from the start of the command to its end. A validation before the first step shows how long
    the one at the end will take; the time left after it and the last checkpoint is for training. The learning rate
    follows the used share of that time (:class:`gic.training.schedule.WarmupCosine`), so that it has reached
    its floor when the time is over. Several ranks follow the clock of rank 0, which they compare every few seconds,
    and count steps in between: all stop at the same step, with the same learning rates. A resumed run has the time
    that was left when its checkpoint was written.

    Args:
        duration: ``DD:HH:MM:SS``, what ``timedelta`` takes, or ``job``: until the end of the SLURM job.
        started: When the command was started, as ``time.monotonic()`` has it; now if left out.

    Attributes:
        total: The budget, in seconds.

    Raises:
        ConfigError: If the duration is not valid.
    """

    def __init__(self, duration: str | timedelta | Mapping[str, float], started: float | None = None) -> None:
        self._job = duration == JOB
        self.started = time.monotonic() if started is None else started
        self.total = time.monotonic() - self.started + seconds_to_job_end() if self._job else seconds_of(duration)
        self._used_before = 0.0  # seconds, by the runs that this one resumes
        self._pace = 0.0  # seconds a step
        self._validation = 0.0  # seconds of the longest validation
        self._validation_began = 0.0
        self._saving = 0.0  # seconds of the longest checkpoint
        self._step, self._step_ended = -1, 0.0
        self._agreed: tuple[float, float, float, int] = (0.0, 0.0, 0.0, 0)  # used, pace, reserve, at which step
        self._next = 0  # step of the next comparison

    # --- what the clock says ------------------------------------------------------------------------------------------

    def _used(self) -> float:
        """Seconds that this run has used, including the runs that it resumes, by this process's clock."""
        return self._used_before + time.monotonic() - self.started

    def _reserve(self) -> float:
        """Seconds to keep for the validation and the checkpoint at the end."""
        return 1.05 * self._validation + 1.5 * self._saving + _SLACK * self.total + _SLACK_SECONDS

    def _now(self, step: int) -> tuple[float, float, float]:
        """Seconds used at a step, seconds per step and seconds kept, equal on all ranks."""
        used, pace, reserve, at = self._agreed
        return used + (step - at) * pace, pace, reserve

    def used(self, step: int) -> float:
        """Seconds used at an optimiser step, equal on all ranks."""
        return self._now(step)[0]

    def progress(self, step: int) -> float:
        """Share of the time for training that is used at an optimiser step, in [0, 1]; 1 for the last step."""
        used, pace, reserve = self._now(step)
        # The last step runs when less than a step is left, and its rate was set one step before.
        return min(1.0, used / max(self.total - reserve - 2 * pace, 1e-3))

    def _is_over(self, step: int) -> bool:
        used, pace, reserve = self._now(step)
        return used + pace > self.total - reserve

    def _compare(self, trainer: L.Trainer, step: int) -> None:
        """Adopt the clock of rank 0."""
        numbers = [self._used(), self._pace, self._reserve()]
        if trainer.world_size > 1:
            shared = torch.tensor(numbers, dtype=torch.float64, device=trainer.strategy.root_device)
            torch.distributed.broadcast(shared, 0)
            numbers = shared.tolist()
        used, pace, reserve = numbers
        self._agreed = (used, pace, reserve, step)
        if trainer.world_size > 1:
            seconds = min(_COMPARE_SECONDS, (self.total - reserve - used) / 4)
            self._next = step + int(min(max(seconds / max(pace, 1e-6), 1), _COMPARE_STEPS))

    # --- hooks --------------------------------------------------------------------------------------------------------

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Print how the time will be used."""
        self._step, self._step_ended = trainer.global_step, time.monotonic()
        self._compare(trainer, trainer.global_step)
        used, _, reserve, _ = self._agreed
        left = self.total - reserve - used
        rank_zero_info(
            f"time: {self.total:.0f} s, of which {used:.0f} are used and {reserve:.0f} kept for the end: "
            f"{max(0.0, left):.0f} s of training"
        )
        if left <= 0 and self._used_before == 0:
            self._refuse()
        if left <= 0:
            rank_zero_info(
                f"time: max_time counts the whole run, which has used its {self.total:.0f} s: it ends with one more "
                "step; a longer max_time goes on with it"
            )
        elif left < 0.4 * (self.total - used):
            rank_zero_info(
                f"time: little of it is left for training: validation takes {self._validation:.0f} s, twice; "
                "--data.val_limit and --model.levels shorten it"
            )

    def _refuse(self) -> None:
        raise ConfigError(
            f"max_time is {self.total:.0f} s, and the validation before the first step, which the end needs again, "
            "leaves no time for training: --data.val_limit and --model.levels shorten it"
        )

    def on_validation_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *arguments: Any) -> None:
        """End a run early if its first validation takes most of its time."""
        if trainer.sanity_checking and trainer.world_size == 1 and self._used() > 0.6 * self.total:
            self._refuse()

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *arguments: Any) -> None:
        """Look at the clock after each optimiser step; end the run when the time is over."""
        step, now = trainer.global_step, time.monotonic()
        if step == self._step:
            return  # gradients are still accumulating
        seconds = now - self._step_ended
        self._pace = seconds if self._pace == 0 else self._pace + 0.1 * (seconds - self._pace)
        if step - self._step > 1 or self._pace > 4 * seconds:  # the first steps are slow: caches, compilers
            self._pace = seconds
        self._step, self._step_ended = step, now
        self._look(trainer, step)

    def _look(self, trainer: L.Trainer, step: int) -> None:
        if trainer.world_size == 1 or step >= self._next:
            self._compare(trainer, step)
        if self._is_over(step):
            trainer.should_stop = True

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Begin to measure."""
        self._validation_began = time.monotonic()

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Note how long it took; if no time is left for another, it is the last."""
        self._validation = max(self._validation, time.monotonic() - self._validation_began)
        if not trainer.sanity_checking and trainer.state.fn == "fit" and not trainer.should_stop:
            self._next = trainer.global_step
            self._look(trainer, trainer.global_step)
        self._step_ended = time.monotonic()

    def saved(self, seconds: float) -> None:
        """Note how long a checkpoint took, which does not count as part of a step."""
        self._saving = max(self._saving, seconds)
        self._step_ended += seconds

    def state_dict(self) -> dict[str, Any]:
        """Seconds used so far and kept for the end, since a resumed run does not validate first."""
        return {"used": self._used(), "validation": self._validation, "saving": self._saving}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue with the time that is left; with ``job``, with the time of the new job."""
        self._used_before = float(state_dict["used"])
        self._validation, self._saving = float(state_dict["validation"]), float(state_dict["saving"])
        if self._job:
            self.total += self._used_before

    def on_fit_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Say how long it took."""
        rank_zero_info(f"time: {self._used():.0f} of {self.total:.0f} s used, {trainer.global_step} steps")


def time_budget(trainer: L.Trainer) -> TimeBudget | None:
    """The time budget of a trainer's run, if it has one."""
    return next((callback for callback in trainer.callbacks if isinstance(callback, TimeBudget)), None)  # type: ignore[attr-defined]
