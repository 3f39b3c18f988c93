"""Reading the images of WebDataset shards, whole or in parts, from disk or over the network.

WebDataset reads the tar files; no member is ever unpickled. Damage is returned as an item, not raised, so that
the caller can count it.
"""

from __future__ import annotations

import glob
import os
import re
import tarfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, cast

import braceexpand
from webdataset import tariterators

from gic.data.plan import Part
from gic.data.remote import Remote, RemoteFile, cached
from gic.errors import DataError
from gic.files import is_url
from gic.pictures.find import IMAGE_SUFFIXES, find_images

_GROUP = 64  # files that replace one shard
_SUFFIXES = frozenset(suffix.lstrip(".") for suffix in IMAGE_SUFFIXES)
_SKIPPED_BY_WEBDATASET = re.compile(r"__[^/]*__($|/)")


def expand_shards(spec: str | Sequence[str]) -> list[str]:
    """List the shards that names and patterns match.

    Args:
        spec: One or several of: a file; a pattern with braces (``train-{000..003}.tar``,
            ``{a,b}.tar``) or wildcards (``train-*.tar``); a folder, which stands for all its ``*.tar``
            in sorted order; a URL (``https:``, ``s3:``, ``gs:``, or ``pipe:`` with a shell command), which
            may hold braces.

    Returns:
        Paths and URLs in the order given. URLs are not checked.

    Raises:
        DataError: If nothing is named, a brace is unbalanced, a folder holds no shard, or files are missing
            or empty.

    Example:
        >>> expand_shards("https://example.org/train-{08..10}.tar")[-1]
        'https://example.org/train-10.tar'
    """
    shards: list[str] = []
    for pattern in [spec] if isinstance(spec, str) else spec:
        if not is_url(pattern) and Path(pattern).is_dir():
            inside = sorted(str(path) for path in Path(pattern).glob("*.tar"))
            if not inside:
                raise DataError(f"there is no shard (*.tar) in the folder {pattern}")
            shards += inside
            continue
        if not is_url(pattern) and (matches := glob.glob(pattern)):  # noqa: PTH207 - may be absolute
            shards += sorted(matches)
            continue
        try:
            shards += braceexpand.braceexpand(pattern, escape=False)
        except ValueError as error:  # UnbalancedBracesError
            raise DataError(f"the shard pattern {pattern!r} has an unbalanced brace") from error
    if not shards or "" in shards:
        raise DataError("no shards are named: give files, a folder or a pattern such as train-{000..099}.tar")

    wrong = []
    for shard in shards:
        if not is_url(shard):
            path = Path(shard)
            if not path.is_file():
                wrong.append(f"{shard} (missing)")
            elif path.stat().st_size == 0:
                wrong.append(f"{shard} (empty)")
    if wrong:
        names = ", ".join(wrong[:3]) + (", ..." if len(wrong) > 3 else "")
        raise DataError(f"{len(wrong)} of {len(shards)} shards are missing or empty: {names}; check the path")
    return shards


class Files(NamedTuple):
    """Image files that are read like a shard, for training on a folder of pictures.

    Attributes:
        name: Their name in errors.
        paths: The files, in order.
    """

    name: str
    paths: tuple[Path, ...]


def expand_sources(spec: str | Sequence[str]) -> list[str | Files]:
    """List the sources of training: shards, and image files in groups that replace shards.

    Args:
        spec: One or several of: shards as :func:`expand_shards` takes them (a folder stands for its ``*.tar`` if it has
            any); else image files, folders of images and patterns as :func:`gic.pictures.find.find_images` takes them.

    Raises:
        DataError: If nothing is named, or shards, files or folders are missing or empty.
    """
    sources: list[str | Files] = []
    for entry in [spec] if isinstance(spec, str) else spec:
        if names_shards(entry):
            sources += expand_shards(entry)
        else:
            found = find_images([entry])
            groups = -(-len(found) // _GROUP)  # neighbouring files in a folder are similar, so groups interleave
            sources += [Files(entry, tuple(found[group::groups])) for group in range(groups)]
    if not sources:
        raise DataError("no training images are named: give shards, or a folder of images")
    return sources


def names_shards(entry: str) -> bool:
    """Whether an entry names shards and not images."""
    if is_url(entry):
        return True
    path = Path(entry)
    if path.is_dir():
        return any(path.glob("*.tar"))
    shard = re.search(r"\.tar(\.\w+)?$|\.tgz$", entry) is not None or (not path.exists() and ".tar" in entry)
    return shard or not entry


class RawImage(NamedTuple):
    """An image as it is stored, or a problem in its place.

    Attributes:
        key: Name of the sample in its shard, or path.
        name: Its name in errors.
        data: The file's bytes or its path; None if there is a problem.
        problem: Reason, as in :attr:`TrainBatch.skipped`; empty if there is none.
    """

    key: str
    name: str
    data: bytes | Path | None
    problem: str = ""


WHOLE_SHARD = Part(shard=0, part=0, parts=1, start=0.0, stop=1.0, lap=0)
PATIENT = Remote()
"""Remote shards are read with the default retries, and not cached."""


def _read_files(files: Files, part: Part) -> Iterator[RawImage]:
    """Read one part of a group of files, as :func:`read_shard` does of a shard."""
    count = len(files.paths)
    for index in range(round(part.start * count), round(part.stop * count)):
        if index % part.parts == part.part:
            path = files.paths[index]
            try:
                yield RawImage(str(path), str(path), path.read_bytes())
            except OSError as error:
                yield RawImage(str(path), f"{path}: {one_line(error)}", None, "unreadable_file")


def read_shard(source: str | Files, part: Part = WHOLE_SHARD, remote: Remote = PATIENT) -> Iterator[RawImage]:
    """Read the encoded images of one part of a shard, in order.

    Damage is returned and not raised: as an item with a problem for each sample without an image, and one at
    the end if the shard is damaged, cannot be opened, or is empty. A damaged shard is not kept in the cache.

    Args:
        source: Path or URL of a shard; or files that replace one.
        part: Which samples.
        remote: How a URL is read.
    """
    if isinstance(source, Files):
        yield from _read_files(source, part)
        return
    url = source
    problems: list[str] = []

    def note(error: Exception) -> bool:
        problems.append(one_line(error))
        return True  # go on

    samples = 0
    kept: Path | None = None
    try:
        if is_url(url) and remote.cache_dir is not None:
            kept = cached(url, remote)
        with _open_shard(url if kept is None else str(kept), part.start, part.stop, remote) as opened:
            if opened is None:
                return
            stream, first = opened
            files = tariterators.tar_file_expander([{"url": url, "stream": stream}], handler=note)
            grouped = tariterators.group_by_keys(files, suffixes=_SUFFIXES, handler=note)
            for index, sample in enumerate(grouped, first):
                samples += 1
                if index % part.parts == part.part:
                    yield _pick_image(url, sample)
    except (OSError, ValueError) as error:
        note(error)
    if problems and kept is not None:
        kept.unlink(missing_ok=True)
    if problems:
        yield RawImage(url, f"{url}: {problems[0]}", None, "damaged_shard" if samples else "unreadable_shard")
    elif not samples:
        yield RawImage(url, f"{url}: there is no sample in it", None, "unreadable_shard")


def _pick_image(url: str, sample: dict[str, Any]) -> RawImage:
    """Take the first image out of a sample as WebDataset groups it."""
    key = str(sample["__key__"])
    for suffix, data in sample.items():
        if suffix in _SUFFIXES:
            return RawImage(key, f"{key}.{suffix} in {url}", data)
    return RawImage(key, f"{key} in {url}: there is no image in the sample", None, "no_image")


@contextmanager
def _open_shard(url: str, start: float, stop: float, remote: Remote) -> Iterator[tuple[BinaryIO, int] | None]:
    """Open a stretch of a shard.

    Only uncompressed local files can be read from the middle. For other shards the stretch ``(start, 1)`` is
    the whole shard, and ``(0, stop)`` is empty.

    Yields:
        A stream of tar members that begins with a whole sample, and that sample's index in the shard; None
        if there is nothing in the stretch.
    """
    if is_url(url):
        if stop < 1:
            yield None
            return
        stream = RemoteFile(url, remote)
        try:
            yield cast(BinaryIO, stream), 0
        finally:
            stream.close()
        return
    with Path(url).open("rb") as file:
        whole = start == 0 and stop == 1
        found = None if whole else _find_sample(file, start if start > 0 else stop)
        file.seek(0)
        if stop < 1:
            yield None if found is None else (cast(BinaryIO, _Head(file, found[0])), 0)
        elif found is None:
            yield file, 0
        else:
            file.seek(found[0])
            yield file, found[1]


def _find_sample(file: BinaryIO, fraction: float) -> tuple[int, int] | None:
    """Find the first sample that begins at or after a fraction of a tar file's bytes.

    Reads the headers before it and no data. Counts samples the way WebDataset does: members next to each
    other that share a name up to its first dot.

    Returns:
        Byte offset and index of the sample; None if there is none, or the file is compressed or damaged.
    """
    size = os.fstat(file.fileno()).st_size
    current, samples = None, 0
    try:
        with tarfile.open(fileobj=file, mode="r:") as tar:
            while (member := tar.next()) is not None:
                tar.members = []  # type: ignore[attr-defined]  # otherwise it keeps every member
                key, _ = tariterators.base_plus_ext(member.name)
                if not member.isreg() or key is None or _SKIPPED_BY_WEBDATASET.match(member.name):
                    continue
                if key != current:
                    if member.offset >= fraction * size:
                        return member.offset, samples
                    current, samples = key, samples + 1
    except tarfile.TarError:
        pass
    return None


class _Head:
    """The first bytes of a file as a stream; tarfile needs only ``read``."""

    def __init__(self, file: BinaryIO, length: int) -> None:
        self._file = file
        self._left = length

    def read(self, size: int) -> bytes:
        data = self._file.read(min(size, self._left))
        self._left -= len(data)
        return data


def one_line(error: Exception) -> str:
    """Text of an exception without what WebDataset appends to it."""
    text = str(error.args[0]) if error.args and isinstance(error.args[0], str) else str(error)
    return " ".join(text.split(" @ <")[0].split()) or type(error).__name__
