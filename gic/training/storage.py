"""Checkpoints at URLs of fsspec (``s3://``, ``gs://``, ``hf://``, ...): copied there, and fetched from there.

A run writes to its folder on disk, whole or not at all; a copy of each checkpoint goes to the URL, and a run on another
machine resumes from it. The user installs the package for the kind of URL (s3fs, gcsfs, huggingface_hub, ...).
"""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from gic.errors import ConfigError


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
        found = sorted((name for name in names if name.endswith(".ckpt")), key=lambda n: n.rsplit("/", 1)[-1])
        return [str(file_system.unstrip_protocol(name)) for name in reversed(found)]


def fetched(url: str) -> Path:
    """A file at a URL, copied to this machine's temporary folder.

    Raises:
        ConfigError: If it is not available.
    """
    folder = Path(tempfile.gettempdir()) / f"gic-{hashlib.sha256(url.encode()).hexdigest()[:16]}"
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / url.rsplit("/", 1)[-1]
    with tempfile.NamedTemporaryFile(dir=folder, suffix=".part", delete=False) as file:
        part = Path(file.name)
    try:
        with _said_plainly(url):
            file_system, root = _file_system(url)
            file_system.get_file(root, str(part))
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)
    return path
