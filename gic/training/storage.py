"""Checkpoints at URLs of fsspec (``s3://``, ``gs://``, ``hf://``, ...): copied there, and fetched from there.

A run writes to its folder on disk, whole or not at all; a copy of each checkpoint goes to the URL, and a run on another
machine resumes from it. The user installs the package for the kind of URL (s3fs, gcsfs, huggingface_hub, ...).
"""

from __future__ import annotations

import hashlib
import os
import re
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from gic.errors import ConfigError
from gic.files import replacing


@contextmanager
def _said_plainly(url: str) -> Iterator[None]:
    """Turn the errors of a file system into one line."""
    try:
        yield
    except ImportError as error:
        raise ConfigError(f"{url} takes a package that is not installed: {error}") from error
    except (OSError, ValueError) as error:
        raise ConfigError(f"{url} cannot be reached: {' '.join(str(error).split()) or type(error).__name__}") from error


def _file_system(url: str) -> tuple[Any, str]:
    import fsspec

    file_system, root = fsspec.core.url_to_fs(url)
    return file_system, str(root).rstrip("/")


def copy_to(url: str, file: Path, obsolete: Sequence[str] = ()) -> None:
    """Copy a file into the folder at a URL, then remove others from there.

    Args:
        url: Folder.
        file: The file.
        obsolete: Names of the files to remove; missing ones are ignored.

    Raises:
        ConfigError: If that is not possible.
    """
    with _said_plainly(url):
        file_system, root = _file_system(url)
        file_system.makedirs(root, exist_ok=True)
        file_system.put_file(str(file), f"{root}/{file.name}")
        for name in obsolete:
            if file_system.exists(f"{root}/{name}"):
                file_system.rm_file(f"{root}/{name}")


def checkpoints_at(url: str) -> list[str]:
    """URLs of the checkpoints in a folder at a URL, or the URL of one checkpoint, by step, the newest first.

    Raises:
        ConfigError: If it cannot be reached.
    """
    with _said_plainly(url):
        file_system, root = _file_system(url)
        if file_system.isfile(root):
            return [url]
        names = [str(path) for path in file_system.find(root)] if file_system.exists(root) else []
        found = sorted((name for name in names if name.endswith(".ckpt")), key=_step, reverse=True)
        return [str(file_system.unstrip_protocol(name)) for name in found]


def _step(name: str) -> tuple[int, str]:
    """Step of a checkpoint, as its name has it; those that have none come first."""
    last = name.rsplit("/", 1)[-1]
    digits = re.search(r"(\d+)\.ckpt$", last)
    return int(digits[1]) if digits else -1, last


def fetched(url: str) -> Path:
    """A file at a URL, copied to this machine's temporary folder.

    Raises:
        ConfigError: If it is not available.
    """
    # The same place for all ranks, which compare where they start from; each writes a file of its own there.
    place = Path(tempfile.gettempdir()) / f"gic-{os.getuid()}-{hashlib.sha256(url.encode()).hexdigest()[:16]}"
    path = place / url.rsplit("/", 1)[-1]
    with _said_plainly(url):
        place.mkdir(mode=0o700, parents=True, exist_ok=True)
        if place.stat().st_uid != os.getuid():
            raise PermissionError(f"{place} belongs to another user")
        file_system, root = _file_system(url)
        with replacing(path) as part:
            file_system.get_file(root, str(part))
    return path
