"""gic: a generative image codec with one continuous rate knob, and the framework that trains it.

Example:
    >>> import gic
    >>> codec = gic.load()  # doctest: +SKIP
    >>> data = codec.compress("photo.png", bpp=0.25)  # doctest: +SKIP
    >>> picture = codec.decompress(data, realism=0.8)  # doctest: +SKIP
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from gic.version import __version__

__all__ = ["ConfigError", "FormatError", "GicError", "ImageCodec", "ImageError", "__version__", "load"]

if TYPE_CHECKING:
    from gic.codec.image_codec import ImageCodec
    from gic.codec.weights import load
    from gic.errors import ConfigError, FormatError, GicError, ImageError

_HOMES = {
    "ConfigError": "gic.errors",
    "FormatError": "gic.errors",
    "GicError": "gic.errors",
    "ImageError": "gic.errors",
    "ImageCodec": "gic.codec.image_codec",
    "load": "gic.codec.weights",
}


def __getattr__(name: str) -> Any:
    """Import the public names at first use, so that ``gic --help`` does not pay for torch."""
    if name not in _HOMES:
        raise AttributeError(f"module 'gic' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
