"""Files that are written whole or not at all, and what is a URL, a device or a pipe and no file."""

from __future__ import annotations

import errno
import os
import re
import shutil
import stat
import tempfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

_URL = re.compile(r"^[A-Za-z][A-Za-z0-9+.-]+:")  # two letters at least: "C:" is a drive
_MOST_LINKS = 40  # that lead to one another, as in Linux


def is_url(name: str) -> bool:
    """Whether a name is a URL (``https:``, ``s3:``, ``pipe:``, ...) and no path."""
    return _URL.match(name) is not None


def printable(name: str | bytes | Path) -> str:
    r"""A file's name as text that any terminal and any UTF-8 file takes: bytes that are no UTF-8 become ``\xe9``."""
    return os.fsencode(name).decode("utf-8", errors="backslashreplace")


def is_stream(path: str | Path) -> bool:
    """Whether a name is a device, a pipe, a socket or an open file (``/dev/stdout``, ``/dev/fd/3``)."""
    try:
        mode = Path(path).stat().st_mode
    except OSError:
        return False
    return not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)) or descriptor(path) is not None


def descriptor(path: str | Path) -> int | None:
    """Number of the open file that ``/dev/stdout``, ``/dev/fd/3`` and links to them name; None for other names."""
    path = Path(path)
    for _ in range(_MOST_LINKS):
        folder = os.path.realpath(path.parent)
        if folder in ("/dev/fd", f"/proc/{os.getpid()}/fd"):
            return int(path.name) if path.name.isdecimal() else None
        if not path.is_symlink():
            return None
        path = Path(folder, path.readlink())
    return None


@contextmanager
def naming(path: str | Path, inside: Path | None = None) -> Iterator[None]:
    """Let an OSError in the block name ``path``, if it names no file or one of those ``inside``, which will be gone."""
    try:
        yield
    except OSError as error:
        if error.errno is not None:
            hidden = inside is not None and str(error.filename).startswith(str(inside))
            if error.filename is None or hidden:
                error.filename, error.filename2 = str(path), None
        raise


@contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """Give a temporary path that takes the place of ``path`` when the block ends without an error.

    A reader, or a process that is killed meanwhile, sees the old file or the new one and nothing in between. A link is
    followed: what it leads to is replaced. A device, a pipe or an open file stays what it is, and the bytes are written
    to it.

    Example:
        >>> with replacing("notes.txt") as temporary:  # doctest: +SKIP
        ...     temporary.write_text("whole or not at all")
    """
    path = Path(path)
    if is_stream(path):
        with tempfile.TemporaryDirectory() as folder:
            temporary = Path(folder, path.name)
            temporary.touch()
            yield temporary
            with temporary.open("rb") as file, naming(path), _opened(path) as to:
                shutil.copyfileobj(file, to)
        return
    target = Path(os.path.realpath(path))
    if target.is_symlink():
        raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), str(path))
    target.parent.mkdir(parents=True, exist_ok=True)
    # Shorter than the name, which may be as long as the file system allows.
    mark = f"{zlib.crc32(os.fsencode(target.name)):08x}.{os.getpid()}"
    temporary = target.with_name(f".{target.name[:24]}.{mark}.part")
    with naming(path, temporary):
        try:
            temporary.touch()
            # The old file's, or as the user's umask has it: some libraries write files that nobody else may read.
            mode = stat.S_IMODE((target if target.exists() else temporary).stat().st_mode)
            yield temporary
            temporary.chmod(mode)
            with temporary.open("rb") as file:
                os.fsync(file.fileno())
            temporary.replace(target)
        finally:
            temporary.unlink(missing_ok=True)


def _opened(path: Path) -> BinaryIO:
    """Open a device, a pipe or an open file; the last goes on where it is, as it was opened."""
    number = descriptor(path)
    return path.open("wb") if number is None else os.fdopen(os.dup(number), "wb")


def write_bytes(path: str | Path, data: bytes) -> None:
    """Write a file whole or not at all, or all bytes to a device, a pipe or an open file."""
    if is_stream(path):
        with naming(path), _opened(Path(path)) as file:
            file.write(data)
        return
    with replacing(path) as temporary:
        temporary.write_bytes(data)
