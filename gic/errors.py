"""Errors meant for the person at the terminal: what is wrong, where, and what to do.

Everything gic raises on purpose for wrong input derives from :class:`GicError`; the command line prints
such an error as one line and ends with exit code 2. Programming errors keep Python's own types.
"""

from __future__ import annotations

import errno
import importlib
import json
import re
import shlex
from pathlib import Path
from types import ModuleType

from gic.files import printable
from gic.version import DISTRIBUTION


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


class TruncatedError(FormatError):
    """The first bytes of a ``.gic`` file, too few to decode."""


class MissingExtraError(GicError, ImportError):
    """A package of an optional extra is not installed; the text says which extra to install."""


_BREAK = re.compile(r"\s*[\r\n]\s*")
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")
_ADVICE = {
    errno.ENOSPC: "make room, or choose another place",
    errno.EDQUOT: "make room, or choose another place",
    errno.EFBIG: "choose another place",
    errno.EROFS: "choose another place",
    errno.EACCES: "change its permissions, or choose another place",
    errno.EPERM: "change its permissions, or choose another place",
    errno.ENOTDIR: "a part of this path is a file and no folder",
    errno.EEXIST: "a file is in the way: choose another name",
    errno.EISDIR: "name a file in it",
    errno.ENAMETOOLONG: "give a shorter name",
    errno.ELOOP: "links lead to one another: name the file itself",
    errno.EBADF: "it is not open, or not for this",
}


def one_line(text: str) -> str:
    """Text on one line and without control characters, which a file's name may hold."""
    return _CONTROL.sub(lambda match: f"\\x{ord(match[0]):02x}", _BREAK.sub(" ", text.strip()))


def words_of(error: BaseException) -> str:
    """What a library's error says, in one line; the name of its type if it says nothing."""
    return one_line(" ".join(str(error).split())) or type(error).__name__


def out_of_memory(error: BaseException) -> bool:
    """Whether an error is a lack of memory, of the machine or of a GPU."""
    return isinstance(error, MemoryError) or (
        isinstance(error, RuntimeError) and re.search(r"out of memory|allocate memory", str(error)) is not None
    )


def in_words(error: OSError) -> str:
    """What a file system's error says to the person at the terminal, in one line: where, what, what to do."""
    if error.errno is None:
        return one_line(str(error))
    text = (error.strerror or errno.errorcode.get(error.errno, str(error.errno))).lower()
    named = isinstance(error.filename, (str, bytes))
    where = f"{printable(error.filename)}: " if named else ""
    advice = _ADVICE.get(error.errno)
    return f"{where}{text}" + (f" ({advice})" if advice else "")


def counted(number: int, thing: str) -> str:
    """``1 shard``, ``2 shards``."""
    return f"{number} {thing}" + "s" * (number != 1)


def install_command(extra: str) -> str:
    """What installs an extra of gic from where gic itself came: a checkout, a file, a repository or pip's index."""
    checkout = Path(__file__).parents[1]
    if (checkout / "pyproject.toml").is_file():
        return f"pip install -e {shlex.quote(f'{checkout}[{extra}]')}"
    from importlib.metadata import PackageNotFoundError, distribution

    try:
        origin = json.loads(distribution(DISTRIBUTION).read_text("direct_url.json") or "{}")
    except PackageNotFoundError:
        origin = {}
    name = f"{DISTRIBUTION}[{extra}]"
    if "url" in origin:
        vcs = origin.get("vcs_info", {}).get("vcs")
        name += f" @ {vcs + '+' if vcs else ''}{origin['url']}"
    return f"pip install {shlex.quote(name)}"


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
                f"the package {package!r} is needed here and is not installed: {install_command(extra)}"
            ) from None
        raise MissingExtraError(
            f"the package {own!r} needs {name!r}, which is not installed: {install_command(extra)}"
        ) from None
