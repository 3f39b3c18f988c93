"""Finding the first loss that is not finite without waiting for the GPU."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    pass


class LossWatch:
    """Remembers the first batch whose loss was not finite, on the device: noting a step does not synchronise."""

    def __init__(self) -> None:
        self._steps: list[tuple[list[str], tuple[int, int]]] = []  # since the last look: keys, step and batch
        self._names: list[str] = []
        self._seen: Tensor | None = None  # whether one was found
        self._place: Tensor | None = None  # which of the steps
        self._images: Tensor | None = None
        self._parts: Tensor | None = None
        self._found: tuple[Tensor, dict[str, float], list[str], tuple[int, int]] | None = None

    @torch.no_grad()
    def note(self, loss: Tensor, parts: dict[str, Tensor], batch: dict[str, Any], where: tuple[int, int]) -> None:
        """Note a step.

        Args:
            loss: Its loss, a single number.
            parts: Parts of the loss, single numbers.
            batch: With ``image`` (B, 3, h, w) and, if known, ``key``.
            where: Number of the step and of the batch.
        """
        images, numbers = batch["image"], torch.stack([part.float() for part in parts.values()])
        if self._images is not None and self._images.shape != images.shape:
            self._found = self.look()  # batches of another size are rare, so synchronising is cheap
        place, bad = len(self._steps), ~torch.isfinite(loss)
        self._steps.append((list(batch.get("key", [])), where))
        self._names = list(parts)
        if self._seen is None:
            self._seen, self._place = bad, torch.full_like(bad, place, dtype=torch.long)
            self._images, self._parts = images, numbers
            return
        assert self._place is not None and self._images is not None and self._parts is not None
        first = bad & ~self._seen
        self._place = torch.where(first, place, self._place)
        self._images = torch.where(first, images, self._images)
        self._parts = torch.where(first, numbers, self._parts)
        self._seen = self._seen | bad

    def look(self) -> tuple[Tensor, dict[str, float], list[str], tuple[int, int]] | None:
        """Images, parts, keys, step and batch of the first loss since the last look that was not finite, or None."""
        found, self._found = self._found, None
        if found is None and self._seen is not None and bool(self._seen):
            assert self._place is not None and self._images is not None and self._parts is not None
            keys, where = self._steps[int(self._place)]
            found = self._images, dict(zip(self._names, self._parts.tolist(), strict=True)), keys, where
        self._steps, self._seen, self._images = [], None, None
        return found
