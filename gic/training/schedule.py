"""The learning rate over a run, by steps or by the clock."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from gic.errors import ConfigError

if TYPE_CHECKING:
    pass


class WarmupCosine:
    """Learning-rate schedule: linear warm-up, then a half cosine down to a floor over the whole run.

    With a time limit (``trainer.max_time``) the cosine follows the used share of the time; the warm-up counts steps in
    both cases.

    Args:
        warmup_steps: Optimiser steps of the warm-up.
        final: Learning rate at the end, relative to the optimiser's; 1 is a constant rate.
        total_steps: Steps at which the floor is reached; the length of the run if left out.
    """

    def __init__(self, warmup_steps: int = 100, final: float = 0.05, total_steps: int | None = None) -> None:
        if warmup_steps < 0 or not 0 <= final <= 1:
            raise ConfigError("warmup_steps must not be negative and final must lie in [0, 1]")
        self.warmup_steps = warmup_steps
        self.final = final
        self.total_steps = total_steps

    def factor(self, step: int, run_steps: int, time_used: float = 0.0) -> float:
        """Learning rate at an optimiser step, relative to the optimiser's, in (0, 1].

        Args:
            step: Optimiser steps done.
            run_steps: Steps of the whole run.
            time_used: Used share of the time limit, in [0, 1]. The run ends by steps or by time, whichever comes
                first, and so does the cosine.

        >>> [round(WarmupCosine(2, 0.0).factor(step, 6), 3) for step in range(7)]
        [0.5, 1.0, 1.0, 0.854, 0.5, 0.146, 0.0]
        >>> [round(WarmupCosine(2, 0.0).factor(step, 10**9, step / 6), 3) for step in range(7)]
        [0.5, 0.933, 0.75, 0.5, 0.25, 0.067, 0.0]
        """
        warmth = min(1.0, (step + 1) / self.warmup_steps) if self.warmup_steps else 1.0
        total = max(self.total_steps or run_steps, self.warmup_steps + 1)
        progress = min(1.0, max(0, step - self.warmup_steps) / (total - self.warmup_steps))
        progress = max(progress, time_used)
        return warmth * (self.final + (1 - self.final) * (1 + math.cos(math.pi * progress)) / 2)
