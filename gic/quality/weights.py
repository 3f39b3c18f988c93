"""Where the weights of metric networks come from.

A file is searched for in this order: a path that the user names; the folder that the environment variable
GIC_METRIC_WEIGHTS names; the cache of the library that uses the file; that library's own download. The libraries load
the files themselves; a local file replaces the download. Files are read as tensors only: a file that needs unpickling
is refused.
"""

from __future__ import annotations

import difflib
import hashlib
import io
import os
import pickle
import socket
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, redirect_stdout
from pathlib import Path
from typing import Any
from unittest import mock

from gic.errors import ConfigError, GicError, MissingExtraError, require
from gic.quality.table import FILES, METRICS, WeightsFile

VARIABLE = "GIC_METRIC_WEIGHTS"
CONNECT_SECONDS = 20.0
"""How long a download waits for an answer."""


class MissingWeightsError(ConfigError):
    """Weights that were not found and could not be downloaded; the text says what to do."""


def metric_folder() -> Path | None:
    """Folder that the environment variable GIC_METRIC_WEIGHTS names, None if it is not set.

    Raises:
        ConfigError: If there is no such folder.
    """
    named = os.environ.get(VARIABLE)
    if not named:
        return None
    folder = Path(named).expanduser()
    if not folder.is_dir():
        raise ConfigError(f"the environment variable {VARIABLE} names {folder}, which is no folder")
    return folder


def hub_folder() -> Path:
    """Torch hub's cache, below which torchvision, torch-fidelity and pyiqa keep their files; torch is not imported."""
    cache = os.environ.get("XDG_CACHE_HOME", "~/.cache")
    return Path(os.environ.get("TORCH_HOME", str(Path(cache, "torch"))), "hub").expanduser()


def places(file: WeightsFile) -> list[Path]:
    """Where a file is searched for, in this order, if the user names no path."""
    folder = metric_folder()
    own = [] if folder is None else [folder / name for name in file.names]
    return [*own, hub_folder() / file.cache / file.names[0]]


def named_files(weights: Mapping[str, str | os.PathLike[str]] | None) -> dict[str, Path]:
    """Paths that the user names, ``weights: {KEY: FILE}``.

    Args:
        weights: Files by key: one of :data:`FILES`, or the name of another metric of pyiqa.

    Raises:
        ConfigError: If a key is unknown or a file is missing.
    """
    paths = {}
    for key, name in (weights or {}).items():
        if key not in FILES:
            metric = METRICS.get(key)
            if metric is not None:
                advice = f"name it {metric.weights[0]}" if metric.weights else "it needs none"
                raise ConfigError(f"there are no weights {key!r}: {advice}")
            check_pyiqa_name(key)
        path = Path(name).expanduser()
        if not path.is_file():
            raise ConfigError(f"no file {path}: it should hold the weights of {key}")
        paths[key] = path
    return paths


def find(key: str, named: Mapping[str, Path] | None = None) -> Path | None:
    """Local file of a key of :data:`FILES`, None if there is none."""
    if named and key in named:
        return named[key]
    return next((path for path in places(FILES[key]) if path.is_file()), None)


def missing_files(metrics: Iterable[str], weights: Mapping[str, str] | None = None) -> list[str]:
    """The library's names of files that metrics of the table need and that are not here.

    Args:
        metrics: Names of metrics.
        weights: What :func:`named_files` takes.
    """
    named = named_files(weights)
    keys = dict.fromkeys(key for metric in metrics if metric in METRICS for key in METRICS[metric].weights)
    return list(dict.fromkeys(FILES[key].names[0] for key in keys if find(key, named) is None))


def check_pyiqa_name(metric: str) -> None:
    """Check that pyiqa has a metric.

    Raises:
        ConfigError: If it has not, or is not installed; the text gives similar names.
    """
    try:
        known = require("pyiqa").list_models()
        advice = "pyiqa.list_models() lists what there is"
    except MissingExtraError:
        known, advice = [], "pyiqa, which has more, is not installed"
    if metric not in known:
        near = difflib.get_close_matches(metric, dict.fromkeys([*METRICS, *known]), 3)
        raise ConfigError(f"there is no metric {metric!r}; " + (f"near: {', '.join(near)}" if near else advice))


def fingerprint(paths: Iterable[Path]) -> str:
    """Names of files and the first 8 hexadecimal digits of their SHA-256, for the identity of a metric."""
    texts = [f"{path.name} {hashlib.sha256(path.read_bytes()).hexdigest()[:8]}" for path in paths]
    return ", ".join(texts) or "no weights"


@contextmanager
def library_weights(
    metric: str, named: Mapping[str, Path] | None = None, download: bool = True
) -> Iterator[list[Path]]:
    """Inside the block, the library of a metric gets its weights from the places where gic searches.

    pyiqa, torchvision and torch-fidelity turn a URL into a file of their cache, and most of them accept no path. So
    they get an empty cache, and the functions that would download into it ask :class:`_Source` first.

    Args:
        metric: Name of the metric, for messages.
        named: Files that the user names, see :func:`named_files`.
        download: Whether a missing file may be downloaded.

    Yields:
        The files that were used, complete at the end of the block.

    Raises:
        MissingWeightsError: If the weights are not available.
        ConfigError: If they cannot be used.
        MissingExtraError: If a package is missing.
    """
    import torch

    if not (metric in FILES and FILES[metric].cache == "checkpoints"):
        require("pyiqa")  # before its cache is replaced
        require("pyiqa.archs.clip_model")
    with ExitStack() as stack:
        empty = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        source = _Source(metric, named or {}, download, Path(torch.hub.get_dir()), empty / "hub")
        # TORCH_FORCE_WEIGHTS_ONLY_LOAD: torch.load unpickles nothing, even if a library requests it.
        variables = {"TORCH_HOME": str(empty), "TORCH_FORCE_WEIGHTS_ONLY_LOAD": "1"}
        stack.enter_context(mock.patch.dict(os.environ, variables))
        stack.enter_context(torch.random.fork_rng(devices=[]))  # networks are initialised at random before loading
        stack.enter_context(redirect_stdout(io.StringIO()))  # hides what the libraries print
        stack.enter_context(warnings.catch_warnings())
        warnings.simplefilter("ignore")
        stack.callback(socket.setdefaulttimeout, socket.getdefaulttimeout())
        socket.setdefaulttimeout(CONNECT_SECONDS)
        source.take_place(stack)
        try:
            yield source.used
        except GicError:
            raise
        except ImportError as error:
            package = _PACKAGES.get(error.name or "", error.name)
            raise MissingExtraError(f"{metric} needs the package {error.name}: pip install '{package}'") from error
        except Exception as error:  # libraries raise many types for a failed download or an unusable file
            raise source.explained(error) from error


_PACKAGES = {"pkg_resources": "setuptools<81"}  # openai-clip, which pyiqa uses, imports it


class _Source:
    """Replaces a library's downloads by local files where there are any.

    Args:
        metric: Name of the metric.
        named: Files that the user names.
        download: Whether a missing file may be downloaded.
        cache: Torch hub's folder.
        empty: The empty folder that the libraries use instead.
    """

    def __init__(self, metric: str, named: Mapping[str, Path], download: bool, cache: Path, empty: Path) -> None:
        self.metric, self.named, self.download = metric, named, download
        self.cache, self.empty = cache, empty
        self.used: list[Path] = []
        self.missing: str | None = None
        self.hub_closed = False

    def take_place(self, stack: ExitStack) -> None:
        """Replace the libraries' downloads by :meth:`fetch`, as long as ``stack`` is open."""
        import torch

        (self.empty / "pyiqa").mkdir(parents=True)  # some metrics also write there
        hub = self._instead_of(torch.hub.download_url_to_file)
        stack.enter_context(mock.patch.object(torch.hub, "download_url_to_file", hub))
        pyiqa, clip = (sys.modules.get(f"pyiqa.{name}") for name in ("utils.download_util", "archs.clip_model"))
        if pyiqa is None or clip is None:  # LPIPS and FID
            return
        changed = {"DEFAULT_CACHE_DIR": str(self.empty / "pyiqa"), "download_url_to_file": hub}
        stack.enter_context(mock.patch.dict(vars(pyiqa), changed))
        download_clip = clip._download

        def instead_of_clip(url: str, root: str) -> str:
            path = Path(root, Path(url).name)
            self.fetch(path, lambda target: download_clip(url, str(target.parent)))
            return str(path)

        stack.enter_context(mock.patch.object(clip, "_download", instead_of_clip))
        if self.metric not in METRICS:
            constants = require("huggingface_hub.constants")
            self.hub_closed = not self.download or not _answers(constants.ENDPOINT)
            if self.hub_closed:  # it would retry for half a minute
                stack.enter_context(mock.patch.object(constants, "HF_HUB_OFFLINE", True))

    def _instead_of(self, download: Callable[..., object]) -> Callable[..., None]:
        def instead_of_hub(url: str, dst: str, *args: Any, **kwargs: Any) -> None:
            self.fetch(Path(dst), lambda target: download(url, str(target), *args, **kwargs))

        return instead_of_hub

    def fetch(self, wanted: Path, download: Callable[[Path], object]) -> None:
        """Link the file ``wanted`` of the empty cache to the real file."""
        if not wanted.is_relative_to(self.empty):  # a library's own folder
            download(wanted)
            return
        target = self.cache / wanted.relative_to(self.empty)
        path = self._named(target) or self._in_folder(target.name) or target
        if not path.is_file():
            self.missing = target.name
            if not self.download:
                raise FileNotFoundError("not downloaded")
            print(f"downloading {path}", file=sys.stderr)
            path.parent.mkdir(parents=True, exist_ok=True)
            download(path)
            self.missing = None
        self.used.append(path)
        wanted.parent.mkdir(parents=True, exist_ok=True)
        wanted.symlink_to(path.resolve())

    def _named(self, target: Path) -> Path | None:
        """The path that the user names for a file; outside the table, for the first file of a metric."""
        keys = [*(METRICS[self.metric].weights if self.metric in METRICS else ()), *FILES]
        key = next((key for key in keys if FILES[key].names[0] == target.name), None)
        if key is None and target.parent.name != "checkpoints" and self.named.get(self.metric) not in self.used:
            key = self.metric
        return self.named.get(key or "")

    def _in_folder(self, name: str) -> Path | None:
        folder = metric_folder()
        return folder / name if folder and (folder / name).is_file() else None

    def explained(self, error: Exception) -> ConfigError:
        """A library's error in one or two sentences."""
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        if isinstance(error, pickle.UnpicklingError) and self.used:
            return ConfigError(
                f"{self.used[-1]} is damaged or holds more than tensors, which could run any code while it is read: it "
                f"is refused as weights of {self.metric}; save its state dict alone"
            )
        if self.missing is not None or (self.hub_closed and isinstance(error, OSError)):
            return MissingWeightsError(
                f"{self.missing or 'the weights'} of {self.metric} cannot be had ({reason}): fetch it where there is a "
                f"network, with `gic weights {self.metric} --download`, or put it into the folder that {VARIABLE} names"
            )
        if self.used:
            expected = f"; it should be {FILES[self.metric].what}" if self.metric in FILES else ""
            return ConfigError(f"{self.used[-1]} cannot be used as weights of {self.metric} ({reason}){expected}")
        return ConfigError(f"{self.metric} cannot be built: {reason}")


def _answers(endpoint: str) -> bool:
    """Whether a server can be reached; behind a proxy this is unknown and counts as reached."""
    from urllib.parse import urlsplit
    from urllib.request import getproxies

    if getproxies():
        return True
    parts = urlsplit(endpoint)
    try:
        socket.create_connection((parts.hostname, parts.port or 443), timeout=5).close()
    except OSError:
        return False
    return True
