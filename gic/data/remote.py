"""Remote shards: reading resumes where a connection broke, with an optional cache on disk."""

from __future__ import annotations

import contextlib
import hashlib
import http.client
import os
import select
import signal
import subprocess
import tempfile
import time
import urllib.error
import urllib.request
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol, cast

import fsspec

from gic.errors import ConfigError, words_of

_BLOCK = 1 << 20  # bytes read at a time
_LONGEST_PAUSE = 60.0  # seconds between two attempts
_ABANDONED = 3600.0  # seconds after which an abandoned partial file is removed
_WORTH_ANOTHER_TRY = frozenset({408, 425, 429, 500, 502, 503, 504})  # status codes of HTTP


@dataclass(frozen=True)
class Remote:
    """How shards over the network are read.

    Attributes:
        cache_dir: Folder in which whole shards are kept for the next read; None keeps nothing. It is never emptied, so
            it needs room for all shards that one machine reads.
        timeout: Seconds without a byte after which a connection or command is closed.
        retries: Failures of one shard that are allowed; after each, reading resumes where it broke.
        backoff: Seconds before the first retry; they double with each, up to a minute.

    Raises:
        ConfigError: If a setting lies outside its range.
    """

    cache_dir: str | None = None
    timeout: float = 20.0
    retries: int = 6
    backoff: float = 1.0

    def __post_init__(self) -> None:
        if self.timeout <= 0 or self.retries < 0 or self.backoff < 0:
            raise ConfigError(
                f"timeout must be positive, retries and backoff must not be negative: {self.timeout}, {self.retries}, "
                f"{self.backoff}"
            )


class _Source(Protocol):
    """A source of bytes; it raises OSError when it breaks."""

    def read(self, size: int) -> bytes:
        """At most ``size`` bytes, at least one; none at the end."""

    def close(self) -> None:
        """Close it, finished or not."""


class _Opened(NamedTuple):
    source: _Source
    position: int  # of its first byte in the shard
    length: int | None  # of the shard, if it is known


class _PermanentError(OSError):
    """An error for which a retry does not help."""


def reason(error: Exception) -> str:
    """What an exception says, on one line, without the number and the name of a file."""
    if isinstance(error, OSError) and error.errno is not None:
        return error.strerror or str(error)
    return words_of(error)


class RemoteFile:
    """The bytes of a remote shard from first to last, in one stream; tarfile needs only ``read``.

    Args:
        url: ``https:``, ``http:``, ``pipe:`` with a command, or what fsspec opens (``s3:``, ``gs:``, ``hf:``, ...).
        remote: Timeout and retries.
    """

    def __init__(self, url: str, remote: Remote) -> None:
        self.url = url
        self.remote = remote
        self._source: _Source | None = None
        self._position = 0
        self._length: int | None = None
        self._failures = 0
        self._given_up: OSError | None = None

    def read(self, size: int) -> bytes:
        """Read at most ``size`` bytes; none at the end.

        Raises:
            OSError: After too many failures; the text says where and why.
        """
        while self._given_up is None:
            try:
                if self._source is None:
                    self._connect()
                data = cast(_Source, self._source).read(size)
                if not data and self._length is not None and self._position < self._length:
                    raise OSError("the connection was closed")
            except (OSError, http.client.HTTPException) as error:
                self.close()
                self._pause(error)
            else:
                self._position += len(data)
                return data
        raise self._given_up

    def close(self) -> None:
        """Close the connection or command."""
        if self._source is not None:
            self._source.close()
            self._source = None

    def _connect(self) -> None:
        opened = _open(self.url, self._position, self.remote.timeout)
        self._source = opened.source
        if self._length is not None and opened.length is not None and opened.length != self._length:
            raise _PermanentError(f"its length changed from {self._length} to {opened.length} bytes while it was read")
        self._length = opened.length if self._length is None else self._length
        to_skip = self._position - opened.position
        while to_skip:
            data = self._source.read(min(to_skip, _BLOCK))
            if not data:
                raise OSError("it ended earlier than before")
            to_skip -= len(data)

    def _pause(self, error: Exception) -> None:
        """Wait before the next attempt, or raise."""
        of = "" if self._length is None else f" of {self._length}"
        what = f"{reason(error)} after {self._position}{of} bytes"
        if isinstance(error, _PermanentError) or self._failures == self.remote.retries:
            tried = f"; tried {self._failures + 1} times" if self._failures else ""
            self._given_up = OSError(f"{what}{tried}")
            return
        seconds = min(self.remote.backoff * 2**self._failures, _LONGEST_PAUSE)
        self._failures += 1
        warnings.warn(
            f"{self.url}: {what}; trying again in {seconds:g} s ({self._failures} of {self.remote.retries})",
            stacklevel=2,
        )
        time.sleep(seconds)


def cached(url: str, remote: Remote) -> Path:
    """Path of a shard in the cache, fetched if it is missing.

    A file is named after the whole URL, and gets its name when it is complete. Several processes may fetch the same one
    at once; each writes a file of its own, and the last remains.

    Raises:
        OSError: If the shard cannot be read or the cache not be written.
    """
    folder = Path(cast(str, remote.cache_dir))
    path = folder / f"{hashlib.sha256(url.encode()).hexdigest()[:40]}.tar"
    if path.is_file():
        return path
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for part in folder.glob(".*.part"):
            with contextlib.suppress(FileNotFoundError):
                if time.time() - part.stat().st_mtime > _ABANDONED:
                    part.unlink()
        return _fetched(url, remote, path)
    except OSError as error:
        if error.errno is None:
            raise
        raise OSError(f"the cache {folder} cannot be written: {error.strerror}") from error


def _fetched(url: str, remote: Remote, path: Path) -> Path:
    """Fetch a shard; it gets its name when it is complete."""
    stream = RemoteFile(url, remote)
    with tempfile.NamedTemporaryFile(dir=path.parent, prefix=".", suffix=".part", delete=False) as file:
        try:
            while data := stream.read(_BLOCK):
                file.write(data)
            file.flush()
            os.fsync(file.fileno())
            Path(file.name).replace(path)
        except BaseException:
            Path(file.name).unlink()
            raise
        finally:
            stream.close()
    return path


def _open(url: str, position: int, timeout: float) -> _Opened:
    if url.startswith(("http:", "https:")):
        return _open_http(url, position, timeout)
    if url.startswith("pipe:"):
        return _Opened(_Command(url.removeprefix("pipe:"), timeout), 0, None)
    return _open_file_system(url, position)


def _open_file_system(url: str, position: int) -> _Opened:
    """Open a URL of fsspec: ``s3:``, ``gs:``, ``hf:``, ..."""
    try:
        file: Any = fsspec.open(url, "rb").open()
    except (FileNotFoundError, PermissionError) as error:
        raise _PermanentError(f"{type(error).__name__}: {error}") from error
    except (ImportError, ValueError) as error:  # no package for this kind of URL, or no such kind
        raise _PermanentError(str(error)) from error
    file.seek(position)
    return _Opened(file, position, getattr(file, "size", None))


def _open_http(url: str, position: int, timeout: float) -> _Opened:
    headers = {"User-Agent": "gic", "Accept-Encoding": "identity"}
    if position:
        headers["Range"] = f"bytes={position}-"
    try:
        response = urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=timeout)
    except urllib.error.HTTPError as error:
        error.close()
        kind = OSError if error.code in _WORTH_ANOTHER_TRY else _PermanentError
        raise kind(f"HTTP status {error.code} {error.reason}") from error
    except urllib.error.URLError as error:
        raise OSError(reason(error.reason) if isinstance(error.reason, Exception) else error.reason) from error
    length = response.headers.get("Content-Length")
    partial = response.status == 206  # a server may also send the whole file again
    begin = position if partial else 0
    return _Opened(_Body(response), begin, None if length is None else begin + int(length))


class _Body:
    """Body of a response. Returns received bytes at once, since a break while waiting for more would lose them."""

    def __init__(self, response: http.client.HTTPResponse) -> None:
        self.read = response.read1
        self.close = response.close


class _Command:
    """Output of a shell command, which must not pause for too long and must exit with code 0."""

    def __init__(self, command: str, timeout: float) -> None:
        self._timeout = timeout
        # In its own process group, so that a whole pipeline can be ended.
        self._process = subprocess.Popen(command, shell=True, stdout=subprocess.PIPE, start_new_session=True)
        assert self._process.stdout is not None
        self._output = self._process.stdout

    def read(self, size: int) -> bytes:
        poll = select.poll()
        poll.register(self._output, select.POLLIN)
        if not poll.poll(1000 * self._timeout):
            raise OSError(f"the command gave nothing for {self._timeout:g} s")
        data = os.read(self._output.fileno(), size)
        if not data:
            try:
                code = self._process.wait(self._timeout)
            except subprocess.TimeoutExpired:
                raise OSError("the command closed its output and did not end") from None
            if code:
                raise OSError(f"the command ended with exit code {code}")
        return data

    def close(self) -> None:
        if self._process.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
        self._output.close()
        self._process.wait()
