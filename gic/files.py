"""Files that are written whole or not at all, and what is a URL and no file."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_URL = re.compile(r"^[A-Za-z][A-Za-z0-9+.-]+:")  # two letters at least: "C:" is a drive


def is_url(name: str) -> bool:
    """Whether a name is a URL (``https:``, ``s3:``, ``pipe:``, ...) and no path."""
    return _URL.match(name) is not None


def printable(name: str | Path) -> str:
    r"""A file's name as text that any terminal and any UTF-8 file takes: bytes that are no UTF-8 become ``\xe9``."""
    return os.fsencode(name).decode("utf-8", errors="backslashreplace")


@contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """Give a temporary path beside ``path`` that takes its place when the block ends without an error.

    A reader, or a process that is killed meanwhile, sees the old file or the new one and nothing in between.

    Example:
        >>> with replacing("notes.txt") as temporary:  # doctest: +SKIP
        ...     temporary.write_text("whole or not at all")
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        temporary.touch()
        mode = temporary.stat().st_mode
        yield temporary
        temporary.chmod(mode)  # as the user's umask has it: safetensors writes files that nobody else may read
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def write_bytes(path: str | Path, data: bytes) -> None:
    """Write a file whole or not at all."""
    with replacing(path) as temporary:
        temporary.write_bytes(data)
