"""Reading the images of WebDataset shards, whole or in parts, from disk or over the network.

No member but pictures is read, and none is ever unpickled. Damage is returned as an item, not raised, so that the
caller can count it.

A picture's key is its name without its ending: ``IMG_2023.05.01.jpg`` has the key ``IMG_2023.05.01``. Members next to
each other that share a name up to its first dot may be one sample of WebDataset, with a picture (``a.jpg``) and others
that belong to it (``a.seg.png``): then only the plain one is used, and a warning says so.
"""

from __future__ import annotations

import glob
import os
import re
import tarfile
import warnings
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import chain, groupby
from lzma import LZMAError
from pathlib import Path
from typing import BinaryIO, NamedTuple, cast

import braceexpand
from webdataset import tariterators

from gic.data.plan import Part
from gic.data.remote import Remote, RemoteFile, cached, reason
from gic.errors import DataError
from gic.files import is_url, printable
from gic.pictures.find import IMAGE_SUFFIXES, find_images

_GROUP = 64  # files that replace one shard
_SUFFIXES = frozenset(suffix.lstrip(".") for suffix in IMAGE_SUFFIXES)
_SKIPPED_BY_WEBDATASET = re.compile(r"__[^/]*__($|/)")
_HELD = 8  # pictures that wait until it is known whether they belong to another
_MAX_NAME = 1 << 20  # bytes of a header that holds a long name
_MOST_ENDS = 16  # reads at the end of a stream
_NAME_HEADERS = frozenset(
    {
        tarfile.XHDTYPE,
        tarfile.XGLTYPE,
        tarfile.SOLARIS_XHDTYPE,
        tarfile.GNUTYPE_LONGNAME,
        tarfile.GNUTYPE_LONGLINK,
    }
)
MAX_PICTURE_BYTES = 1 << 29
"""Largest picture in a shard or folder that is read for training, as a file: 512 MiB; larger ones are counted."""


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
        which = f"{len(wrong)} of {len(shards)} shards are" if len(shards) > 1 else "the shard is"
        raise DataError(f"{which} missing or empty: {names}; check the path")
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
            name = printable(path)
            try:
                size = path.stat().st_size
                if size > MAX_PICTURE_BYTES:
                    yield RawImage(name, f"{name}: {too_large(size)}", None, "too_large")
                else:
                    yield RawImage(name, name, path.read_bytes())
            except OSError as error:
                yield RawImage(name, f"{name}: {reason(error)}", None, "unreadable_file")


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
    samples = 0
    kept: Path | None = None
    try:
        if is_url(url) and remote.cache_dir is not None:
            kept = cached(url, remote)
        with _open_shard(url if kept is None else str(kept), part.start, part.stop, remote) as opened:
            if opened is None:
                return
            stream, first = opened
            for index, sample in enumerate(_samples(_members(stream, problems.append)), first):
                samples += 1
                if index % part.parts == part.part:
                    yield _raw_image(url, sample)
    except (OSError, ValueError) as error:
        problems.append(reason(error))
    if problems and kept is not None:
        kept.unlink(missing_ok=True)
    if problems:
        yield RawImage(url, f"{url}: {problems[0]}", None, "damaged_shard" if samples else "unreadable_shard")
    elif not samples:
        yield RawImage(url, f"{url}: there is no sample in it", None, "unreadable_shard")


class _Member(NamedTuple):
    """A file in a shard.

    Attributes:
        name: Its name.
        offset: Where it begins in the tar file, in bytes.
        size: Its size in bytes.
        data: Its content, where that was read.
    """

    name: str
    offset: int
    size: int
    data: bytes | None = None

    @property
    def base(self) -> str | None:
        """What members of one sample share: the name up to its first dot; None if it has none or begins with it."""
        base, _ = tariterators.base_plus_ext(self.name)
        return cast("str | None", base)

    @property
    def key(self) -> str:
        """The name without its ending."""
        return self.name.rpartition(".")[0]

    @property
    def is_picture(self) -> bool:
        """Whether the ending is a picture's."""
        return self.name.rpartition(".")[2].lower() in _SUFFIXES


class _Sample(NamedTuple):
    """A picture of a shard, or members without one.

    Attributes:
        member: The picture, or one of the members.
        begin: Where the members begin that share a name up to its first dot, in bytes; None after the first picture
            of these.
    """

    member: _Member
    begin: int | None


class _CheckedInfo(tarfile.TarInfo):
    """Headers of members. tarfile takes a damaged one for the end, and reads a long name of any length."""

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> _CheckedInfo:
        """Read one header."""
        try:
            info = super().frombuf(buf, encoding, errors)
        except (tarfile.EmptyHeaderError, tarfile.EOFHeaderError):  # type: ignore[attr-defined]
            raise
        except tarfile.HeaderError as error:
            raise tarfile.ReadError(f"a header is damaged: {error}") from error
        if info.size < 0 or (info.type in _NAME_HEADERS and info.size > _MAX_NAME):
            raise tarfile.ReadError(f"a header is damaged: it states a size of {info.size} bytes")
        return info


class _Ending:
    """A stream that does not end over and over: tarfile would skip a member of a stated exabyte block by block."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream
        self._ends = 0

    def read(self, size: int) -> bytes:
        data = self._stream.read(size)
        self._ends += not data
        if self._ends > _MOST_ENDS:
            raise tarfile.ReadError("unexpected end of data")
        return data


def _is_read(info: tarfile.TarInfo) -> bool:
    """Whether a member of a tar file can belong to a sample."""
    return info.isreg() and not _SKIPPED_BY_WEBDATASET.match(info.name)


def _members(stream: BinaryIO, note: Callable[[str], None]) -> Iterator[_Member]:
    """Read the members of a tar file, those that are pictures with their content; damage is noted and ends it."""
    ending = cast(BinaryIO, _Ending(stream))
    try:
        with tarfile.open(fileobj=ending, mode="r|*", tarinfo=_CheckedInfo) as tar:
            for info in tar:
                tar.members = []  # type: ignore[attr-defined]  # otherwise it keeps every member
                member = _Member(info.name, info.offset, info.size)
                if _is_read(info) and member.base is not None:
                    content = tar.extractfile(info) if member.is_picture and info.size <= MAX_PICTURE_BYTES else None
                    yield member if content is None else member._replace(data=content.read())
    except (tarfile.TarError, OSError, ValueError, EOFError, zlib.error, LZMAError) as error:
        note(reason(error))


def _samples(members: Iterable[_Member]) -> Iterator[_Sample]:
    """Take the pictures out of members; members next to each other that share a base and hold none are one sample."""
    for _, run in groupby(members, lambda member: member.base):
        first = next(run)
        begin: int | None = first.offset
        held: list[_Member] = []
        found = False
        for member in chain([first], run):
            if not member.is_picture:
                continue
            found = True
            for companion in [picture for picture in held if picture.key.startswith(f"{member.key}.")]:
                held.remove(companion)
                _tell_companion(companion, member)
            owner = next((picture for picture in held if f"{member.key}.".startswith(f"{picture.key}.")), None)
            if owner is not None:
                _tell_companion(member, owner)
                continue
            held.append(member)
            if len(held) > _HELD:
                yield _Sample(held.pop(0), begin)
                begin = None
        for picture in held:
            yield _Sample(picture, begin)
            begin = None
        if not found:
            yield _Sample(first, begin)


def _tell_companion(companion: _Member, owner: _Member) -> None:
    """Warn, once for each such ending, of a picture that is passed over."""
    warnings.warn(
        f"shards hold pictures named KEY{companion.name[len(owner.key) :]} beside KEY{owner.name[len(owner.key) :]}, "
        "which are passed over as parts of one sample of WebDataset: rename them if they are pictures of their own",
        stacklevel=2,
    )


def _raw_image(url: str, sample: _Sample) -> RawImage:
    """A picture of a shard, or why there is none."""
    member = sample.member._replace(name=printable(sample.member.name))
    if not member.is_picture:
        return RawImage(
            cast(str, member.base),
            f"{member.name} in {url}: there is no image in the sample (no member with an ending such as .jpg or .png)",
            None,
            "no_image",
        )
    name = f"{member.name} in {url}"
    if member.data is None:
        return RawImage(member.key, f"{name}: {too_large(member.size)}", None, "too_large")
    return RawImage(member.key, name, member.data)


def too_large(size: int) -> str:
    """Why a picture's file of ``size`` bytes is not read."""
    return f"its file of {size / 2**20:.0f} MiB exceeds the {MAX_PICTURE_BYTES >> 20} MiB that are read"


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

    Reads the headers before it and no data. Counts samples as :func:`_samples` does, and finds only those that are the
    first with their name up to its first dot.

    Returns:
        Byte offset and index of the sample; None if there is none, or the file is compressed or damaged.
    """
    size = os.fstat(file.fileno()).st_size

    def members(tar: tarfile.TarFile) -> Iterator[_Member]:
        last = -1
        while (info := tar.next()) is not None and info.offset > last:  # damaged sizes can lead back
            tar.members = []  # type: ignore[attr-defined]  # otherwise it keeps every member
            last = info.offset
            member = _Member(info.name, info.offset, info.size)
            if _is_read(info) and member.base is not None:
                yield member

    try:
        with tarfile.open(fileobj=file, mode="r:", tarinfo=_CheckedInfo) as tar:
            for index, sample in enumerate(_samples(members(tar))):
                if sample.begin is not None and sample.begin >= fraction * size:
                    return sample.begin, index
    except (tarfile.TarError, OSError, ValueError):
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
