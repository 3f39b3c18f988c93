"""Errors meant for the person at the terminal: what is wrong, where, and what to do.

Everything gic raises on purpose for wrong input derives from :class:`GicError`; the command line prints
such an error as one line and ends with exit code 2. Programming errors keep Python's own types.
"""

from __future__ import annotations

import importlib
from types import ModuleType


class GicError(Exception):
    """Base of all errors that gic raises for wrong input; its text is one complete sentence or two.

    Attributes:
        exit_code: What the command line ends with.
    """

    exit_code = 2


class ImageError(GicError, ValueError):
    """An image that cannot be read or cannot be represented; the text names it."""


class DataError(GicError, ValueError):
    """Shards or folders that are missing, empty or damaged; the text names them."""


class ConfigError(GicError, ValueError):
    """Settings that contradict each other or lie outside their range; the text names them."""


class FormatError(GicError, ValueError):
    """A ``.gic`` file that is damaged, of another version, or made with other weights."""


class MissingExtraError(GicError, ImportError):
    """A package of an optional extra is not installed; the text says which extra to install."""


def require(package: str, extra: str = "train") -> ModuleType:
    """Import an optional package, or say which extra provides it.

    Args:
        package: Name to import, for example ``"pyiqa"``.
        extra: The extra of gic that installs it.

    Returns:
        The imported module.

    Raises:
        MissingExtraError: If the package is not installed.
    """
    try:
        return importlib.import_module(package)
    except ModuleNotFoundError as error:
        name, own = error.name or package, package.split(".")[0]
        if name.split(".")[0] == own:
            raise MissingExtraError(
                f"the package {package!r} is needed here and is not installed: pip install 'gic[{extra}]'"
            ) from error
        raise MissingExtraError(
            f"the package {own!r} needs {name!r}, which is not installed: pip install 'gic[{extra}]'"
        ) from error
