"""Weights by name: those in the package, those in a folder of yours, and those of the Hugging Face hub."""

from __future__ import annotations

import difflib
import hashlib
import json
import os
import re
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal, NamedTuple

from gic.bitstream.container import MODEL_ID_BYTES
from gic.codec import hub
from gic.codec.weights_file import read_safetensors
from gic.errors import ConfigError
from gic.files import is_url

CHECKPOINT_VARIABLE = "GIC_CHECKPOINT"
FOLDER_VARIABLE = "GIC_MODELS"
PACKAGED = Path(__file__).parents[1] / "weights"
SUFFIX = ".safetensors"
FORMER = {
    "988170c9b4fc": ("small-0.4", "weights/small-0.4.safetensors"),
    "6fd1b3f18eb0": ("small-0.5 before its release", "gic/weights/small-0.5.safetensors in commit 408e2c2"),
}
"""Weights that came with earlier versions, by their identity in files: name, and place in gic's repository."""
_VERSIONED = re.compile(r"(.+)-(\d+(?:\.\d+)*)")


class Entry(NamedTuple):
    """Weights that are at hand.

    Attributes:
        name: What :func:`gic.load` and ``--checkpoint`` take.
        origin: In the ``package``, in the ``folder`` of GIC_MODELS, in the cache of the ``hub``, or any other ``file``.
        path: The file.
    """

    name: str
    origin: Literal["package", "folder", "hub", "file"]
    path: Path

    @property
    def family(self) -> str:
        """The name without its version, which stands for the newest of its kind.

        >>> Entry("small-0.4", "package", Path()).family, Entry("mine", "folder", Path()).family
        ('small', 'mine')
        """
        match = _VERSIONED.fullmatch(self.name)
        return match[1] if match else self.name

    @property
    def version(self) -> tuple[int, ...]:
        """The version in its name.

        >>> Entry("small-0.10", "package", Path()).version > Entry("small-0.4", "package", Path()).version
        True
        """
        match = _VERSIONED.fullmatch(self.name)
        return tuple(map(int, match[2].split("."))) if match else ()


class Facts(NamedTuple):
    """What weights are.

    Attributes:
        model: Their identity in files, hexadecimal; None if they take PyTorch or cannot be used.
        q_min: Finest step of the quantiser.
        q_max: Coarsest step.
        parameters: Number of parameters.
        bytes: Size of the file.
        sha256: Of the file.
        provenance: Where they come from, as they say.
        rates: Bits per pixel of the file by step q, on the pictures that it names, where they were measured.
        problem: Why they cannot be used, or what they need.
    """

    model: str | None
    q_min: float | None
    q_max: float | None
    parameters: int | None
    bytes: int
    sha256: str
    provenance: dict[str, Any]
    rates: dict[str, Any]
    problem: str | None


def entries() -> list[Entry]:
    """All weights at hand, by origin and name; a name that two origins have is the first one's."""
    found = [*_on_disk(), *(Entry(str(reference), "hub", path) for reference, path in hub.cached())]
    return list({entry.name: entry for entry in reversed(found)}.values())[::-1]


def _on_disk() -> list[Entry]:
    """Those of the package and the folder, which are found without the hub's client."""
    found = [Entry(path.stem, "package", path) for path in sorted(PACKAGED.glob(f"*{SUFFIX}"))]
    folder = os.environ.get(FOLDER_VARIABLE)
    for path in sorted(Path(folder).glob(f"*{SUFFIX}")) if folder else ():
        reference = hub.of_file_name(path.stem)
        found.append(Entry(str(reference) if reference else path.stem, "folder", path))
    return found


def folder_problem() -> str | None:
    """What is wrong with the folder that the environment names; None if it is there, or none is named."""
    folder = os.environ.get(FOLDER_VARIABLE)
    return None if not folder or Path(folder).is_dir() else f"{FOLDER_VARIABLE}={folder} is no folder"


def shipped_weights() -> Path:
    """Weights that come with the package.

    Raises:
        ConfigError: If there are none; the text says how to get some.
    """
    shipped = [entry for entry in _on_disk() if entry.origin == "package"]
    if not shipped:
        raise ConfigError(
            "this installation has no weights of its own: name a checkpoint (--checkpoint FILE, or the environment "
            f"variable {CHECKPOINT_VARIABLE}), or train one: gic fit --config configs/base.yaml"
        )
    return max(shipped, key=lambda entry: entry.version).path


def default_checkpoint() -> Path:
    """Weights to use when none are named: those of the environment variable, else those in the package.

    Raises:
        ConfigError: If there are none; the text says how to get some.
    """
    named = os.environ.get(CHECKPOINT_VARIABLE)
    return locate(named) if named else shipped_weights()


def locate(named: str | Path | None) -> Path:
    """The file of weights.

    Args:
        named: A file, the name of weights at hand with or without its version (``small-0.4``, ``small``), ``shipped``
            for those in the package, or ``hf://OWNER/REPO`` for the hub's, which are downloaded once. None stands for
            the default.

    Returns:
        The file. One that is named by its path need not exist.

    Raises:
        ConfigError: If there are no weights of that name, or they cannot be downloaded.
        MissingExtraError: If they are the hub's, not at hand, and its client is not installed.
    """
    if named is None:
        return default_checkpoint()
    if isinstance(named, Path):
        return named
    if named.startswith(hub.SCHEME):
        reference = hub.parse(named)
        copies = (entry.path for entry in _on_disk() if entry.name == str(reference))
        return next(copies, None) or hub.download(reference)
    path = Path(named)
    if path.suffix in (SUFFIX, ".ckpt") or is_url(named) or len(path.parts) > 1 or path.is_file():
        return path
    if named == "shipped":
        return shipped_weights()
    known = [entry for entry in _on_disk() if not entry.name.startswith(hub.SCHEME)]
    if exact := next((entry for entry in known if entry.name == named), None):
        return exact.path
    if versions := [entry for entry in known if entry.family == named]:
        return max(versions, key=lambda entry: entry.version).path
    names = sorted({name for entry in known for name in (entry.name, entry.family)})
    near = difflib.get_close_matches(named, names, 1)
    hint = f", did you mean {near[0]!r}?" if near else ""
    hint += f" ({problem})" if (problem := folder_problem()) else ""
    raise ConfigError(f"there is no checkpoint {named!r}, neither a file nor a name that gic models lists{hint}")


def facts(path: Path) -> Facts:
    """What the weights in a file are.

    Raises:
        ConfigError: If the file is no weights file of a gic codec.
    """
    stat = path.stat()
    return _facts(path, stat.st_mtime_ns, stat.st_size)


@lru_cache(maxsize=64)
def _facts(path: Path, changed: int, size: int) -> Facts:
    from gic.runtime.onnx import OnnxNetworks

    state, config, provenance = read_safetensors(path, "np")
    sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
    beside = path.with_suffix(".json")
    rates = json.loads(beside.read_text())["rates"] if path.parent == PACKAGED and beside.is_file() else {}
    try:
        about = OnnxNetworks(state, config, 1).about
    except ConfigError as error:
        return Facts(None, None, None, None, size, sha256, provenance, rates, str(error))
    model = about.digest[:MODEL_ID_BYTES].hex()
    return Facts(model, about.q_min, about.q_max, about.parameters, size, sha256, provenance, rates, None)


def of_model(model_id: bytes) -> Entry | None:
    """The weights at hand whose files have this identity; None if there are none."""
    for entry in entries():
        try:
            if facts(entry.path).model == model_id.hex():
                return entry
        except (ConfigError, OSError):
            continue
    return None


def advice(model_id: bytes) -> str:
    """Which weights made a file, as far as is known, and where to get them; for an error, behind a comma."""
    if (entry := of_model(model_id)) is not None:
        return f", {entry.name}"
    if (former := FORMER.get(model_id.hex())) is None:
        return ""
    name, place = former
    return (
        f", {name}, which an earlier gic came with: take {place} of gic's repository, and name it by "
        f"--checkpoint or put it into the folder that {FOLDER_VARIABLE} names"
    )
