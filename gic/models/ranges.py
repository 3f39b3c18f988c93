"""Ranges of the prior of y and of a codec's settings, in which networks and files agree (DESIGN 2, 5)."""

from __future__ import annotations

import math
from typing import Literal

from gic.errors import ConfigError

SIGMA_MIN, SIGMA_MAX = 0.05, 256.0
"""Range of the prior's standard deviation, in units of y ..."""
LAPPED_SIGMA_MAX = 1024.0
"""... and its end with the lapped transform, whose coarsest coefficients are wide."""
SKIP_BELOW = 0.11
"""Under ``dither``, elements with sigma < SKIP_BELOW * q are not coded: y_hat = mu (DESIGN 2). It is also the
smallest sigma / q that CompressAI's Gaussian conditional distinguishes."""
LIKELIHOOD_MIN = 1e-9
"""Smallest likelihood of a symbol."""
SCALE_MIN = 0.11
"""Smallest sigma / q in the likelihoods of training ..."""
SCALE_MIN_LAPLACE = SCALE_MIN / 2
"""... and with the Laplace distribution, whose tails are longer: at 0.11 every zero would cost 0.002 bits."""
D_SIGMA_MAX = 3.0
"""The reverse network changes log sigma by less than this: sigma' is within a factor of 20 of sigma (DESIGN 4)."""

Prior = Literal["gaussian", "laplace"]
"""Distribution of y about mu, with the standard deviation sigma."""


def check_prior(prior: Prior) -> Prior:
    """The distribution of y about mu, checked.

    Raises:
        ConfigError: If there is no such distribution.
    """
    if prior not in ("gaussian", "laplace"):
        raise ConfigError(f"prior must be gaussian or laplace, not {prior!r}")
    return prior


def check_settings(q_min: float, q_max: float, quantizer: str, steps: int, rho: float) -> None:
    """Check the settings of a codec.

    Raises:
        ConfigError: If one of them lies outside its range.
    """
    if not 0 < q_min < q_max < math.inf:
        raise ConfigError(f"q_min and q_max must satisfy 0 < q_min < q_max < inf, not {q_min} and {q_max}")
    if quantizer not in ("round", "dither"):
        raise ConfigError(f"quantizer must be round or dither, not {quantizer!r}")
    if steps < 1 or not 0 < rho < math.inf:
        raise ConfigError(f"steps must be at least 1 and rho positive, not {steps} and {rho}")
