"""The progress bar on a terminal, lines in a log file."""

from __future__ import annotations

import math
import sys
from typing import TYPE_CHECKING, Any

import lightning as L
from lightning.pytorch.callbacks import RichProgressBar

from gic.training.clock import time_budget

if TYPE_CHECKING:
    pass


class ProgressBar(RichProgressBar):
    """Lightning's rich progress bar without the version number; without a terminal, lines for the log.

    When the output goes to a file, a line with step, speed and loss is written every ``log_every_n_steps``.
    """

    _last_line = 0
    _beside: dict[str, Any] | None = None  # metrics as they were last shown

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
        print(", ".join([f"step {step}{total}{share}", *([speed] if speed else []), *values]), flush=True)

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
