"""Results that are kept on disk at once, so that finished work is not measured twice.

A key is the hash of everything that a result depends on; an entry is written whole or not at all. Several processes
may share a folder.
"""

from __future__ import annotations

import hashlib
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gic.files import write_bytes


def key_of(*parts: Any) -> str:
    """Key of a result that depends on ``parts``, which JSON can hold.

    >>> key_of("avif", {"quality": 30}) == key_of("avif", {"quality": 30}) != key_of("avif", {"quality": 31})
    True
    """
    text = json.dumps(parts, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:32]


class Cache:
    """Small files in a folder, by key and kind.

    Args:
        folder: Created at the first write.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def path(self, key: str, suffix: str) -> Path:
        """Path of an entry, existing or not."""
        return self.folder / key[:2] / f"{key}{suffix}"

    def read(self, key: str, suffix: str) -> bytes | None:
        """Bytes of an entry; None if there is none."""
        try:
            return self.path(key, suffix).read_bytes()
        except FileNotFoundError:
            return None

    def write(self, key: str, suffix: str, data: bytes) -> None:
        """Keep an entry."""
        write_bytes(self.path(key, suffix), data)

    def read_json(self, key: str) -> Any:
        """A JSON entry; None if there is none, or if it is damaged."""
        data = self.read(key, ".json")
        try:
            return None if data is None else json.loads(data)
        except ValueError:
            return None

    def write_json(self, key: str, value: Any) -> None:
        """Keep a JSON entry."""
        self.write(key, ".json", json.dumps(value).encode())

    def read_array(self, key: str) -> NDArray[np.float32] | None:
        """An array; None if there is none."""
        data = self.read(key, ".npy")
        return None if data is None else np.load(io.BytesIO(data), allow_pickle=False)

    def write_array(self, key: str, array: NDArray[np.float32]) -> None:
        """Keep an array."""
        buffer = io.BytesIO()
        np.save(buffer, array, allow_pickle=False)
        self.write(key, ".npy", buffer.getvalue())
