"""The version of this package, which ``pyproject.toml`` reads here, and its name for pip."""

__version__ = "0.1.0"

DISTRIBUTION = "gic-codec"
"""What pip calls the package; ``gic`` is another project there."""
