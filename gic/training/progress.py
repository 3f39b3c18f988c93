"""The progress bar on a terminal, lines in a log file."""

from __future__ import annotations

import math
import sys
import time
from typing import TYPE_CHECKING, Any

import lightning as L
from lightning.pytorch.callbacks import RichProgressBar

from gic.training.clock import time_budget

if TYPE_CHECKING:
    pass


class ProgressBar(RichProgressBar):
    """One progress bar over the steps (or the time) of the run; without a terminal, lines for the log.

    When the output goes to a file, a line with step, speed, remaining time and loss is written every
    ``log_every_n_steps``.
    """

    _last_line = 0
    _began: tuple[int, float] = (0, 0.0)  # step and time
    _beside: dict[str, Any] | None = None  # metrics as they were last shown

    @property
    def total_train_batches(self) -> int | float:
        """Length of the bar: steps of the run, or percent of its time; infinite for a run without an end."""
        if time_budget(self.trainer):
            return 100
        steps = self.trainer.estimated_stepping_batches
        return int(steps) if math.isfinite(steps) else steps

    def _get_train_description(self, current_epoch: int) -> str:
        unit = "% of the time" if time_budget(self.trainer) else "steps"
        return f"Training, {unit}"

    def _update(self, progress_bar_id: Any, current: int, *arguments: Any, **settings: Any) -> None:
        """Move a bar: that of the training to the step, whatever the batch."""
        if progress_bar_id is not None and progress_bar_id == self.train_progress_bar_id:
            budget, step = time_budget(self.trainer), self.trainer.global_step
            current = int(100 * budget.progress(step)) if budget else step
        super()._update(progress_bar_id, current, *arguments, **settings)

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Begin, and note when."""
        super().on_train_start(trainer, pl_module)
        self._began = trainer.global_step, time.monotonic()

    def _left(self, trainer: L.Trainer) -> str:
        """Remaining time of the run, at its mean speed so far and validation included; empty if it has no end."""
        step, (first, began) = trainer.global_step, self._began
        if budget := time_budget(trainer):
            seconds = budget.total - budget.used(step)
        elif step <= first or not math.isfinite(trainer.estimated_stepping_batches):
            return ""
        else:
            seconds = (time.monotonic() - began) * (trainer.estimated_stepping_batches - step) / (step - first)
        minutes = max(0, round(seconds / 60))
        return f"{minutes // 60} h {minutes % 60:02d} min left" if minutes >= 60 else f"{minutes} min left"

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *args: Any) -> None:
        """Move the bar, or print a line."""
        super().on_train_batch_end(trainer, pl_module, *args)
        step = trainer.global_step
        quiet = sys.stdout.isatty() or not trainer.is_global_zero
        if quiet or not self._is_due(trainer) or step == self._last_line:
            return
        self._last_line = step
        metrics = trainer.logged_metrics  # waits for the GPU
        parts = {name.removeprefix("train/"): float(metrics[name]) for name in metrics if "train/" in name}
        # A perceptual term without samples in the batch is NaN.
        values = [f"{name} {value:.4g}" for name, value in parts.items() if name == "loss" or not math.isnan(value)]
        total = f"/{trainer.max_steps}" if trainer.max_steps > 0 else ""
        budget = time_budget(trainer)
        share = f" ({budget.progress(step):.0%} of the time)" if budget else ""
        speed = f"{float(metrics['images_per_second']):.3g} images/s" if "images_per_second" in metrics else ""
        words = [f"step {step}{total}{share}", self._left(trainer), speed, *values]
        print(", ".join(word for word in words if word), flush=True)

    @property
    def sanity_check_description(self) -> str:
        """Label of the bar of a validation before the first step."""
        return "Validation before the first step"

    @staticmethod
    def _is_due(trainer: L.Trainer) -> bool:
        every: int = trainer.log_every_n_steps  # type: ignore[attr-defined]
        return trainer.global_step % max(1, every) == 0

    def get_metrics(self, trainer: L.Trainer, pl_module: L.LightningModule) -> dict[str, Any]:
        """Metrics beside the bar, as of the last logging interval, since reading them waits for the GPU."""
        if self._beside is None or not trainer.training or self._is_due(trainer):
            logged = trainer.logged_metrics if trainer.training else {}
            self._beside = dict(super().get_metrics(trainer, pl_module))
            self._beside.pop("v_num", None)
            for name in ("train/loss", "images_per_second"):
                if name in logged:
                    self._beside[name] = float(logged[name])
        return dict(self._beside)
