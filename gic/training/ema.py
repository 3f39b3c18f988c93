"""Exponential moving average of the weights, which is validated and shipped."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import lightning as L
import torch
from lightning.pytorch.callbacks import WeightAveraging

from gic.errors import ConfigError

if TYPE_CHECKING:
    pass


class EMA(WeightAveraging):
    """Exponential moving average of the weights: validated, and saved as the checkpoint's ``state_dict``.

    After n steps the share of the old average that is kept is ``min(decay, (1 + n) / (10 + n))``, so that the first,
    random weights do not dominate the average of a short run. The average is on the model's device and its count on the
    host, so that an update is a few kernels without synchronisation.

    Args:
        decay: Share kept in the long run, in [0, 1); the average's memory is about ``1 / (1 - decay)`` steps.

    Raises:
        ConfigError: If ``decay`` lies outside its range.
    """

    def __init__(self, decay: float = 0.999) -> None:
        if not 0 <= decay < 1:
            raise ConfigError(f"the decay of the average must lie in [0, 1), not {decay}")
        self.decay = decay
        super().__init__()

    def on_load_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        """Take up the average when training goes on; otherwise it is what the checkpoint's ``state_dict`` holds."""
        if trainer.state.fn == "fit":
            super().on_load_checkpoint(trainer, pl_module, checkpoint)

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Copy the model's weights to its device: the first copy was made on the CPU, before ``init_from`` was read."""
        average = self._average_model
        assert average is not None
        count = average.n_averaged.cpu()
        average.to(pl_module.device)
        average.n_averaged = count
        if count == 0:
            average.module.load_state_dict(pl_module.state_dict())

    @torch.no_grad()
    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *arguments: Any) -> None:
        """Move the average after an optimiser step."""
        if trainer.global_step <= self._latest_update_step:
            return
        self._latest_update_step = trainer.global_step
        average = self._average_model
        assert average is not None
        pairs = zip(average.module.parameters(), pl_module.parameters(), strict=True)
        old, new = zip(*((a, p) for a, p in pairs if p.requires_grad), strict=True)  # the others stay unchanged
        count = int(average.n_averaged)
        kept = min(self.decay, (1 + count) / (10 + count)) if count else 0.0
        torch._foreach_lerp_(list(old), list(new), 1 - kept)
        average.n_averaged += 1
