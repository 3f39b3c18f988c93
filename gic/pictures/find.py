"""Finding files: what names, folders and patterns on a command line or in a config stand for."""

from __future__ import annotations

import os
from collections.abc import Collection, Sequence
from pathlib import Path

from gic.errors import DataError

# fmt: off
IMAGE_SUFFIXES = frozenset({
    ".png", ".jpg", ".jpeg", ".jpe", ".webp", ".avif", ".heic", ".jxl", ".gif", ".bmp",
    ".tif", ".tiff", ".ppm", ".pgm", ".pbm", ".pnm", ".jp2", ".j2k",
})
# fmt: on
"""Endings, in lower case, by which :func:`find_images` knows an image file in a folder."""


def find_images(paths: Sequence[str | Path]) -> list[Path]:
    """List the image files (:data:`IMAGE_SUFFIXES`) that names and folders stand for, see :func:`find_files`."""
    return find_files(paths, IMAGE_SUFFIXES, "image")


def find_files(paths: Sequence[str | Path], suffixes: Collection[str], what: str) -> list[Path]:
    """List the files of a kind that files, folders and patterns stand for.

    Folders are searched to any depth for files with one of the endings (upper or lower case); names that begin with a
    dot are passed over, linked folders are not followed, and pipes and devices are passed over. A file or pipe given by
    its own name is taken whatever its ending.

    Args:
        paths: Files, folders, or patterns such as ``"photos/**/*.png"``.
        suffixes: Endings, in lower case with their dot.
        what: What such a file is called in errors.

    Returns:
        The files, sorted by path, each once.

    Raises:
        DataError: If a path does not exist, a folder holds none or cannot be read, or a pattern matches none.
    """

    def fits(path: Path) -> bool:
        wanted = path.suffix.lower() in suffixes and not path.name.startswith(".")
        return wanted and (path.is_file() or not path.exists())  # no pipe, which would be waited for

    def refuse(error: OSError) -> None:
        raise DataError(f"the folder {error.filename} cannot be read ({error.strerror}): name others, without it")

    def inside(folder: Path) -> list[Path]:
        files = []
        for root, folders, names in os.walk(folder, onerror=refuse):
            folders[:] = [name for name in folders if not name.startswith(".")]
            files += [path for path in (Path(root, name) for name in names) if fits(path)]
        return files

    found: dict[Path, Path] = {}
    if "" in paths:
        raise DataError("a name is empty: give a file or folder (. is this one)")
    for path in map(Path, paths):
        if path.is_dir():
            files = inside(path)
            if not files:
                raise DataError(f"there is no {what} in the folder {path}")
        elif path.exists():  # a file, or a pipe
            files = [path]
        elif any(c in str(path) for c in "*?["):
            base = Path(path.anchor)
            files = []
            if any("**" in part and part != "**" for part in path.parts):  # read in two ways by versions of Python
                raise DataError(f"{path} is no pattern: ** stands alone between slashes, as in **/*.png")
            for match in base.glob(str(path.relative_to(base))):
                files += inside(match) if match.is_dir() else [match] * fits(match)
            if not files:
                raise DataError(f"no {what} matches the pattern {path}")
        else:
            raise DataError(f"there is no file or folder {path}")
        for file in files:
            found.setdefault(file.resolve(), file)
    return sorted(found.values())
