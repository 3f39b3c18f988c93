"""Networks that are not gic's, for tests of what a weights file may name."""

from __future__ import annotations

from typing import Any

import torch

from gic.models.codec import Codec
from gic.models.reverse import ReverseUNet


class OwnCodec(Codec):
    """A codec of the user's, which once kept a constant among its weights."""

    def __init__(self, *, offset: float = 0.0, labels: Any = None, **settings: Any) -> None:
        super().__init__(**settings)
        self.offset = offset
        self.labels = labels

    def _load_from_state_dict(self, state: dict[str, Any], prefix: str, *arguments: Any) -> None:
        state.pop(f"{prefix}offset", None)
        super()._load_from_state_dict(state, prefix, *arguments)


class OwnReverse(ReverseUNet):
    """A reverse network of the user's."""


def make_codec() -> Codec:
    """No class."""
    raise AssertionError("called")


NUMBER = torch.ones(1)
