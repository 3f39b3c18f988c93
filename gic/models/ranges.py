"""Ranges of the prior of y, in which networks and files agree (DESIGN 2, 5)."""

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
"""Smallest sigma / q in the likelihoods of training."""
D_SIGMA_MAX = 3.0
"""The reverse network changes log sigma by less than this: sigma' is within a factor of 20 of sigma (DESIGN 4)."""
