"""Finding the level at which a file has a given size (DESIGN 5).

z does not depend on q, so that one analysis serves all levels. The search is a bisection over log q with sizes
estimated from the tables; the real coder decides at the end.
"""

from __future__ import annotations

import math
from typing import Protocol

from gic.errors import ConfigError


class Rated(Protocol):
    """A picture that can be coded at any level, by the level's code; sizes in bytes and pixels."""

    width: int
    height: int

    @property
    def finest(self) -> int:
        """Code of the finest level."""

    @property
    def coarsest(self) -> int:
        """Code of the coarsest level."""

    def at(self, code: int) -> bytes:
        """The file at a level."""

    def estimate(self, code: int) -> int:
        """Estimated size of the file, in bytes."""


def one_target(**targets: float | None) -> str | None:
    """Name of the one target that is given, None if there is none.

    Raises:
        ConfigError: If there are several.
    """
    named = [name for name, value in targets.items() if value is not None]
    if len(named) > 1:
        raise ConfigError(f"name only one of q, bpp, max_bytes and quality, not {' and '.join(named)}")
    return named[0] if named else None


def _search(picture: Rated, target_bytes: float) -> int:
    """Finest level whose estimate does not exceed the target, by bisection over log q."""
    fine, coarse = picture.finest, picture.coarsest
    while fine < coarse:
        middle = (fine + coarse) // 2
        if picture.estimate(middle) > target_bytes:
            fine = middle + 1
        else:
            coarse = middle
    return coarse


def nearest(picture: Rated, target_bytes: float) -> bytes:
    """The file whose size is nearest to the target: at an end of the model's range for a target beyond it.

    Raises:
        ConfigError: If the target is not positive.
    """
    if not (math.isfinite(target_bytes) and target_bytes > 0):
        raise ConfigError("bpp must be a positive number")
    found = _search(picture, target_bytes)
    # The estimate crosses the target between this level and the one before.
    files = [picture.at(code) for code in (found, found - 1) if code >= picture.finest]
    return min(files, key=lambda data: abs(len(data) - target_bytes))


def shortfall(picture: Rated, data: bytes, code: int, target_bytes: float) -> str:
    """Why a file at the level ``code`` is more than 2 % from its target; empty if it is not, or the range goes on."""
    ends = {picture.coarsest: "coarsest", picture.finest: "finest"}
    if code not in ends or abs(len(data) - target_bytes) <= 0.02 * target_bytes:
        return ""
    pixels = picture.width * picture.height
    return (
        f"{target_bytes * 8 / pixels:.4g} bpp cannot be reached: at the {ends[code]} level of this model the picture "
        f"takes {len(data)} bytes, {len(data) * 8 / pixels:.4f} bpp"
    )


def within(picture: Rated, max_bytes: int) -> bytes:
    """The finest file of at most ``max_bytes``.

    Raises:
        ConfigError: If even the coarsest is larger.
    """
    code = _search(picture, max_bytes)
    data = picture.at(code)
    while len(data) > max_bytes and code < picture.coarsest:
        code += 1
        data = picture.at(code)
    if len(data) > max_bytes:
        raise ConfigError(
            f"the image does not fit in {max_bytes} bytes: at the coarsest level of this model it takes {len(data)}"
        )
    return data
